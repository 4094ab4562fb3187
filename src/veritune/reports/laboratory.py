"""What the laboratory found, as a page, a table for the terminal and lines for other programs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from veritune.laboratory.theorem import CONTROL_MARGIN, Plot, Result
from veritune.provenance import versions
from veritune.reports.axes import Axis
from veritune.reports.figures import Line, line_chart
from veritune.reports.numbers import format_count, format_number, format_seconds
from veritune.reports.page import Cell, Page, Section, Table, number, write_page

_LEAD = (
    "Claims of the papers, checked here and now on problems small enough to enumerate, with the "
    "very functions that train. A claim holds when its residual is within the tolerance and the "
    "same number for a false claim beside it, the control, is more than "
    f"{CONTROL_MARGIN:g} tolerances away."
)


def laboratory_page(results: Sequence[Result], seconds: float, file: Path) -> Path:
    """Write the page and return its file."""
    not_held = [result for result in results if not result.holds]
    return write_page(
        Page(
            title="Theorems of the laboratory",
            lead=_LEAD,
            facts=(
                ("Theorems", format_count(len(results))),
                ("Hold", format_count(len(results) - len(not_held))),
                ("Time", format_seconds(seconds)),
            ),
            findings=tuple(_finding(result) for result in not_held)
            or ("Every claim holds, and every control is rejected.",),
            sections=(
                Section("Results", tables=(results_table(results),)),
                *_plots(results),
                Section("What was measured", tables=(_details(results),), folded=True),
                Section("Made with", tables=(_versions(),), folded=True),
            ),
        ),
        file,
    )


def results_table(results: Sequence[Result]) -> Table:
    """One row for each theorem."""
    return Table(
        ("theorem", "claim", "source", "residual", "tolerance", "control", "verdict"),
        tuple(
            (
                Cell(result.theorem.name, "name"),
                Cell(result.theorem.claim),
                Cell(result.theorem.source),
                number(result.evidence.residual, 2),
                number(result.theorem.tolerance, 2),
                number(result.evidence.control, 2),
                Cell(result.verdict),
            )
            for result in results
        ),
    )


def short_results_table(results: Sequence[Result]) -> Table:
    """The same without the sentences, for a terminal."""
    return Table(
        ("theorem", "residual", "tolerance", "control", "verdict", "time"),
        tuple(
            (
                Cell(result.theorem.name, "name"),
                number(result.evidence.residual, 2),
                number(result.theorem.tolerance, 2),
                number(result.evidence.control, 2),
                Cell(result.verdict),
                Cell(format_seconds(result.seconds), "number"),
            )
            for result in results
        ),
    )


def write_results(results: Sequence[Result], file: Path) -> Path:
    """Write a JSON file with a row for each theorem, for other programs, and return it."""
    rows = [_as_json(result) for result in results]
    text = json.dumps({"versions": versions(), "theorems": rows}, indent=1)
    file.write_text(text + "\n", encoding="utf-8")
    return file


def _as_json(result: Result) -> dict[str, Any]:
    theorem, evidence = result.theorem, result.evidence
    return {
        "theorem": theorem.name,
        "claim": theorem.claim,
        "control": theorem.control,
        "source": theorem.source,
        "methods": list(theorem.methods),
        "contrasts": list(theorem.contrasts),
        "residual": evidence.residual,
        "tolerance": theorem.tolerance,
        "control_residual": evidence.control,
        "verdict": result.verdict,
        "detail": evidence.detail,
        "seconds": round(result.seconds, 3),
    }


def _finding(result: Result) -> str:
    what = {
        "fails": f"its residual is {format_number(result.evidence.residual, 2)}",
        "blind": f"its control is only {format_number(result.evidence.control, 2)}",
    }[result.verdict]
    return f"{result.theorem.name} {result.verdict}: {what}. {result.theorem.claim}"


def _plots(results: Sequence[Result]) -> list[Section]:
    figures = tuple(
        _drawn(plot, result.theorem.name) for result in results for plot in result.evidence.plots
    )
    return [Section("Figures", figures=figures)] if figures else []


def _drawn(plot: Plot, theorem: str) -> Markup:
    return line_chart(
        plot.title,
        [Line(curve.name, curve.points, curve.style) for curve in plot.curves],
        x=Axis(plot.x, log=plot.log_x),
        y=Axis(plot.y, log=plot.log_y),
        notes=(f"{plot.note} ({theorem})".lstrip(),),
    )


def _details(results: Sequence[Result]) -> Table:
    return Table(
        ("theorem", "false claim beside it", "measured", "time"),
        tuple(
            (
                Cell(result.theorem.name, "name"),
                Cell(result.theorem.control),
                Cell(result.evidence.detail),
                Cell(format_seconds(result.seconds), "number"),
            )
            for result in results
        ),
    )


def _versions() -> Table:
    return Table(
        ("package", "version"),
        tuple((Cell(name, "code"), Cell(version, "code")) for name, version in versions().items()),
    )
