"""Write what is generated: parts of README.md, docs/objectives.md and docs/theorems.md.

A part of README.md stands between `<!-- generated: NAME -->` and `<!-- end -->`; the other two are
generated whole. A test fails when one is stale.
"""

import ast
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from veritune.bridge import EVERY_THEOREM
from veritune.laboratory.theorem import CONTROL_MARGIN
from veritune.objectives.catalog import CATALOG, hyperparameters
from veritune.objectives.parameters import equation, summary
from veritune.objectives.parameters import source as source_of

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "veritune"
RESULTS = ROOT / "benchmarks" / "results"
sys.path.append(str(ROOT / "benchmarks"))


def first_line(file: Path) -> str:
    """The first sentence of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.split("\n\n")[0].split()).split(". ")[0].rstrip(".")


def route() -> list[tuple[str, str]]:
    """Name and meaning of every part, in the order of the package's docstring."""
    docstring = ast.get_docstring(ast.parse((PACKAGE / "__init__.py").read_text())) or ""
    return re.findall(r"^ {4}(\w+) {2,}(.+)$", docstring, flags=re.MULTILINE)


def tree() -> str:
    """One line per part."""
    lines = [
        f"{name:<22}{meaning.upper() if (PACKAGE / name).is_dir() else meaning}"
        for name, meaning in route()
    ]
    return "\n".join(["```", *lines, "```"])


def tree_page() -> str:
    """docs/tree.md: one line per part, and below it one per file."""
    parts = [
        "# The tree",
        "Generated from the first line of every module by `make docs`. The tree is the route of "
        "the data; a part imports only parts above it.",
    ]
    for name, meaning in route():
        folder = PACKAGE / name
        parts.append(f"## {name}\n\n{meaning}.")
        if folder.is_dir():
            files = sorted(f for f in folder.rglob("*.py") if f.name != "__init__.py")
            lines = [f"| `{f.relative_to(folder).as_posix()}` | {first_line(f)} |" for f in files]
            parts.append("\n".join(["| file | what it holds |", "|---|---|", *lines]))
    return "\n\n".join(parts) + "\n"


def objectives() -> str:
    """A row per objective, by kind of data."""
    lines = ["| objective | stands for | data | reference | converges to | source |"]
    lines.append("|---|---|---|---|---|---|")
    for card in CATALOG.values():
        reference = "needed" if card.needs_reference else "not read"
        row = (f"`{card.name}`", card.title, card.kind, reference, card.target, linked(card.source))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return "\n".join(lines)


