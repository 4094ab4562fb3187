"""List every setting of a command: key, default, choices and meaning."""

import inspect
import textwrap
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from veritune.commands.display import Display
from veritune.config import Config
from veritune.findings import Kind, in_yaml, part_of

_WIDTH = 100


def show_settings(kind: type[Config], display: Display) -> None:
    """Key, default and choices on one line, the meaning below it."""
    width = min(display.console.width, _WIDTH)
    for head, meaning in _entries(kind, "", {}):
        display.note(head)
        if meaning:
            indent = " " * 4
            display.note(
                textwrap.fill(meaning, width, initial_indent=indent, subsequent_indent=indent)
            )


def _entries(kind: Kind, prefix: str, seen: dict[Kind, str]) -> Iterator[tuple[str, str]]:
    """Head line and meaning of every setting; the keys of a part that occurs twice come once."""
    for name, field in kind.model_fields.items():
        key = f"{prefix}{name}"
        part = part_of(kind, name)
        default = "required" if field.is_required() else _default_in_words(field)
        choices = _choices(field.annotation)
        head = f"{key}  ({default}{f'; one of {choices}' if choices else ''})"
        meaning = " ".join((field.description or _summary(part)).split())
        if part is None:
            yield head, meaning
        elif part in seen:
            yield head, f"{meaning} Its keys are those of {seen[part]}."
        else:
            seen[part] = key
            yield head, meaning
            yield from _entries(part, f"{key}.", seen)


def _default_in_words(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    return "its keys follow" if isinstance(value, Config) else f"default {in_yaml(value)}"


def _choices(annotation: Any) -> str:
    if get_origin(annotation) is not Literal:
        return ""
    return ", ".join(str(choice) for choice in get_args(annotation))


def _summary(part: Kind | None) -> str:
    return "" if part is None else (inspect.getdoc(part) or "").partition("\n")[0]
