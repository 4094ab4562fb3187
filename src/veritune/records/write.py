"""Records to JSON Lines that read back equal, but for their origin."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from veritune.errors import DataError
from veritune.records.kinds import (
    Demonstration,
    Message,
    Paired,
    Prompt,
    Record,
    Scored,
    Text,
    TokenIds,
    Unpaired,
)

_ENDINGS = (".jsonl", ".ndjson")
# Other tools end lines here too; inside a JSON string the escape says the same.
_LINE_ENDS = str.maketrans({"\u2028": "\\u2028", "\u2029": "\\u2029", "\x85": "\\u0085"})


def write_records(records: Sequence[Record], path: Path, *, overwrite: bool = False) -> None:
    """Write one line for each record, in the columns that `read_records` recognizes first.

    The file appears whole or not at all: it is written beside its place and then renamed.

    Args:
        records: Records of one kind, at least one.
        path: A file that ends in .jsonl or .ndjson; missing folders are made.
        overwrite: Whether a file that exists is replaced.

    Raises:
        DataError: The file exists, has another ending, or cannot be written; or the records are
            none or of several kinds.
    """
    kinds = sorted({record.kind for record in records})
    if len(kinds) != 1:
        raise DataError(
            "a file holds records of one kind, at least one",
            where=path,
            got=kinds or "no records",
            fix="write each kind to its own file",
        )
    if path.suffix.lower() not in _ENDINGS:
        raise DataError(
            "records are written as JSON Lines",
            where=path,
            fix=f"give a name that ends in {' or '.join(_ENDINGS)}",
        )
    if path.exists() and not overwrite:
        raise DataError(
            "the file exists already",
            where=path,
            why="it may be the only copy of its records",
            fix="give another name, or allow it to be overwritten",
        )
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with beside.open("wb") as file:
                for record in records:
                    file.write(_line(record))
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"the file cannot be written ({error})",
            where=path,
            fix="give a folder you may write to",
        ) from error


def row_of_record(record: Record) -> dict[str, Any]:
    """Column name to value, as a file would hold it; the origin is not part of it."""
    row = _named("prompt", record.prompt)
    match record:
        case Paired():
            row |= _named("chosen", record.chosen) | _named("rejected", record.rejected)
        case Unpaired():
            row |= _named("completion", record.completion) | {"label": record.desirable}
        case Scored():
            values = [_value(completion) for completion in record.completions]
            has_ids = isinstance(record.prompt, TokenIds)
            row |= {"completions_ids" if has_ids else "completions": values}
            row |= {"scores": list(record.scores)}
        case Demonstration():
            row |= _named("completion", record.completion)
        case Prompt():
            pass
    if record.rendering.tools:
        row["tools"] = [dict(tool) for tool in record.rendering.tools]
    if record.rendering.chat_template_kwargs:
        row["chat_template_kwargs"] = dict(record.rendering.chat_template_kwargs)
    return row


def _line(record: Record) -> bytes:
    try:
        text = json.dumps(row_of_record(record), ensure_ascii=False)
        return text.translate(_LINE_ENDS).encode("utf-8") + b"\n"
    except (TypeError, ValueError) as error:
        raise DataError(
            f"the record holds a value that cannot be written as JSON ({error})",
            where=record.origin,
            fix="leave it out of the message or the tools",
        ) from error


def _named(column: str, text: Text) -> dict[str, Any]:
    return {f"{column}_ids" if isinstance(text, TokenIds) else column: _value(text)}


def _value(text: Text) -> Any:
    if isinstance(text, TokenIds):
        return list(text.ids)
    if isinstance(text, str):
        return text
    return [_turn(message) for message in text]


def _turn(message: Message) -> dict[str, Any]:
    return {"role": message.role, "content": message.content, **message.extra}
