"""Tables to rows: CSV, Parquet, Arrow, Feather, and Hugging Face data sets."""

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from veritune.errors import DataError, RecordError
from veritune.records.json_lines import MAX_LINE_BYTES, Item, loads_strictly
from veritune.records.kinds import Origin

_BATCH_ROWS = 1000

_LIST_COLUMNS = frozenset(
    {
        *("messages", "conversations", "context", "history", "completions", "responses"),
        *("scores", "rewards", "tools", "chat_template_kwargs"),
    }
)


def iter_csv(
    file: BinaryIO, name: str, *, delimiter: str, columns: dict[str, str]
) -> Iterator[Item]:
    """The rows of a CSV or TSV file with a header line.

    Every value is text: "NA" and "" stay what they are. JSON is read in cells of columns that are
    lists, and in text columns where a cell is a list of messages.

    Args:
        file: The open file.
        name: What messages call it.
        delimiter: A comma or a tab.
        columns: The file's column name to ours, as `iter_rows` takes it.

    Raises:
        DataError: The header is missing or names a column twice.
    """
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    rows = csv.reader(text, delimiter=delimiter, strict=True)
    with _field_limit(MAX_LINE_BYTES):
        header = next(rows, None)
    if header is None:
        return
    refuse_repeated_columns(header, name)
    while True:
        origin = Origin(name, rows.line_num + 1)
        try:
            with _field_limit(MAX_LINE_BYTES):
                cells = next(rows, None)
        except csv.Error as error:
            yield RecordError(
                f"not valid CSV ({error})",
                where=origin,
                fix="put text that holds quotes or line ends in quotes, and double inner quotes",
            )
            continue
        if cells is None:
            return
        if cells:
            yield _row_of_cells(header, cells, origin, columns)


def iter_parquet(path: Path, name: str) -> Iterator[Item]:
    """The rows of a Parquet file, a batch at a time."""
    with pa.parquet.ParquetFile(path) as file:
        refuse_repeated_columns(file.schema_arrow.names, name)
        yield from _rows_of_batches(file.iter_batches(batch_size=_BATCH_ROWS), name)


def iter_arrow(path: Path, name: str) -> Iterator[Item]:
    """The rows of an Arrow or Feather file, of either the file or the stream form."""
    with pa.memory_map(str(path)) as source:
        try:
            file = pa.ipc.open_file(source)
        except pa.ArrowInvalid:
            source.seek(0)
            stream = pa.ipc.open_stream(source)
            refuse_repeated_columns(stream.schema.names, name)
            yield from _rows_of_batches(iter(stream), name)
            return
        refuse_repeated_columns(file.schema.names, name)
        batches = (file.get_batch(index) for index in range(file.num_record_batches))
        yield from _rows_of_batches(batches, name)


def iter_dataset(dataset: Any, name: str) -> Iterator[Item]:
    """The rows of a `datasets.Dataset`, a batch at a time."""
    batches = dataset.with_format("arrow").iter(batch_size=_BATCH_ROWS)
    yield from _rows_of_batches(batches, name)


def refuse_other_folder(path: Path) -> None:
    """Refuse a folder that `datasets.save_to_disk` did not write.

    Raises:
        DataError: The folder is no such data set.
    """
    if not any((path / mark).is_file() for mark in ("dataset_dict.json", "state.json")):
        inside = sorted(file.name for file in path.iterdir() if file.is_file())[:5]
        raise DataError(
            "the folder is no data set",
            where=path,
            got=inside or "an empty folder",
            why="a folder is read only if datasets.save_to_disk wrote it",
            fix="give the files themselves, as a list",
        )


def open_saved_dataset(path: Path, split: str) -> Any:
    """The split of a folder that `datasets.save_to_disk` wrote.

    Raises:
        DataError: The folder is no such data set, is damaged, or has no such split.
    """
    refuse_other_folder(path)
    # Inside the function, because importing `datasets` takes seconds that most files never need.
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise DataError(
            f"the folder cannot be read as a data set ({_first_line(error)})",
            where=path,
            fix="write it again with datasets.save_to_disk",
        ) from error
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    if split not in loaded:
        raise DataError(
            f"the data set has no split {split!r}",
            where=path,
            got=sorted(loaded),
            fix="set data.split to one of these",
        )
    return loaded[split]


def open_hub_dataset(
    name: str, split: str, *, subset: str | None = None, nearest_file: str | None
) -> Any:
    """The split of a data set on the hub (of one of its subsets), downloaded or from the cache.

    Raises:
        DataError: There is no such file here, and the hub gives no such data set.
    """
    import datasets

    try:
        return datasets.load_dataset(name, subset, split=split)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        fix = "check the path, or the name on the hub, data.split and data.subset"
        if nearest_file is not None:
            fix = f"did you mean the file {nearest_file}?"
        raise DataError(
            "neither a file or folder here nor a data set that the hub gives"
            f" ({type(error).__name__}: {_first_line(error)})",
            where=name,
            fix=fix,
        ) from error


def refuse_repeated_columns(names: list[str], where: str) -> None:
    """Refuse a table with two columns of one name; nameless columns (a saved index) may repeat."""
    repeated = sorted({name for name in names if name and names.count(name) > 1})
    if repeated:
        raise DataError(
            "the table names a column twice",
            where=where,
            got=repeated,
            why="only one of the columns could be used, and which one is not said",
            fix="rename or remove one of them",
        )


@contextmanager
def _field_limit(limit: int) -> Iterator[None]:
    """The csv module's limit, which is global, raised for one call and put back."""
    before = csv.field_size_limit(limit)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _row_of_cells(
    header: list[str], cells: list[str], origin: Origin, columns: dict[str, str]
) -> Item:
    if len(cells) != len(header):
        return RecordError(
            f"the row has {len(cells)} cells, and the header names {len(header)} columns",
            where=origin,
            got=cells,
            fix="put text that holds the delimiter in quotes",
        )
    for cell in cells:
        # surrogateescape has put each byte that is not UTF-8 into this range.
        if not cell.isascii() and any("\udc80" <= character <= "\udcff" for character in cell):
            return RecordError(
                "a cell is not UTF-8", where=origin, got=cell, fix="save the file as UTF-8"
            )
    named = zip(header, cells, strict=True)
    return origin, {name: _value_of_cell(columns.get(name, name), cell) for name, cell in named}


def _value_of_cell(column: str, cell: str) -> Any:
    is_list_column = column in _LIST_COLUMNS or column.endswith("_ids")
    if is_list_column and not cell.strip():
        return None
    if not cell.lstrip().startswith(("[", "{")):
        return cell
    try:
        value = loads_strictly(cell)
    except (ValueError, RecursionError):
        return cell
    return value if is_list_column or _is_dialogue(value) else cell


def _is_dialogue(value: Any) -> bool:
    turns = value if isinstance(value, list) else [value]
    return bool(turns) and all(
        isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in turns
    )


def _rows_of_batches(batches: Iterator[Any], name: str) -> Iterator[Item]:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield Origin(name, number, unit="row"), _without_nulls(row)


def _without_nulls(value: Any) -> Any:
    """The value without null fields: a struct column gives every row every field of any row."""
    if isinstance(value, dict):
        return {key: _without_nulls(below) for key, below in value.items() if below is not None}
    if isinstance(value, list) and value and isinstance(value[0], dict | list):
        return [_without_nulls(below) for below in value]
    return value


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
