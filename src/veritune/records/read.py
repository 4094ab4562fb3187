"""Files to records, each with its origin; all problems of all files at once."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from veritune.config import Config
from veritune.errors import DataError, RecordError, SettingsError, join_problems, nearest_name
from veritune.records.json_lines import Item, Row
from veritune.records.kinds import KINDS, Paired, Record
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


@dataclass(frozen=True)
class ReadResult:
    """The sound records of some files, and what is wrong with the other rows."""

    records: tuple[Record, ...]
    """Never empty, all of one kind, in the order of the files."""

    problems: tuple[RecordError, ...]
    """One for each row that cannot be used, in order; empty unless `on_error` is "skip"."""

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
    asked = config.kind or kind
    assert asked is None or asked in KINDS, f"kind is None or one of {', '.join(KINDS)}"
    records: list[Record] = []
    problems: list[RecordError] = []
    num_rows = num_dropped = 0
    renamed_to = set(config.columns.values())
    seen: set[str] = set()
    for item in _rows_of_files(config):
        num_rows += 1
        if isinstance(item, RecordError):
            problems.append(item)
            continue
        origin, row = item
        seen |= renamed_to & row.keys()
        try:
            record = record_from_row(origin, row, kind=asked)
            if records:
                _check_same_kind(record, row, records[0])
            validate_record(record)
            if isinstance(record, Paired) and config.identical_pairs != "keep":
                if config.identical_pairs == "drop" and record.chosen == record.rejected:
                    num_dropped += 1
                    continue
                check_completions_differ(record)
        except RecordError as problem:
            problems.append(problem)
        else:
            records.append(record)
    _refuse_unseen_columns(config, seen)
    if problems and (config.on_error == "stop" or not records):
        raise _problems_error(config, problems, len(records), num_rows)
    if not records:
        raise DataError(
            f"all {num_rows:,} pairs have identical completions",
            where=_shown_files(config.files),
            fix="check how the pairs were made; data.identical_pairs=keep would read them",
        )
    return ReadResult(
        tuple(records), tuple(problems), num_rows, num_dropped, records[0].kind, config.files
    )


def _rows_of_files(config: DataConfig) -> Iterator[Item]:
    for file in config.files:
        yield from iter_rows(file, split=config.split, subset=config.subset, columns=config.columns)


def _check_same_kind(record: Record, row: Row, first: Record) -> None:
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


def _refuse_unseen_columns(config: DataConfig, seen: set[str]) -> None:
    unseen = [theirs for theirs, ours in config.columns.items() if ours not in seen]
    if unseen:
        raise DataError(
            "data.columns names columns that no row has",
            where=_shown_files(config.files),
            got=unseen,
            fix="correct the names, or leave them out of data.columns",
        )


def _problems_error(
    config: DataConfig, problems: list[RecordError], num_sound: int, num_rows: int
) -> DataError:
    summary = f"{len(problems):,} of {num_rows:,} rows cannot be used"
    fix = "mend the rows"
    if num_sound:
        fix += f", or set data.on_error=skip to go on with the other {num_sound:,}"
    return DataError(
        f"{summary}\n\n{join_problems(problems)}\n\n{summary}",
        where=_shown_files(config.files),
        fix=fix,
    )


def _shown_files(files: tuple[str, ...]) -> str:
    return files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
