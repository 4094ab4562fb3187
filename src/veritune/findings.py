"""What pydantic finds wrong with settings, in words: where, what, the value, and the way out."""

import re
import typing
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from veritune.errors import SettingsError, VerituneError, join_problems, nearest_name, shorten

COMMAND_LINE = "command line"
"""What messages call the place that overrides come from."""

Kind: TypeAlias = type[BaseModel]
"""A class of settings."""

_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "too_short": "a list that is not empty",
}
"""Pydantic's name of a wrong value to what was expected, where its own words say it worse."""


def settings_error(
    kind: Kind, error: ValidationError, where: str, overridden: Sequence[str] = ()
) -> SettingsError:
    """One error for all that is wrong with settings.

    Args:
        kind: The settings that could not be built.
        error: What pydantic found.
        where: What the message calls the place that the values come from.
        overridden: Dotted keys whose values come from the command line instead.
    """
    grouped: dict[str, list[ErrorDetails]] = {}
    for detail in error.errors():
        # A value that may have one of several types has a detail for each of them.
        grouped.setdefault(_dotted_key(kind, detail["loc"]), []).append(detail)
    findings = [
        _finding(kind, key, details, COMMAND_LINE if _overlaps(key, overridden) else where)
        for key, details in grouped.items()
        # What is wrong inside a value makes pydantic find fault with the whole of it too.
        if not any(other.startswith(f"{key}.") for other in grouped)
    ]
    if len(findings) == 1:
        return findings[0]
    return SettingsError(f"{len(findings)} settings are wrong\n\n{join_problems(findings)}")


def class_of_part(annotation: Any) -> Kind | None:
    """The class of settings that a field's type is, or allows beside null; None for a value."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def part_of(kind: Kind | None, name: str) -> Kind | None:
    """The class of the part with this name, if the settings have one."""
    field = None if kind is None else kind.model_fields.get(name)
    return None if field is None else class_of_part(field.annotation)


def in_yaml(value: Any) -> str:
    """A value as one would write it into a settings file, on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _dotted_key(kind: Kind, path: Sequence[int | str]) -> str:
    """The key of a finding, without the type names that pydantic adds behind it."""
    parts: list[str] = []
    inner: Kind | None = kind
    annotation: Any = None
    for step in path:
        if inner is not None:
            field = inner.model_fields.get(str(step))
            annotation = None if field is None else field.annotation
            inner = part_of(inner, str(step))
        elif isinstance(step, str) and getattr(annotation, "__origin__", None) is not dict:
            continue
        else:
            inner, annotation = _class_of_items(annotation), None
        parts.append(str(step))
    return ".".join(parts)


def _class_of_items(annotation: Any) -> Kind | None:
    """The class of settings that a list holds, if it holds any."""
    for argument in typing.get_args(annotation):
        found = class_of_part(argument) or _class_of_items(argument)
        if found is not None:
            return found
    return None


def _overlaps(key: str, others: Sequence[str]) -> bool:
    """Whether a key is one of the others, below it, or above it."""
    return any(f"{key}.".startswith(f"{o}.") or o.startswith(f"{key}.") for o in others)


def _finding(kind: Kind, key: str, details: Sequence[ErrorDetails], where: str) -> SettingsError:
    detail = details[0]
    match detail["type"]:
        case "extra_forbidden":
            fix = _known_key(kind, key)
            return SettingsError(
                f"unknown setting {key}", where=where, got=detail["input"], fix=fix
            )
        case "missing":
            fix = f"add {key}: … to the file, or {key}=… on the command line"
            return SettingsError(f"the setting {key} is missing", where=where, fix=fix)
        case "invalid_key":
            return SettingsError(
                f"the key {key} is not text", where=where, fix="put the key in quotes"
            )
        case "value_error":
            return _finding_of_a_check(key, detail["ctx"]["error"], where)
    expected = " or ".join(dict.fromkeys(_expected(kind, key, each) for each in details))
    return SettingsError(
        f"{key} must be {expected}, got {shorten(detail['input'])}",
        where=where,
        fix=_way_out(kind, key, detail),
    )


def _finding_of_a_check(key: str, found: Exception, where: str) -> SettingsError:
    """What a validator raised; an error of this package brings its own value and way out."""
    if not isinstance(found, VerituneError):
        found = SettingsError(str(found))
    what = f"{key}: {found.what}" if key else found.what
    return SettingsError(what, where=where, got=found.got, why=found.why, fix=found.fix)


def _expected(kind: Kind, key: str, detail: ErrorDetails) -> str:
    if detail["type"] in ("model_type", "model_attributes_type"):
        part = _part_at(kind, key.split("."))
        assert part is not None, "only a part can fail to be a mapping of settings"
        shorthand = getattr(part, "SHORTHAND", None)
        plain = "" if shorthand is None else f"text, which stands for {key}.{shorthand}, or "
        return f"{plain}a mapping, as in {key}={{{next(iter(part.model_fields))}: …}}"
    message = detail["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return _EXPECTED.get(detail["type"], message)


def _way_out(kind: Kind, key: str, detail: ErrorDetails) -> str:
    received = detail["input"]
    if detail["type"] == "literal_error" and isinstance(received, str):
        near = nearest_name(received, re.findall(r"'([^']*)'", detail["ctx"]["expected"]))
        if near is not None:
            return f"did you mean {near}?"
    if detail["type"] == "string_type" and not isinstance(received, dict | list | None):
        return f"put the value in quotes; on the command line: {key}='\"…\"'"
    *parts, last = key.split(".")
    inner = _part_at(kind, parts)
    field = None if inner is None else inner.model_fields.get(last)
    if field is None or field.is_required():
        return "give another value"
    default = field.get_default(call_default_factory=True)
    shown = "" if isinstance(default, BaseModel) else f" (default: {in_yaml(default)})"
    return f"give another value, or leave {key} out{shown}"


def _known_key(kind: Kind, key: str) -> str:
    """What an unknown key was meant to be, or which keys there are."""
    *parts, last = key.split(".")
    elsewhere = [known for known in _all_keys(kind) if known.endswith(f".{last}")]
    if not parts and elsewhere:
        return f"did you mean {elsewhere[0]}?"
    inner = _part_at(kind, parts)
    known = [] if inner is None else list(inner.model_fields)
    near = nearest_name(last, known)
    if near is not None:
        return f"did you mean {'.'.join([*parts, near])}?"
    return f"use one of {', '.join(known)}" if known else "leave it out; there is nothing to set"


def _part_at(kind: Kind, parts: Sequence[str]) -> Kind | None:
    inner: Kind | None = kind
    for name in parts:
        inner = part_of(inner, name)
    return inner


def _all_keys(kind: Kind, prefix: str = "") -> Iterator[str]:
    for name in kind.model_fields:
        yield prefix + name
        below = part_of(kind, name)
        if below is not None:
            yield from _all_keys(below, f"{prefix}{name}.")
