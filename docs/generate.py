"""Write the generated parts of README.md: the tree and the table of objectives.

Each stands between `<!-- generated: NAME -->` and `<!-- end -->`. A test fails when one is stale.
"""

import ast
import re
from collections.abc import Callable
from pathlib import Path

from veritune.objectives.catalog import CATALOG

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "veritune"
README = ROOT / "README.md"


def first_line(file: Path) -> str:
    """The first sentence of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.split("\n\n")[0].split()).split(". ")[0].rstrip(".")


def route() -> list[tuple[str, str]]:
    """Name and meaning of every part, in the order of the package's docstring."""
    docstring = ast.get_docstring(ast.parse((PACKAGE / "__init__.py").read_text())) or ""
    return re.findall(r"^ {4}(\w+) {2,}(.+)$", docstring, flags=re.MULTILINE)


def tree() -> str:
    """One line per part, and below it one per file."""
    lines = ["```"]
    for name, meaning in route():
        folder = PACKAGE / name
        lines.append(f"{name:<22}{meaning.upper() if folder.is_dir() else meaning}")
        if folder.is_dir():
            files = sorted(f for f in folder.rglob("*.py") if f.name != "__init__.py")
            for file in files:
                path = file.relative_to(folder).as_posix()
                lines.append(f"  {path:<28}{first_line(file)}")
    return "\n".join([*lines, "```"])


def objectives() -> str:
    """A row per objective, by kind of data."""
    lines = ["| objective | stands for | data | reference | converges to | source |"]
    lines.append("|---|---|---|---|---|---|")
    for card in CATALOG.values():
        reference = "needed" if card.needs_reference else "not read"
        source = re.sub(r"arXiv:(\d+\.\d+)", r"[arXiv:\1](https://arxiv.org/abs/\1)", card.source)
        row = (f"`{card.name}`", card.title, card.kind, reference, card.target, source)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return "\n".join(lines)


PARTS: dict[str, Callable[[], str]] = {"tree": tree, "objectives": objectives}


def generated(text: str) -> str:
    """The text with every generated part made anew."""
    for name, make in PARTS.items():
        pattern = rf"(<!-- generated: {name} -->\n).*?(\n<!-- end -->)"
        part = make()
        text, count = re.subn(
            pattern, lambda m, part=part: m[1] + part + m[2], text, flags=re.DOTALL
        )
        assert count == 1, f"README.md holds the part {name} once"
    return text


if __name__ == "__main__":
    README.write_text(generated(README.read_text(encoding="utf-8")), encoding="utf-8")
