"""YAML file and dotted overrides to frozen settings, and back.

A command's settings are one pydantic model composed of smaller ones, each declared beside what it
configures. Pydantic checks types and ranges; `findings.py` puts what it finds into words.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from veritune.errors import SettingsError
from veritune.findings import COMMAND_LINE, part_of, settings_error


class Config(BaseModel):
    """Frozen settings; unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True
    )

    SHORTHAND: ClassVar[str | None] = None
    """The field that a plain value stands for: with "name", `objective: dpo` is
    `objective: {name: dpo}`."""

    @model_validator(mode="before")
    @classmethod
    def _expand_shorthand(cls, value: Any) -> Any:
        if cls.SHORTHAND is not None and isinstance(value, str | list):
            return {cls.SHORTHAND: value}
        return value


ConfigT = TypeVar("ConfigT", bound=Config)


def load_config(kind: type[ConfigT], file: Path | None, overrides: Sequence[str] = ()) -> ConfigT:
    """Settings from a YAML file, with `key=value` overrides on top.

    An override replaces what the file holds under its key; `a.b=1` reaches into `a`, whether it
    stands before or behind `a=…`. Where `a` holds a plain value (as in `objective: dpo`), that
    value is kept as the part's shorthand, so `objective.beta=0.3` adds to it.

    Args:
        kind: The settings to build.
        file: YAML file, or None for overrides alone.
        overrides: Words of the form `key=value`; a value is read as YAML.

    Raises:
        SettingsError: The file is not a mapping, a key is unknown, or a value is out of range.
    """
    values: dict[str, Any] = {} if file is None else read_yaml_mapping(file)
    parsed = [_parse_override(word) for word in overrides]
    # Outer keys first, so that `objective.beta=0.1 objective=dpo` is the same in either order.
    for key, value in sorted(parsed, key=lambda item: item[0].count(".")):
        _put(kind, values, key, value)
    where = COMMAND_LINE if file is None else str(file)
    return build_config(kind, values, where=where, overridden=[key for key, _ in parsed])


def build_config(
    kind: type[ConfigT],
    values: Mapping[str, Any],
    *,
    where: str,
    overridden: Sequence[str] = (),
) -> ConfigT:
    """Settings from a mapping.

    Args:
        kind: The settings to build.
        values: Key to value; what is left out has its default.
        where: What messages call the place that the values come from.
        overridden: Dotted keys whose values come from the command line instead.

    Raises:
        SettingsError: A key is unknown, or a value has the wrong type or is out of its range. All
            findings are in the message.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise settings_error(kind, error, where, overridden) from error


def read_yaml_mapping(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        SettingsError: The file is missing, is not YAML, holds a key twice, or is no mapping.
    """
    try:
        loaded = yaml.load(file.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except FileNotFoundError as error:
        raise SettingsError(
            "the settings file does not exist",
            where=file,
            fix="check the path; settings without a file are given as key=value",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"the settings file cannot be read ({error})", where=file, fix="give a UTF-8 YAML file"
        ) from error
    except _RepeatedKeyError as error:
        raise SettingsError(
            str(error),
            where=f"{file}, line {error.line}",
            why="only one of the values could be used, and which one is not said",
            fix="leave the key once",
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        raise SettingsError(
            f"not valid YAML ({getattr(error, 'problem', None) or error})",
            where=f"{file}{line}",
            fix="mend the line; indentation is by spaces, and a key ends in a colon and a space",
        ) from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise SettingsError(
            "the settings file does not hold `key: value` lines",
            where=file,
            got=loaded,
            fix="start from the example in the README",
        )
    return loaded


def dump_config(config: Config) -> str:
    """The complete settings as YAML, defaults included, in the order of declaration."""
    values = config.model_dump(mode="json")
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    if any(character in text for character in "\x85\u2028\u2029"):
        # PyYAML writes these as they are, and reads them as line ends.
        text = yaml.dump(values, Dumper=_Dumper, sort_keys=False)
    return text


def differing_settings(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted key to (old, new) for every setting in which two configurations differ."""
    before, after = (_flatten(config.model_dump(mode="json")) for config in (old, new))
    keys = [*before, *(key for key in after if key not in before)]
    return {
        key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)
    }


class _RepeatedKeyError(yaml.YAMLError):
    def __init__(self, key: object, line: int) -> None:
        super().__init__(f"the key {key!r} is given twice")
        self.line = line


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice and reads 1e-5 as a number (YAML 1.1 reads text)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict):
                continue
            if key in seen:
                raise _RepeatedKeyError(key, key_node.start_mark.line + 1)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Quotes the text "1e-5", which the loader above would take for a number."""


_EXPONENT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
for _kind in (_UniqueKeyLoader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789."))


def _parse_override(word: str) -> tuple[str, Any]:
    key, equals, text = word.partition("=")
    key = key.removeprefix("--").strip()
    if not equals or not all(part.strip() for part in key.split(".")):
        raise SettingsError(
            "an override is not of the form key=value",
            where=COMMAND_LINE,
            got=word,
            fix="write for example train.learning_rate=1e-6; a settings file comes first, and once",
        )
    try:
        return key, yaml.load(text, Loader=_UniqueKeyLoader)
    # A ValueError is a date that is none (2024-99-99), which YAML takes for a date all the same.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SettingsError(
            "the value of an override is not valid YAML",
            where=f"{COMMAND_LINE}, {key}",
            got=text,
            fix=f"put the value in quotes, which the shell must not remove: {key}='\"…\"'",
        ) from error


def _put(kind: type[Config], values: dict[str, Any], key: str, value: Any) -> None:
    """Set the value of a dotted key, making the parts above it where they are missing."""
    *parts, last = key.split(".")
    place = values
    part: type[BaseModel] | None = kind
    for depth, name in enumerate(parts, start=1):
        part = part_of(part, name)
        shorthand = getattr(part, "SHORTHAND", None)
        below = place.get(name)
        if below is not None and not isinstance(below, dict) and shorthand is None:
            outer = ".".join(parts[:depth])
            raise SettingsError(
                f"{outer} holds a plain value, so {key} has no place in it",
                where=COMMAND_LINE,
                got=below,
                fix=f"set {outer} itself" if part is None else f"write {outer} as a mapping",
            )
        if below is None:
            below = {}
        place[name] = below = dict(below) if isinstance(below, dict) else {shorthand: below}
        place = below
    place[last] = value


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, below in value.items():
        flat |= _flatten(below, f"{prefix}.{key}" if prefix else str(key))
    return flat
