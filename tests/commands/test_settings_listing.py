import re

import pytest

from veritune.commands.check import CheckConfig
from veritune.commands.demo import DemoConfig
from veritune.commands.tiny import TinyConfig
from veritune.commands.train_settings import TrainConfig
from veritune.findings import part_of

KINDS = {"train": TrainConfig, "check": CheckConfig, "tiny": TinyConfig, "demo": DemoConfig}


def keys_of(kind, prefix="", seen=()):
    for name in kind.model_fields:
        yield prefix + name
        part = part_of(kind, name)
        if part is not None and part not in seen:
            seen = (*seen, part)
            yield from keys_of(part, f"{prefix}{name}.", seen)


@pytest.mark.parametrize("command", KINDS)
def test_settings_lists_every_key_once_with_its_default_and_its_meaning(command, veritune):
    outcome = veritune("settings", command)
    assert outcome.code == 0
    blocks = re.split(r"\n(?=\S)", outcome.out.strip())
    listed = [block.split("  ")[0] for block in blocks]
    assert len(set(listed)) == len(listed)
    assert set(keys_of(KINDS[command])) == set(listed)
    for block in blocks:
        head, *meaning = block.splitlines()
        assert re.search(r"  \((required|default .+|its keys follow)\)$", head), head
        assert meaning, f"{head} has no meaning"
        assert all(line.startswith("    ") and len(line) <= 100 for line in meaning)


def test_settings_without_a_command_are_those_of_train(veritune):
    assert veritune("settings").out == veritune("settings", "train").out


def test_defaults_are_written_as_in_a_settings_file_and_choices_are_named(veritune):
    lines = veritune("settings").out.splitlines()
    assert "model  (required)" in lines
    assert "reference  (default null)" in lines
    assert "train.dropout  (default false)" in lines
    assert "data.on_error  (default stop; one of stop, skip)" in lines
    assert "data.columns  (default {})" in lines


def test_the_keys_of_a_part_that_occurs_twice_are_listed_once(veritune):
    out = veritune("settings").out
    assert "data.files" in out
    assert "evaluation.data.files" not in out
    assert "Its keys are those of data." in " ".join(out.split())
