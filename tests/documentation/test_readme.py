"""The commands of the README are run, and print what it shows.

A block is run where a comment names it, in the order of the README and in one folder:

    <!-- run: NAME -->
    ```console
    $ veritune check pairs.jsonl
    kind  paired
    ```

A console block holds commands, each with all that it prints, line by line. "…" in a line stands
for any text, alone for any lines. Blank lines, numbers, and spaces that align columns are not
compared. A yaml block becomes the file that its first line names; a python block is run.

The records are made here, few and in the form in which the real ones are published. Where the real
ones lie (`end_to_end/test_real_preferences.py` says where), the numbers are compared too.
"""

import json
import os
import random
import re
import shlex
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from veritune.commands.main import main

README = Path(__file__).parents[2] / "README.md"
_BESIDE = Path(__file__).parents[3] / "shared" / "data" / "preferences"
REAL = Path(os.environ.get("VERITUNE_TEST_DATA", _BESIDE)) / "pairs.jsonl"
BLOCK = re.compile(r"<!-- run: ([\w-]+) -->\s*```(\w+)\n(.*?)```", re.DOTALL)
NAMES = ["pairs", "tiny", "check", "sft", "settings", "dpo"]
# Added to the commands of a block: only numbers change, and minutes become seconds.
SMALLER = {
    "tiny": ["hidden_size=32", "num_layers=1", "num_heads=2", "vocab_size=600"],
    "sft": ["train.epochs=1"],
    "dpo": ["train.epochs=1"],
}
ALIKE = [
    (r"\b[0-9a-f]{24}\b", "#"),
    (r"(?<![a-zA-Z\d])[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?", "#"),
    (r"# [kMGT]?B\b", "# bytes"),
    (r"# (million|billion) ", "# "),
    (r"# (h # min|min # s|s)\b", "# seconds"),
]
# Memory is of the machine (free memory, threads), not of the records.
MEMORY = [(r"(\d[\d,]*\d +)?[\d.]+ [kMGT]?B\b", "# bytes")]


class Block(NamedTuple):
    """A part of the README that is run."""

    name: str
    language: str
    body: str


class Step(NamedTuple):
    """A command and what it is said to print."""

    words: list[str]
    shown: str


def blocks_of(page: str) -> list[Block]:
    return [Block(*found) for found in BLOCK.findall(page)]


def steps_of(body: str) -> list[Step]:
    _, *parts = re.split(r"^\$ ", body.replace("\\\n", " "), flags=re.MULTILINE)
    commands = [part.partition("\n") for part in parts]
    return [Step(shlex.split(command, comments=True), shown) for command, _, shown in commands]


def lines_of(text: str, replaced: list[tuple[str, str]]) -> list[str]:
    """The lines that say something, with single spaces."""
    for pattern, name in replaced:
        text = re.sub(pattern, name, text)
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def pattern_of(lines: list[str]) -> str:
    return "".join(
        "(?:.*\n)*?" if line == "…" else ".*?".join(map(re.escape, line.split("…"))) + "\n"
        for line in lines
    )


def assert_shown(shown: str, printed: str, replaced: list[tuple[str, str]] = ALIKE) -> None:
    """Every line shown is printed, every line printed is shown, in the same order."""
    lines = lines_of(shown, replaced)
    out = "".join(line + "\n" for line in lines_of(printed, replaced))
    assert lines, "nothing is shown of what is printed"
    for number, line in enumerate(lines):
        if not re.match(pattern_of(lines[: number + 1]), out):
            before = re.match(pattern_of(lines[:number]), out)
            left = out[before.end() :] if before else out
            pytest.fail(f"shown:\n{line}\nprinted there:\n{left}", pytrace=False)
    whole = re.fullmatch(pattern_of(lines), out)
    assert whole, f"what is printed goes on behind {lines[-1]!r}:\n{out}"


