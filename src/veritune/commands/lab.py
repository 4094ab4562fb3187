"""Check the theorems here and now: a table, a page and a file of results."""

import os
import time
from pathlib import Path
from typing import ClassVar

from veritune.bridge import EVERY_THEOREM
from veritune.commands.display import Display, duration
from veritune.config import Config
from veritune.errors import RunFolderError
from veritune.laboratory.table import run_all, select
from veritune.laboratory.theorem import Result
from veritune.ranges import PositiveInt
from veritune.reports.laboratory import laboratory_page, short_results_table, write_results
from veritune.reports.tables import terminal_table

_RESULTS, _PAGE = "theorems.json", "report.html"


class LabConfig(Config):
    """Settings of `veritune lab`."""

    SHORTHAND: ClassVar[str | None] = "method"

    method: str | None = None
    """Check only the theorems about this objective or algorithm, or held against it, or the one
    theorem of this name; null checks all."""

    output: str = "lab-run"
    """Folder of the page and of the results."""

    overwrite: bool = False
    """Replace the page and the results of an earlier check in the output folder."""

    processes: PositiveInt | None = None
    """Theorems checked at a time, each in one thread; null is the number of cores."""


def lab(config: LabConfig, display: Display) -> list[Result]:
    """Check theorems and write what was found.

    Returns:
        A result for each theorem, in the order of the catalog.

    Raises:
        SettingsError: No theorem is about the method.
        RunFolderError: The output folder holds earlier results.
    """
    chosen = select(EVERY_THEOREM, config.method)
    folder = Path(config.output).expanduser()
    _check_output(folder, config.overwrite)
    began = time.monotonic()
    found: dict[str, Result] = {}
    num_processes = min(config.processes or os.cpu_count() or 1, len(chosen))
    with display.counting("theorems") as update:
        for result in run_all(chosen, num_processes=num_processes):
            found[result.theorem.name] = result
            update(len(found), len(chosen))
    results = [found[theorem.name] for theorem in chosen]
    seconds = time.monotonic() - began
    folder.mkdir(parents=True, exist_ok=True)
    display.console.print(terminal_table(short_results_table(results)))
    num_held = sum(result.holds for result in results)
    display.note(
        f"{num_held} of {len(results)} theorems hold, in {duration(seconds)}\n"
        f"results {write_results(results, folder / _RESULTS)}\n"
        f"report  {laboratory_page(results, seconds, folder / _PAGE)}"
    )
    return results


def _check_output(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise RunFolderError("the output is a file", where="output", got=str(folder))
    holds_others = folder.is_dir() and any(folder.iterdir()) and not (folder / _RESULTS).is_file()
    if holds_others:
        raise RunFolderError(
            "the output folder holds something else",
            where="output",
            got=str(folder),
            fix="choose a new or an empty folder",
        )
    if (folder / _RESULTS).is_file() and not overwrite:
        raise RunFolderError(
            "the output folder holds the results of an earlier check",
            where="output",
            got=str(folder),
            fix="add overwrite=true, or choose another output",
        )
