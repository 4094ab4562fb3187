"""A name of data to rows: which format a path has, and which door it goes through."""

import csv
import gzip
import hashlib
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from veritune.errors import DataError, nearest_name
from veritune.provenance import hash_file
from veritune.records.json_lines import (
    MAX_LINE_BYTES,
    Item,
    iter_json,
    iter_json_lines,
)
from veritune.records.tables import (
    iter_arrow,
    iter_csv,
    iter_dataset,
    iter_parquet,
    open_hub_dataset,
    open_saved_dataset,
    refuse_other_folder,
)

TEXT_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
"""Endings of text files; each may be followed by .gz."""

BINARY_ENDINGS = (".parquet", ".arrow", ".feather")
"""Endings of columnar files."""


def iter_rows(
    source: str,
    *,
    split: str = "train",
    subset: str | None = None,
    columns: Mapping[str, str] | None = None,
    max_line_bytes: int = MAX_LINE_BYTES,
) -> Iterator[Item]:
    """The rows of a file, a saved data set or a hub id, one at a time.

    JSON Lines, CSV, Parquet and Arrow are streamed; a .json file is held in memory.

    Args:
        source: A path, or the id of a data set on the Hugging Face hub.
        split: Which split of a data set with several; files have none.
        subset: Which configuration of a data set on the hub that has several.
        columns: The file's column name to ours; a column that has our name already is left out.
        max_line_bytes: Longest line of JSON Lines, in bytes; a longer one is a problem.

    Yields:
        `(origin, row)`, or the `RecordError` of a row that cannot be used.

    Raises:
        DataError: The source is missing, of no known form, damaged as a whole, or empty.
    """
    renamed = dict(columns or {})
    num_items = 0
    try:
        for item in _open_source(source, split, subset, renamed, max_line_bytes):
            num_items += 1
            yield _rename(item, renamed) if renamed else item
    except (OSError, EOFError, zlib.error, csv.Error, pa.ArrowException) as error:
        raise _unreadable(source, num_items, error) from error
    if num_items == 0:
        raise DataError(
            "the file is empty", where=source, fix="give a file that holds at least one row"
        )


def source_identity(source: str, *, split: str = "train", subset: str | None = None) -> str:
    """A hash of everything that the rows of a source depend on.

    Of a file and of a saved data set it is their content; of a data set on the hub the fingerprint
    that `datasets` gives it.

    Args:
        source: As `iter_rows` takes it.
        split: Which split of a data set on the hub.
        subset: Which configuration of it.

    Raises:
        DataError: The source is missing, or cannot be read.
    """
    path = Path(source).expanduser()
    try:
        if path.is_file():
            return hash_file(path)
        if path.is_dir():
            refuse_other_folder(path)
            digest = hashlib.blake2b(digest_size=16)
            for file in sorted(file for file in path.rglob("*") if file.is_file()):
                digest.update(f"{file.relative_to(path)}\0{hash_file(file)}\0".encode())
            return digest.hexdigest()
    except OSError as error:
        raise _unreadable(source, 0, error) from error
    return f"hub {_open_hub(source, path, split, subset)._fingerprint}"


def _open_source(
    source: str, split: str, subset: str | None, columns: dict[str, str], max_line_bytes: int
) -> Iterator[Item]:
    path = Path(source).expanduser()
    if path.is_dir():
        return iter_dataset(open_saved_dataset(path, split), f"{source}[{split}]")
    if path.is_file():
        return _iter_file(path, source, columns, max_line_bytes)
    return iter_dataset(_open_hub(source, path, split, subset), f"{source}[{split}]")


def _open_hub(source: str, path: Path, split: str, subset: str | None) -> Any:
    near = _nearest_file(path)
    if _looks_like_file(source):
        raise DataError(
            "the file does not exist",
            where=source,
            fix=f"did you mean {near}?" if near else "check the path",
        )
    return open_hub_dataset(source, split, subset=subset, nearest_file=near)


def _unreadable(source: str, num_rows: int, error: Exception) -> DataError:
    return DataError(
        f"the file is damaged or cannot be read, after {num_rows:,} rows"
        f" ({type(error).__name__}: {error})",
        where=source,
        fix="download or write the file again; the ending of the name must say its format",
    )


def _iter_file(
    path: Path, name: str, columns: dict[str, str], max_line_bytes: int
) -> Iterator[Item]:
    lower = path.name.lower()
    ending = Path(lower.removesuffix(".gz")).suffix
    if ending in BINARY_ENDINGS and not lower.endswith(".gz"):
        yield from (iter_parquet if ending == ".parquet" else iter_arrow)(path, name)
        return
    if ending not in TEXT_ENDINGS:
        raise DataError(
            f"the ending {path.suffix!r} is not one of a known format",
            where=name,
            fix=f"use {', '.join(TEXT_ENDINGS)} (each also with .gz), {', '.join(BINARY_ENDINGS)}",
        )
    with _open_binary(path) as file:
        if ending in (".jsonl", ".ndjson"):
            yield from iter_json_lines(file, name, max_line_bytes=max_line_bytes)
        elif ending == ".json":
            yield from iter_json(file, name)
        else:
            delimiter = "," if ending == ".csv" else "\t"
            yield from iter_csv(file, name, delimiter=delimiter, columns=columns)


def _open_binary(path: Path) -> BinaryIO:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path)  # type: ignore[return-value]
    return path.open("rb")


def _rename(item: Item, columns: dict[str, str]) -> Item:
    if not isinstance(item, tuple):
        return item
    origin, row = item
    given = {ours: row[theirs] for theirs, ours in columns.items() if theirs in row}
    replaced = {*columns, *columns.values()}
    kept = {name: value for name, value in row.items() if name not in replaced}
    return origin, kept | given


def _looks_like_file(source: str) -> bool:
    """A hub id is `name` or `owner/name`; everything else can only be a path."""
    if source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source:
        return True
    has_known_ending = source.lower().removesuffix(".gz").endswith(TEXT_ENDINGS + BINARY_ENDINGS)
    return has_known_ending or ("/" not in source and "." in source)


def _nearest_file(path: Path) -> str | None:
    if not path.parent.is_dir():
        return None
    near = nearest_name(path.name, [file.name for file in path.parent.iterdir()])
    return None if near is None else str(path.parent / near)
