"""List the objectives, or print the card of one."""

from itertools import groupby

from rich.table import Table

from veritune.commands.display import Display
from veritune.objectives.catalog import OverviewRow, describe, find_card, overview

_WIDTH = 100


def show_objectives(name: str | None, display: Display) -> None:
    """The catalog by kind of data, or one card.

    Raises:
        SettingsError: There is no objective of this name.
    """
    if name is not None:
        display.note(describe(find_card(name)))
        return
    rows, width = overview(), min(display.console.width, _WIDTH)
    for kind, group in groupby(rows, key=lambda row: row.kind):
        display.note(f"{kind} records")
        table = Table(box=None, pad_edge=False, show_header=False, width=width)
        table.add_column(width=2 + max(len(row.name) for row in rows))
        table.add_column(ratio=1)
        table.add_column(width=max(len(_short_source(row.source)) for row in rows))
        for row in group:
            table.add_row(f"  {row.name}", _title(row), _short_source(row.source))
        display.console.print(table)
    display.note("\nOne card in full, with the formula: veritune objectives NAME")


def _title(row: OverviewRow) -> str:
    return row.title if row.needs_reference else f"{row.title} (no reference)"


def _short_source(source: str) -> str:
    """The paper alone: `arXiv:2305.18290, eq. 7` is `arXiv:2305.18290`."""
    return source.replace(";", ",").partition(",")[0]
