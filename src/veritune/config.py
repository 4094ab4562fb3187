"""YAML file and dotted overrides to frozen settings, and back.

A command's settings are one pydantic model composed of smaller ones, each declared beside what it
configures. Pydantic checks types and ranges; this module gives its findings the form that
`errors.py` describes and adds the nearest name to an unknown key.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from veritune.errors import SettingsError


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

    An override replaces what the file holds under its key; `a.b=1` reaches into `a`. Where the
    file holds a plain value under `a` (as in `objective: dpo`), that value is kept as the part's
    shorthand, so `objective.beta=0.3` adds to it.

    Args:
        kind: The settings to build.
        file: YAML file, or None for overrides alone.
        overrides: Words of the form `key=value`; a value is read as YAML.

    Raises:
        SettingsError: The file is not a mapping, a key is unknown, or a value is out of range.
    """
    values: dict[str, Any] = {} if file is None else read_yaml_mapping(file)
    for word in overrides:
        _apply_override(kind, values, word)
    return build_config(kind, values, where="settings" if file is None else str(file))


def build_config(kind: type[ConfigT], values: Mapping[str, Any], *, where: str) -> ConfigT:
    """Settings from a mapping, or one `SettingsError` that names every finding."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _settings_error(kind, error, where) from error


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
    except yaml.YAMLError as error:
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
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def differing_settings(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted key to (old, new) for every setting in which two configurations differ."""
    before, after = (_flatten(config.model_dump(mode="json")) for config in (old, new))
    keys = [*before, *(key for key in after if key not in before)]
    return {
        key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)
    }


def nearest_name(name: str, known: Sequence[str]) -> str | None:
    """The known name most like the given one, if any is like it at all."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return found[0] if found else None


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice and reads 1e-5 as a number (YAML 1.1 reads text)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if isinstance(key, list | dict):
                continue
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _add_float_resolver() -> None:
    import re

    _UniqueKeyLoader.add_implicit_resolver(  # type: ignore[no-untyped-call]
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+0123456789."),
    )


_add_float_resolver()


def _apply_override(kind: type[Config], values: dict[str, Any], word: str) -> None:
    key, equals, text = word.partition("=")
    key = key.removeprefix("--").strip()
    if not equals or not key:
        raise SettingsError(
            "an override is not of the form key=value",
            where="command line",
            got=word,
            fix="write for example train.learning_rate=1e-6; a settings file comes first, and once",
        )
    try:
        value = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise SettingsError(
            "the value of an override is not valid YAML",
            where=f"command line, {key}",
            got=text,
            fix="put the value in quotes",
        ) from error
    parts = key.split(".")
    place = values
    model: type[Config] | None = kind
    for part in parts[:-1]:
        model = _field_config(model, part)
        below = place.get(part)
        if below is None:
            below = {}
        elif not isinstance(below, dict):
            shorthand = None if model is None else model.SHORTHAND
            if shorthand is None:
                raise SettingsError(
                    f"{part} holds a plain value, so {key} has no place in it",
                    where="command line",
                    got=word,
                    fix=f"give {part} as a mapping in the file",
                )
            below = {shorthand: below}
        else:
            below = dict(below)
        place[part] = below
        place = below
    place[parts[-1]] = value


def _field_config(model: type[Config] | None, name: str) -> type[Config] | None:
    """The `Config` class of a field, if it has one."""
    if model is None or name not in model.model_fields:
        return None
    annotation = model.model_fields[name].annotation
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, Config):
            return candidate
    return None


def _settings_error(kind: type[Config], error: ValidationError, where: str) -> SettingsError:
    findings = [_finding(kind, dict(detail)) for detail in error.errors()]
    what, got, fix = findings[0]
    if len(findings) > 1:
        what = "; ".join(finding[0] for finding in findings)
        got, fix = None, "; ".join(dict.fromkeys(f[2] for f in findings if f[2])) or None
    return SettingsError(what, where=where, got=got, fix=fix)


def _finding(kind: type[Config], detail: dict[str, Any]) -> tuple[str, Any, str | None]:
    path = [str(part) for part in detail["loc"]]
    key = ".".join(path)
    received = detail.get("input")
    if detail["type"] == "extra_forbidden":
        model: type[Config] | None = kind
        for part in path[:-1]:
            model = _field_config(model, part)
        known = [] if model is None else list(model.model_fields)
        near = nearest_name(path[-1], known)
        fix = f"did you mean {'.'.join([*path[:-1], near])}" if near else None
        if fix is None and known:
            fix = f"the keys here are {', '.join(known)}"
        elif fix:
            fix += "?"
        return f"unknown setting {key}", received, fix
    if detail["type"] == "missing":
        return f"the setting {key} is missing", None, f"add {key}: … (or {key}=… as an override)"
    if detail["type"] == "value_error":
        return (
            f"{key}: {detail['ctx']['error']}" if key else str(detail["ctx"]["error"]),
            None,
            None,
        )
    message = str(detail["msg"])
    message = message.removeprefix("Input should be ").removeprefix("a valid ")
    return f"{key} must be {message}, got {received!r}", None, f"change {key}"


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, below in value.items():
        flat |= _flatten(below, f"{prefix}.{key}" if prefix else str(key))
    return flat