def linked(text: str) -> str:
    """The text with every arXiv identifier as a link."""
    return re.sub(r"arXiv:(\d+\.\d+)", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def objectives_page() -> str:
    """docs/objectives.md: every card in full."""
    parts = [
        "# Objectives",
        "Generated from the cards by `make docs`; the same as `veritune objectives NAME` prints. "
        "A loss is that of one example, in nats where nothing else is said; `policy(y)` is the "
        "log-probability of a completion, summed over its tokens, and `log_ratio(y)` that of the "
        "policy minus that of the reference.",
    ]
    for kind in dict.fromkeys(card.kind for card in CATALOG.values()):
        parts.append(f"## {kind.capitalize()}")
        for card in (card for card in CATALOG.values() if card.kind == kind):
            parts.append(f"### {card.name}\n\n{card.title.capitalize()}. {summary(card.loss)}")
            parts.append(f"```\n{equation(card.loss)}\n```")
            lines = [f"- Converges to: {card.target}."]
            lines.append(f"- Reference: {'needed' if card.needs_reference else 'not read'}.")
            lines += [
                f"- `{p.name}` ({p.range}; "
                + ("no default" if p.default is None else f"default {p.default:g}")
                + f"): {p.meaning}"
                for p in hyperparameters(card).values()
            ]
            if card.elsewhere:
                lines.append(f"- In other toolkits: {card.elsewhere}.")
            claims = [theorem.name for theorem in EVERY_THEOREM if card.name in theorem.methods]
            if claims:
                names = ", ".join(f"[{name}](theorems.md#{name})" for name in claims)
                lines.append(f"- Theorems: {names}.")
            against = [theorem.name for theorem in EVERY_THEOREM if card.name in theorem.contrasts]
            if against:
                names = ", ".join(f"[{name}](theorems.md#{name})" for name in against)
                lines.append(f"- Held against it: {names}.")
            lines.append(f"- Source: {linked(source_of(card.loss))}")
            parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def theorems_page() -> str:
    """docs/theorems.md: every claim, with the false claim that its check must reject."""
    parts = [
        "# Theorems",
        "Generated from the laboratory by `make docs`. `veritune lab` checks all of them, "
        "`veritune lab NAME` those about one objective, and both write what was measured. A claim "
        "holds when its residual is within the tolerance and the same number for the false claim "
        f"beside it is more than {CONTROL_MARGIN:g} tolerances away.",
    ]
    for theorem in EVERY_THEOREM:
        methods, contrasts = (
            ", ".join(f"`{name}`" for name in names)
            for names in (theorem.methods, theorem.contrasts)
        )
        facts = [
            f"About: {methods}.",
            *([f"Held against: {contrasts}."] if contrasts else []),
            f"Rejected beside it: {theorem.control}",
            f"Tolerance: {theorem.tolerance:g}.",
            f"Source: {linked(theorem.source)}.",
        ]
        listed = "\n".join(f"- {fact}" for fact in facts)
        parts.append(f"### {theorem.name}\n\n{theorem.claim}\n\n{listed}")
    return "\n\n".join(parts) + "\n"


def endings() -> str:
    """Where each objective ends: a row per objective, a column per kind of preferences."""
    rows = json.loads((RESULTS / "where_each_ends.json").read_text(encoding="utf-8"))["rows"]
    kinds = tuple(dict.fromkeys(row["preferences"] for row in rows))
    found = {(row["objective"], row["preferences"]): row for row in rows}
    lines = [" | ".join(["| objective", *(kind.replace("_", "-") for kind in kinds)]) + " |"]
    lines.append("|---" * (len(kinds) + 1) + "|")
    for name in dict.fromkeys(row["objective"] for row in rows):
        cells = [_ending(found[name, kind]) for kind in kinds]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _ending(row: dict[str, Any]) -> str:
    """In a few words; a claimed law that was found is marked."""
    distance = row["distance_to_claim"]
    claimed = " ✓" if distance is not None and distance < 1e-9 else ""
    if row["ending"] == "drops":
        return f"keeps {row['num_kept']} of 5{claimed}"
    if row["ending"] == "rests":
        return f"rests, {row['largest_probability']:.2f}{claimed}"
    return str(row["ending"])


def every_objective() -> str:
    """What each objective did with the same words: a table per kind of data."""
    text = json.loads((RESULTS / "every_objective.json").read_text(encoding="utf-8"))
    names = list(dict.fromkeys(row["objective"] for row in text["rows"]))
    kinds = list(dict.fromkeys(row["kind"] for row in text["rows"]))
    parts = []
    for kind in kinds:
        lines = [
            f"| {kind} | KL | approval | outside | to its own | KL, turned | approval, turned |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        of_kind = [[row for row in text["rows"] if row["objective"] == name] for name in names]
        lines += [
            _compared(rows)
            for rows in sorted(of_kind, key=lambda rows: _mean(rows, "kl_to_target", False))
            if rows[0]["kind"] == kind
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _compared(rows: list[dict[str, Any]]) -> str:
    clean = [row for row in rows if not row["flipped"]]
    stopped = "; a run stopped" if any(row["stopped"] for row in rows) else ""
    own = clean[0]["to_own_optimum"]
    cells = [
        f"`{rows[0]['objective']}`{stopped}",
        f"{_mean(rows, 'kl_to_target', False):.3f}",
        f"{_mean(rows, 'approval', False):.3f}",
        f"{_mean(rows, 'outside', False):.1%}",
        "" if own is None else f"{_mean(rows, 'to_own_optimum', False):.3f}",
        f"{_mean(rows, 'kl_to_target', True):.3f}",
        f"{_mean(rows, 'approval', True):.3f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _mean(rows: list[dict[str, Any]], key: str, flipped: bool) -> float:
    return fmean(row[key] for row in rows if bool(row["flipped"]) == flipped)


def speed() -> str:
    """A step beside TRL's, where a goal was set for the case."""
    from step.document import GOALS, PEERS, measured

    cases = json.loads((RESULTS / "preference_step_cpu.json").read_text(encoding="utf-8"))["cases"]
    lines = [
        "| records | a step | times TRL's rate | times TRL tuned | part of TRL's memory | tuned |",
        "|---|---|---|---|---|---|",
    ]
    for case in (measured(name, cases[name]) for name in GOALS):
        ratios = [f"{case.ratio(peer):.1f}" for peer in PEERS]
        memory = [f"{case.memory(peer):.2f}" for peer in PEERS]
        cells = [case.title, f"{case.seconds['veritune']:.2f} s", *ratios, *memory]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


PAGES: dict[str, Callable[[], str]] = {
    "docs/objectives.md": objectives_page,
    "docs/theorems.md": theorems_page,
    "docs/tree.md": tree_page,
}
PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"speed": speed, "tree": tree, "objectives": objectives},
    "docs/choosing-an-objective.md": {"endings": endings, "every objective": every_objective},
}


def generated(page: str, text: str) -> str:
    """The text of a page with every generated part made anew."""
    for name, make in PARTS[page].items():
        pattern = rf"(<!-- generated: {name} -->\n).*?(\n<!-- end -->)"
        part = make()
        text, count = re.subn(
            pattern, lambda m, part=part: m[1] + part + m[2], text, flags=re.DOTALL
        )
        assert count == 1, f"{page} holds the part {name} once"
    return text


if __name__ == "__main__":
    for page, make in PAGES.items():
        (ROOT / page).write_text(make(), encoding="utf-8")
    for page in PARTS:
        old = (ROOT / page).read_text(encoding="utf-8")
        (ROOT / page).write_text(generated(page, old), encoding="utf-8")
