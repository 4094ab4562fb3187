"""The commands of the README are run, and say what it shows.

A block is run where a comment names it:

    <!-- run: NAME -->
    ```console
    $ veritune check pairs.jsonl
    kind  paired
    ```

Blocks run in the order of the README, in one folder. Lines without `$` are output: each must occur,
in this order, with spaces as they come. "…" stands for anything.
"""

import re
import shlex
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest

from veritune.commands.main import main

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"<!-- run: (?P<name>[\w-]+) -->\s*```console\n(?P<body>.*?)```", re.DOTALL)


class Step(NamedTuple):
    """A command and what it is said to print."""

    words: list[str]
    shown: list[str]


def steps_of(body: str) -> list[Step]:
    steps: list[Step] = []
    for line in body.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            steps.append(Step(shlex.split(line[2:], comments=True), []))
        elif line.strip():
            steps[-1].shown.append(line)
    return steps


def occurs(line: str, out: str) -> re.Match[str] | None:
    """Where a shown line stands in the output, whatever the spaces."""
    words = [".*?".join(re.escape(piece) for piece in word.split("…")) for word in line.split()]
    return re.search(r"[ \n]+".join(words), out)


def assert_shown(shown: list[str], out: str) -> None:
    for line in shown:
        found = occurs(line, out)
        assert found is not None, f"{line!r} is not in what is left of the output:\n{out}"
        out = out[found.end() :]


def test_the_commands_of_the_readme_do_what_it_says(tmp_path, monkeypatch, capsys):
    if not README.is_file():
        pytest.skip("there is no README.md yet")
    blocks = BLOCK.findall(README.read_text(encoding="utf-8"))
    if not blocks:
        pytest.skip("no block of README.md is marked with <!-- run: NAME -->")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    for name, body in blocks:
        for words, shown in steps_of(body):
            assert words[0] == "veritune", f"{name}: only veritune is run, not {words[0]}"
            monkeypatch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as left:
                main()
            out, err = capsys.readouterr()
            assert not left.value.code, f"{name}: {' '.join(words)}\n{out}\n{err}"
            assert_shown(shown, out)


def test_a_line_that_the_output_does_not_have_is_found():
    assert_shown(["kind paired", "… tokens"], "kind    paired\n 3 tokens\n")
    for shown in (["kind scored"], ["3 tokens", "kind paired"]):
        with pytest.raises(AssertionError, match="is not in what is left"):
            assert_shown(shown, "kind    paired\n 3 tokens\n")


def test_a_block_is_taken_apart_into_commands_and_their_output():
    body = "$ veritune check a.jsonl \\\n    model=x  # a comment\nkind paired\n\n$ veritune lab\n"
    assert steps_of(body) == [
        Step(["veritune", "check", "a.jsonl", "model=x"], ["kind paired"]),
        Step(["veritune", "lab"], []),
    ]
