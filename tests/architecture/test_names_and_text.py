"""Names that say something, and text that speaks of the project alone."""

import re
from pathlib import Path

import pytest

import veritune

ROOT = Path(veritune.__file__).parent
REPOSITORY = Path(__file__).parents[2]

EMPTY_NAMES = {"utils", "util", "helpers", "helper", "misc", "common", "manager", "handler"}
SKIPPED_FOLDERS = {".git", "build", "dist", "runs", "__pycache__"}
SKIPPED_ENDINGS = ("_cache", ".egg-info")
TEXT_ENDINGS = {
    ".py",
    ".md",
    ".toml",
    ".txt",
    ".yaml",
    ".yml",
    ".cfg",
    ".cff",
    ".html",
    ".jinja",
    "",
}

# Written in pieces, so that this file is not among its own findings.
FORBIDDEN = {
    "an absolute path of a machine": r"(?<![\w.])/" + r"(work|root|home|Users|mnt|tmp)/\w",
    "a host of a package registry": "|".join(
        re.escape("".join(pieces))
        for pieces in (
            ("pypi.", "org"),
            ("python", "hosted"),
            ("index", "-url"),
            ("arti", "factory"),
        )
    ),
    "a private address": r"\b(10|192\.168|127)\." + r"\d+\.\d+\.?\d*:\d+",
}


def text_files() -> list[Path]:
    """Every text file of the repository that is not made by a tool."""
    found = []
    for path in REPOSITORY.rglob("*"):
        parts = path.relative_to(REPOSITORY).parts
        made = any(
            p in SKIPPED_FOLDERS or p.startswith(".venv") or p.endswith(SKIPPED_ENDINGS)
            for p in parts
        )
        if (
            not made
            and ".hypothesis" not in parts
            and path.is_file()
            and path.suffix in TEXT_ENDINGS
        ):
            found.append(path)
    return sorted(found)


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda f: str(f.relative_to(ROOT)))
def test_no_module_has_a_name_that_says_nothing(file):
    assert EMPTY_NAMES.isdisjoint(file.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("what", FORBIDDEN)
def test_the_text_of_the_repository_names_no_place_outside_of_it(what):
    pattern = re.compile(FORBIDDEN[what])
    files = text_files()
    assert REPOSITORY / "pyproject.toml" in files
    found = [
        f"{file.relative_to(REPOSITORY)}, line {number}: {line.strip()}"
        for file in files
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.search(line)
    ]
    assert found == [], what


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("an absolute path of a machine", "open('/" + "home/me/file')"),
        ("a host of a package registry", "--extra-index-" + "url=x"),
        ("a private address", "http://10." + "0.0.1:8080"),
    ],
)
def test_such_text_is_found(what, text):
    assert re.search(FORBIDDEN[what], text)
