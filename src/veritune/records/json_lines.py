"""JSON Lines and JSON files to rows, each with the exact line it stands on."""

import json
from collections.abc import Iterator
from io import BytesIO
from typing import Any, BinaryIO, TypeAlias

from veritune.errors import DataError, RecordError
from veritune.records.kinds import Origin

MAX_LINE_BYTES = 8 * 2**20
"""Longest line that is read, in bytes: far beyond any context window, far below memory."""

Row: TypeAlias = dict[str, Any]
"""Column name to value, as the file has it."""

Item: TypeAlias = tuple[Origin, Row] | RecordError
"""A row and where it stands, or why that row cannot be used."""

_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_DRAIN_BYTES = 2**20
_SHOWN_AROUND = 40


def iter_json_lines(
    file: BinaryIO, name: str, *, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[Item]:
    """One item for every line that is not blank; a bad line does not end the reading.

    Lines end at a line feed only, so U+2028 and its like stay inside text. A byte order mark at
    the start is passed over.

    Raises:
        DataError: The file is UTF-16.
    """
    number = 0
    while line := file.readline(max_line_bytes + 2):
        number += 1
        origin = Origin(name, number)
        if number == 1:
            _refuse_utf16(line, name)
            line = line.removeprefix(_UTF8_MARK)
        content = line.rstrip(b"\r\n")
        is_whole = line.endswith(b"\n") or len(line) < max_line_bytes + 2
        if len(content) > max_line_bytes or not is_whole:
            size = len(content) if line.endswith(b"\n") else len(line) + _skip_line(file)
            yield RecordError(
                f"the line is {size:,} bytes long, and the limit is {max_line_bytes:,}",
                where=origin,
                got=content[:200].decode("utf-8", errors="replace"),
                why="no model has so long a context; such a line is a damaged file",
                fix="write one JSON object per line, or shorten this one",
            )
        elif content.strip():
            yield _row_of_line(content, origin)


def iter_json(file: BinaryIO, name: str) -> Iterator[Item]:
    """The rows of a JSON file: a list of objects, or an object whose "data" is one.

    JSON Lines under the name .json are read as what they are. An object without "data" is one row.

    Raises:
        DataError: The file is not UTF-8, not JSON, or repeats a key.
    """
    content = file.read()
    _refuse_utf16(content, name)
    try:
        text = content.removeprefix(_UTF8_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            "the file is not UTF-8",
            where=f"{name}, line {line}",
            got=content[error.start : error.start + _SHOWN_AROUND],
            fix="save the file as UTF-8",
        ) from error
    if not text.strip():
        return
    try:
        value = loads_strictly(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            yield from iter_json_lines(BytesIO(content), name)
            return
        raise DataError(
            f"not valid JSON ({error.msg}, column {error.colno})",
            where=f"{name}, line {error.lineno}",
            got=_around(text, error.pos),
            fix="mend the line; JSON Lines have the ending .jsonl",
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"not usable JSON ({error})", where=name, fix="mend the file") from error
    if isinstance(value, dict):
        rows = value["data"] if isinstance(value.get("data"), list) else [value]
    elif isinstance(value, list):
        rows = value
    else:
        raise DataError(
            "the file holds neither a list of objects nor an object",
            where=name,
            got=value,
            fix='write [{"prompt": …, …}, …] or {"data": [{…}, …]}',
        )
    for number, row in enumerate(rows, start=1):
        origin = Origin(name, number, unit="row")
        yield (origin, row) if isinstance(row, dict) else _not_an_object(row, origin)


def loads_strictly(text: str) -> Any:
    """The JSON value of a text; a key given twice in one object is a `ValueError`."""
    return json.loads(text, object_pairs_hook=_unique_keys)


class _RepeatedKeyError(ValueError):
    pass


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        seen: set[str] = set()
        key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _RepeatedKeyError(f"the key {key!r} is given twice in one object")
    return row


def _row_of_line(content: bytes, origin: Origin) -> Item:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        start = max(0, error.start - _SHOWN_AROUND // 2)
        return RecordError(
            f"byte {error.start + 1} of the line is not UTF-8",
            where=origin,
            got=content[start : error.start + _SHOWN_AROUND // 2],
            why="the text would be read as other characters than were written",
            fix="save the file as UTF-8",
        )
    try:
        row = loads_strictly(text)
    except json.JSONDecodeError as error:
        return RecordError(
            f"not valid JSON ({error.msg}, column {error.colno})",
            where=origin,
            got=_around(text, error.pos),
            fix="write one complete JSON object per line",
        )
    except _RepeatedKeyError as error:
        return RecordError(
            str(error),
            where=origin,
            got=text,
            why="only one of the values could be used, and which one is not said",
            fix="leave each key once",
        )
    except (ValueError, RecursionError) as error:
        return RecordError(
            f"not usable JSON ({error})", where=origin, got=text, fix="mend the line"
        )
    return (origin, row) if isinstance(row, dict) else _not_an_object(row, origin)


def _not_an_object(value: Any, origin: Origin) -> RecordError:
    return RecordError(
        f"a JSON object is expected, and this is {_json_word(value)}",
        where=origin,
        got=value,
        fix='write {"prompt": …, "chosen": …, "rejected": …} or another accepted set of columns',
    )


def _json_word(value: Any) -> str:
    if value is None:
        return "null"
    words = {list: "an array", str: "a string", bool: "a truth value"}
    return words.get(type(value), "a number")


def _around(text: str, position: int) -> str:
    return text[max(0, position - _SHOWN_AROUND) : position + _SHOWN_AROUND]


def _refuse_utf16(start: bytes, name: str) -> None:
    if start.startswith(_UTF16_MARKS):
        raise DataError("the file is UTF-16", where=name, fix="save the file as UTF-8")


def _skip_line(file: BinaryIO) -> int:
    """Read to the end of the line; the number of bytes passed over, the line feed not counted."""
    skipped = 0
    while chunk := file.readline(_DRAIN_BYTES):
        skipped += len(chunk)
        if chunk.endswith(b"\n"):
            return skipped - 1
    return skipped
