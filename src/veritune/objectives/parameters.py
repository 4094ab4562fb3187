"""What a loss function says of itself: its hyper-parameters and its docstring, read as data."""

import inspect
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from veritune.ranges import Finite

_WORDS = {"gt": "greater than", "ge": "at least", "lt": "less than", "le": "at most"}
_ARGUMENT = re.compile(r"^    (\w+): (.*)$")


@dataclass(frozen=True)
class Parameter:
    """One hyper-parameter of an objective."""

    name: str
    """As in the signature, which is the symbol of the paper."""

    annotation: Any
    """The annotated type from `ranges.py` that pydantic checks."""

    default: float | None
    """Value if none is given; None if it must be given."""

    range: str
    """The annotation in words: "greater than 0 and less than 1"."""

    meaning: str
    """What the docstring says of it, on one line."""

    @property
    def is_required(self) -> bool:
        """Whether there is no default."""
        return self.default is None


def parameters_of(loss: Callable[..., Any]) -> dict[str, Parameter]:
    """The keyword-only arguments of a loss, in the order of its signature."""
    hints = typing.get_type_hints(loss, include_extras=True)
    meanings = argument_meanings(loss)
    return {
        name: Parameter(
            name=name,
            annotation=hints.get(name, Finite),
            default=None if argument.default is argument.empty else float(argument.default),
            range=range_in_words(hints.get(name, Finite)),
            meaning=meanings.get(name, ""),
        )
        for name, argument in inspect.signature(loss).parameters.items()
        if argument.kind is argument.KEYWORD_ONLY
    }


def range_in_words(annotation: Any) -> str:
    """The bounds of an annotated number: "greater than 0 and less than 1"; "any" without bounds."""
    fields = [m for m in getattr(annotation, "__metadata__", ()) if isinstance(m, FieldInfo)]
    bounds = [
        f"{words} {getattr(bound, key):g}"
        for field in fields
        for bound in field.metadata
        for key, words in _WORDS.items()
        if hasattr(bound, key)
    ]
    return " and ".join(bounds) or "any"


def argument_meanings(function: Callable[..., Any]) -> dict[str, str]:
    """The entries of a docstring's `Args:` section, each on one line."""
    meanings: dict[str, list[str]] = {}
    entry: list[str] = []
    for line in _section(function, "Args"):
        match = _ARGUMENT.match(line)
        if match:
            entry = meanings.setdefault(match[1], [])
            entry.append(match[2])
        else:
            entry.append(line.strip())
    return {name: " ".join(lines).strip() for name, lines in meanings.items()}


def equation(function: Callable[..., Any]) -> str:
    """The first indented block of a docstring, which is the formula; without its indentation."""
    block: list[str] = []
    for line in _lines(function):
        if line.endswith(":") and not line.startswith(" "):
            break
        if line.startswith("    "):
            block.append(line.removeprefix("    "))
        elif block and line:
            break
    return "\n".join(block).strip()


def summary(function: Callable[..., Any]) -> str:
    """The first sentence of a docstring."""
    return _lines(function)[0]


def source(function: Callable[..., Any]) -> str:
    """The `Source:` section of a docstring, on one line."""
    return " ".join(line.strip() for line in _section(function, "Source")).strip()


def _lines(function: Callable[..., Any]) -> list[str]:
    documentation = inspect.getdoc(function)
    assert documentation, f"{function.__name__} has a docstring"
    return documentation.splitlines()


def _section(function: Callable[..., Any], title: str) -> list[str]:
    lines = _lines(function)
    if f"{title}:" not in lines:
        return []
    below = lines[lines.index(f"{title}:") + 1 :]
    end = next((i for i, line in enumerate(below) if line and not line.startswith(" ")), len(below))
    return below[:end]