def write_made_records(folder: Path) -> None:
    """Pairs and labelled completions as LLaMA-Factory publishes them, a few of them too long."""
    draw = random.Random(0)
    words = ("the", "one", "cat", "dog", "sees", "hears", "finds", "small", "red", "old", "tree")

    def text(length: int) -> str:
        return " ".join(draw.choices(words, k=length)) + "."

    def turn(speaker: str, text: str) -> dict[str, str]:
        return {"from": speaker, "value": text}

    pairs: list[dict[str, Any]] = [
        {
            "conversations": [turn("human", text(1200 if i % 3 == 1 else 9))],
            "chosen": turn("gpt", text(1500 if i % 3 == 2 else 12)),
            "rejected": turn("gpt", text(15)),
        }
        for i in range(60)
    ]
    # The README shows how the first record becomes tokens; of its text, this much.
    pairs[0] = {
        "conversations": [
            turn(
                "human",
                "Hi! I'd like to create a new language game simulating the first person "
                "perspective of a character named Angela.",
            )
        ],
        "chosen": turn(
            "gpt",
            "That sounds like a fun and engaging idea! Here are some tips to help you create the "
            "game:\n1. Start with the character's name and background: "
            f"{text(300)} make it better.\nWith these tips, {text(3)} Good luck!",
        ),
        "rejected": turn(
            "gpt", "Hello! I'd be happy to help you create a language game for her. 😊"
        ),
    }
    labelled = [
        {
            "messages": [
                {"role": "user", "content": text(9)},
                {"role": "assistant", "content": text(9)},
            ],
            "label": i % 2 == 0,
        }
        for i in range(4)
    ]
    (folder / "dpo_en_demo.json").write_text(json.dumps(pairs), encoding="utf-8")
    (folder / "kto_en_demo.json").write_text(json.dumps(labelled), encoding="utf-8")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys) -> Callable[..., str]:
    """Runs the command with words in an empty folder, and gives what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setenv("VERITUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("COLUMNS", raising=False)
    # The README was run on a CPU; with a GPU the header names it.
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    def run(*words: str) -> str:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [*words])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        assert not left.value.code, f"{' '.join(words)}\n{out}\n{err}"
        return out.replace(str(tmp_path / "cache"), "~/.cache/veritune")

    return run


def blocks() -> list[Block]:
    found = blocks_of(README.read_text(encoding="utf-8"))
    assert [block.name for block in found] == NAMES, "a marked block was lost, added or moved"
    return found


def test_the_commands_of_the_readme_print_what_it_shows(tmp_path, run):
    write_made_records(tmp_path)

    for name, language, body in blocks():
        if language == "console":
            for words, shown in steps_of(body):
                assert words[0] == "veritune", f"{name}: only veritune is run, not {words[0]}"
                assert_shown(shown, run(*words, *SMALLER.get(name, [])))
        elif language == "yaml":
            (tmp_path / body.split()[1]).write_text(body, encoding="utf-8")
        else:
            assert language == "python", f"{name}: no way to run {language}"
            exec(compile(body, name, "exec"), {})


@pytest.mark.skipif(not REAL.is_file(), reason=f"no preference data at {REAL}")
def test_the_readme_shows_the_numbers_of_the_real_pairs(tmp_path, run):
    (tmp_path / "pairs.jsonl").symlink_to(REAL)

    for name, _, body in blocks():
        if name in {"tiny", "check"}:
            for words, shown in steps_of(body):
                assert_shown(shown, run(*words), MEMORY)


def test_the_readme_names_the_releases_that_were_timed():
    timed = json.loads((README.parent / "benchmarks/results/preference_step_cpu.json").read_text())
    torch = ".".join(timed["versions"]["torch"].split(".")[:2])
    [section] = re.findall(r"^## How fast it is$(.*?)^## ", README.read_text(), re.DOTALL | re.M)

    assert f"TRL {timed['trl']}" in section
    assert f"torch {torch}" in section
    assert timed["threads"] == 2
    assert "two threads" in section


SHOWN = "kind  paired\n…\nstep 2/2  loss 1e-3  … left\nmemory  1.2 MB there\n"
PRINTED = (
    "kind paired\n\nstep 1/3  loss 2  7 s left\n"
    "step 3/3  loss 1.5  1 min 02 s left\nmemory 3 GB there\n"
)


def test_numbers_times_and_spaces_may_differ_from_what_is_shown():
    assert_shown(SHOWN, PRINTED)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("kind paired", "kind scored"),
        ("kind paired", "sort paired"),
        ("kind paired", "rows 3\nkind paired"),
        ("memory 3 GB there\n", ""),
        ("GB there\n", "GB there\nrows 3\n"),
        ("loss 1.5", "loss nan"),
        ("step", "batch"),
    ],
)
def test_a_line_that_is_renamed_missing_or_new_is_found(old, new):
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        assert_shown(SHOWN, PRINTED.replace(old, new))


def test_a_block_that_shows_no_output_is_found():
    with pytest.raises(AssertionError, match="nothing is shown"):
        assert_shown("", PRINTED)


def test_numbers_are_compared_where_only_memory_may_differ():
    assert_shown("rows 3, 4 GB there", "rows 3, 5 GB there", MEMORY)
    with pytest.raises(pytest.fail.Exception, match="rows 3"):
        assert_shown("rows 3, 4 GB there", "rows 4, 4 GB there", MEMORY)


def test_a_marked_block_is_taken_apart_into_commands_and_their_output():
    page = (
        "```console\n$ ls\n```\n<!-- run: a -->\n"
        "```console\n$ veritune b \\\n    c=d  # e\nf\n\n$ g\n```\n"
    )

    [block] = blocks_of(page)

    assert (block.name, block.language) == ("a", "console")
    assert steps_of(block.body) == [Step(["veritune", "b", "c=d"], "f\n\n"), Step(["g"], "")]
