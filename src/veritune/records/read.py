"""Files to records, each with its origin; all problems of all files at once.

1. `rows_of` gives the rows of all files, one at a time.
2. `sound_records` makes records of rows and counts what it finds; rows may come in pieces.
3. `check_found` raises what is wrong, once all rows were seen. `read_records` is all three.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field, field_validator

from veritune.config import Config
from veritune.errors import DataError, Problems, RecordError, SettingsError, nearest_name
from veritune.records.json_lines import Item, Row
from veritune.records.kinds import KINDS, Origin, Paired, Record
from veritune.records.shapes import KNOWN_COLUMNS, record_from_row
from veritune.records.sources import iter_rows
from veritune.records.validate import check_completions_differ, validate_record


class DataConfig(Config):
    """Where records come from, and what happens to rows that cannot be used."""

    SHORTHAND: ClassVar[str | None] = "files"

    files: tuple[str, ...] = Field(min_length=1)
    """Files, folders written by `datasets.save_to_disk`, or hub ids: one, or a list.
    They are read in this order."""

    split: str = "train"
    """Which split of a saved data set or a hub id; files have none."""

    subset: str | None = None
    """Which configuration of a hub id that has several; null is its default."""

    on_error: Literal["stop", "skip"] = "stop"
    """Whether rows that cannot be used stop the command, or are left out and counted."""

    identical_pairs: Literal["stop", "drop", "keep"] = "stop"
    """What becomes of a pair whose two completions are the same: a problem, left out and counted,
    or kept. It has the same loss under every policy, so keeping it only dilutes a batch."""

    kind: str | None = None
    """The kind of record to read where the columns would fit several; null lets the columns say."""

    columns: dict[str, str] = Field(default_factory=dict)
    """The file's column name to ours, as in {question: prompt}. A renamed column replaces one that
    has our name already."""

    @field_validator("files", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, value: str | None) -> str | None:
        if value is None or value in KINDS:
            return value
        near = nearest_name(value, list(KINDS))
        raise SettingsError(
            "not a kind of record",
            got=value,
            fix=f"did you mean {near}?" if near else f"use one of {', '.join(KINDS)}",
        )

    @field_validator("columns")
    @classmethod
    def _known_columns(cls, value: dict[str, str]) -> dict[str, str]:
        for ours in value.values():
            if ours not in KNOWN_COLUMNS:
                near = nearest_name(ours, sorted(KNOWN_COLUMNS))
                raise SettingsError(
                    "the file's columns are renamed to one that no kind of record reads",
                    got=ours,
                    fix=f"did you mean {near}?"
                    if near
                    else f"use one of {', '.join(sorted(KNOWN_COLUMNS))}",
                )
        if len(set(value.values())) < len(value):
            raise SettingsError(
                "two columns of the file would become one", got=value, fix="leave one of them out"
            )
        return value


class First(NamedTuple):
    """The first sound record, which says the kind of all."""

    kind: str
    origin: Origin


@dataclass
class Found:
    """What rows held, counted as they are read."""

    num_rows: int = 0
    """Rows read: records, problems and identical pairs that were left out."""

    num_records: int = 0
    """Sound records."""

    num_identical_dropped: int = 0
    """Pairs left out because their completions are the same."""

    problems: Problems = field(default_factory=Problems)
    """One for each row that cannot be used, in order."""

    columns: frozenset[str] = frozenset()
    """Columns that were renamed, by our names, as far as some row has them."""

    first: First | None = None

    def join(self, later: "Found") -> None:
        """Count what was found in rows behind these."""
        self.num_rows += later.num_rows
        self.num_records += later.num_records
        self.num_identical_dropped += later.num_identical_dropped
        self.problems.join(later.problems)
        self.columns |= later.columns
        self.first = self.first or later.first


@dataclass(frozen=True)
class ReadResult:
    """The sound records of some files, and what is wrong with the other rows."""

    records: tuple[Record, ...]
    """Never empty, all of one kind, in the order of the files."""

    problems: Problems
    """One for each row that cannot be used, in order; none unless `on_error` is "skip"."""

    num_rows: int
    """Rows read: records, problems and identical pairs that were left out."""

    num_identical_dropped: int
    """Pairs left out because their completions are the same."""

    kind: str
    """The kind of every record."""

    files: tuple[str, ...]
    """The sources as the settings name them."""


def read_records(config: DataConfig, *, kind: str | None = None) -> ReadResult:
    """The records of the files, each recognized by its columns and checked.

    The kind of the first sound row rules; rows of another kind are problems.

    Args:
        config: Which files, and what to do about bad rows.
        kind: The kind of record to read where `config.kind` does not say.

    Raises:
        DataError: A file cannot be read; a row cannot be used and `on_error` is "stop"; or no row
            can be used. The first twenty problems are shown, after all rows were read.
    """
    found = Found()
    records = tuple(sound_records(rows_of(config), config, found, kind=kind))
    check_found(config, found)
    return ReadResult(
        records,
        found.problems,
        found.num_rows,
        found.num_identical_dropped,
        records[0].kind,
        config.files,
    )


def rows_of(config: DataConfig) -> Iterator[Item]:
    """The rows of all files, one at a time.

    Raises:
        DataError: A file cannot be read.
    """
    for file in config.files:
        yield from iter_rows(file, split=config.split, subset=config.subset, columns=config.columns)


def sound_records(
    rows: Iterable[Item], config: DataConfig, found: Found, *, kind: str | None = None
) -> Iterator[Record]:
    """The records of rows, one at a time, each recognized by its columns and checked.

    Args:
        rows: All rows, or a piece of them.
        config: What to do about bad rows.
        found: Where what is found is counted, problems among it; its `first` says the kind.
        kind: The kind of record to read where `config.kind` does not say.
    """
    asked = config.kind or kind
    assert asked is None or asked in KINDS, f"kind is None or one of {', '.join(KINDS)}"
    renamed_to = set(config.columns.values())
    for item in rows:
        found.num_rows += 1
        if isinstance(item, RecordError):
            found.problems.add(item)
            continue
        origin, row = item
        found.columns |= renamed_to & row.keys()
        try:
            record = record_from_row(origin, row, kind=asked)
            if found.first is not None:
                _check_same_kind(record, row, found.first)
            validate_record(record)
            if isinstance(record, Paired) and config.identical_pairs != "keep":
                if config.identical_pairs == "drop" and record.chosen == record.rejected:
                    found.num_identical_dropped += 1
                    continue
                check_completions_differ(record)
        except RecordError as problem:
            found.problems.add(problem)
        else:
            found.num_records += 1
            found.first = found.first or First(record.kind, record.origin)
            yield record


def check_found(config: DataConfig, found: Found) -> None:
    """Refuse what was found in all rows, if it cannot be used.

    Raises:
        DataError: A renamed column is nowhere; a row cannot be used and `on_error` is "stop"; or no
            row can be used. The first twenty problems are shown.
    """
    _refuse_unseen_columns(config, found.columns)
    if found.problems and (config.on_error == "stop" or not found.num_records):
        raise _problems_error(config, found)
    if not found.num_records:
        raise DataError(
            f"all {found.num_rows:,} pairs have identical completions",
            where=_shown_files(config.files),
            fix="check how the pairs were made; data.identical_pairs=keep would read them",
        )


def _check_same_kind(record: Record, row: Row, first: First) -> None:
    if record.kind == first.kind:
        return
    raise RecordError(
        f"the row makes {_a(record.kind)} record, and the first one made {_a(first.kind)} record",
        where=record.origin,
        got=list(row),
        why=f"a run reads one kind of record; the first is that of {first.origin}",
        fix="keep each kind in its own files, or set data.kind where the columns fit several",
    )


def _a(kind: str) -> str:
    return f"an {kind}" if kind == "unpaired" else f"a {kind}"


def _refuse_unseen_columns(config: DataConfig, seen: frozenset[str]) -> None:
    unseen = [theirs for theirs, ours in config.columns.items() if ours not in seen]
    if unseen:
        raise DataError(
            "data.columns names columns that no row has",
            where=_shown_files(config.files),
            got=unseen,
            fix="correct the names, or leave them out of data.columns",
        )


def _problems_error(config: DataConfig, found: Found) -> DataError:
    summary = f"{len(found.problems):,} of {found.num_rows:,} rows cannot be used"
    fix = "mend the rows"
    if found.num_records:
        fix += f", or set data.on_error=skip to go on with the other {found.num_records:,}"
    return DataError(
        f"{summary}\n\n{found.problems}\n\n{summary}",
        where=_shown_files(config.files),
        fix=fix,
    )


def _shown_files(files: tuple[str, ...]) -> str:
    return files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
