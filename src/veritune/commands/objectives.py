"""List the objectives, or print the card of one."""

from rich.table import Table

from veritune.commands.display import Display
from veritune.objectives.catalog import describe, find_card, overview


def show_objectives(name: str | None, display: Display) -> None:
    """The catalog as a table, or one card.

    Raises:
        SettingsError: There is no objective of this name.
    """
    if name is not None:
        display.note(describe(find_card(name)))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("objective", "what it is", "data", "reference", "source"):
        table.add_column(heading, overflow="fold")
    for row in overview():
        needs = "needed" if row.needs_reference else "not read"
        table.add_row(row.name, row.title, row.kind, needs, row.source)
    display.console.print(table)
    display.note("\nOne card in full: veritune objectives NAME")
