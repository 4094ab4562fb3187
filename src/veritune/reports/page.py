"""One self-contained HTML file from blocks of text, figures and tables."""

import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from veritune import __version__
from veritune.reports.numbers import format_number


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str
    kind: Literal["text", "number", "code", "name"] = "text"
    """`number` is aligned right; `code` keeps every space and line break; a `name` from code may
    break after an underscore."""

    share: float | None = None
    """A part of the whole, from 0 to 1, drawn as a bar behind the text."""

    @property
    def percent(self) -> str:
        """The share as a length in the page's style, within 0 and 100%."""
        share = self.share if self.share is not None and self.share > 0 else 0.0
        return f"{100 * min(share, 1.0):.1f}%"


Row: TypeAlias = tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """Rows under headers; every row has a cell for each header."""

    headers: tuple[str, ...]
    rows: tuple[Row, ...]
    caption: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            assert len(row) == len(self.headers), "a row has a cell for each header"

    def is_number(self, column: int) -> bool:
        """Whether the column holds numbers, so that its header is aligned with them."""
        return bool(self.rows) and all(row[column].kind == "number" for row in self.rows)


@dataclass(frozen=True)
class Section:
    """A part of a page: paragraphs, then figures, then tables."""

    title: str
    paragraphs: tuple[str, ...] = ()
    figures: tuple[Markup, ...] = ()
    """From `figures.py`, which escapes what it draws."""

    tables: tuple[Table, ...] = ()
    folded: bool = False
    """Whether only the title shows until the reader opens it."""


@dataclass(frozen=True)
class Page:
    """Everything that a page says."""

    title: str
    lead: str
    """What this is, in a sentence or two."""

    facts: tuple[tuple[str, str], ...] = ()
    """Name and value of what the reader looks for first."""

    findings: tuple[str, ...] = ()
    """What the numbers say, a sentence each."""

    warnings: tuple[str, ...] = ()
    """What is missing or could not be read, a sentence each."""

    sections: tuple[Section, ...] = field(default=())


def number(value: float, digits: int = 3) -> Cell:
    """A cell with a number."""
    return Cell(format_number(value, digits), "number")


def share(value: float) -> Cell:
    """A cell with a probability and its bar."""
    return Cell(format_number(value, 3), "number", share=value)


def render(page: Page) -> str:
    """The page as HTML."""
    return _template().render(page=page, version=__version__)


def write_page(page: Page, file: Path) -> Path:
    """Write the page, whole or not at all, and return its file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(file.name + ".unfinished")
    # Text from data can hold lone surrogates, which UTF-8 has no form for; they become "?".
    unfinished.write_bytes(render(page).encode("utf-8", errors="replace"))
    os.replace(unfinished, file)
    return file


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("veritune.reports", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("template.html")
