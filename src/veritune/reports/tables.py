"""Tables for the terminal, with the content of those on the pages."""

import rich.table
from rich.text import Text

from veritune.reports.demo import DemoResult, short_table
from veritune.reports.page import Table


def terminal_table(table: Table) -> rich.table.Table:
    """A table for `rich` to print; square brackets in the data are no markup."""
    drawn = rich.table.Table(caption=Text(table.caption), caption_justify="left")
    for column, header in enumerate(table.headers):
        if table.is_number(column):
            drawn.add_column(Text(header), justify="right", no_wrap=True)
        else:
            drawn.add_column(Text(header), overflow="fold")
    for row in table.rows:
        drawn.add_row(*(Text(cell.text) for cell in row))
    return drawn


def demo_table(result: DemoResult) -> rich.table.Table:
    """One row for each objective of the demo."""
    return terminal_table(short_table(result))
