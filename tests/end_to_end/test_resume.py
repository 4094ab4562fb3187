"""A run that dies at any point continues to bit-identical weights and the same log."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_world import Listener, World, lines, same_weights, write_model, write_records

from veritune.errors import CheckpointError, RunFolderError, SettingsError
from veritune.training import checkpoint as checkpoint_module
from veritune.training import log as log_module
from veritune.training.step import TrainingStep

# Thirteen records in batches of five: the third batch crosses into the second epoch, and the sixth
# into the third.
RUNS: dict[str, dict[str, Any]] = {
    "dpo": {"objective": "dpo"},
    "kto": {"objective": "kto"},
    "bco, whose baseline is a running mean": {"objective": "bco"},
    "sft in epochs": {"objective": "sft", "train__steps": None, "train__epochs": 2.4},
    "rdro with dropout": {"objective": "rdro", "train__dropout": "true"},
    "exo_rw, evaluated": {
        "objective": "exo_rw",
        "evaluation__fraction": 0.3,
        "evaluation__every": 2,
    },
    "dpo with an adapter": {"objective": "dpo", "adapter": "{rank: 4}"},
    "dpo with weight decay": {"objective": "dpo", "train__weight_decay": 0.1},
}


class Death(Exception):
    """What stands for a process that dies."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def die_in_step(patch: pytest.MonkeyPatch, number: int) -> None:
    """The process dies in a step: behind the update, before anything is written."""
    run = TrainingStep.run

    def dying(self: TrainingStep, step: int, batch: Any) -> dict[str, float]:
        line = run(self, step, batch)
        if step == number:
            raise Death
        return line

    patch.setattr(TrainingStep, "run", dying)


def assert_continues(world: World, objective: str, **changes: Any) -> None:
    """The run in `whole` and what is continued in `broken` end the same."""
    world.train(objective, "broken", **changes)
    assert same_weights(world.folder / "whole", world.folder / "broken")
    assert lines(world.folder / "broken") == lines(world.folder / "whole")


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_died_inside_a_step_continues_as_if_it_had_not(name: str, world: World) -> None:
    changes = dict(RUNS[name])
    objective = changes.pop("objective")
    world.train(objective, "whole", **changes)
    for number in (1, 3, 4, 6):
        with pytest.MonkeyPatch.context() as patch:
            die_in_step(patch, number)
            with pytest.raises(Death):
                world.train(objective, "broken", **changes)
    assert_continues(world, objective, **changes)
    assert len({line["step"] for line in lines(world.folder / "whole")} - {0}) >= 6


def test_dropout_that_is_on_changes_a_run(world: World) -> None:
    """Control: the resumed run with dropout above had something to repeat."""
    world.train("rdro", "off")
    world.train("rdro", "on", train__dropout="true")
    assert not same_weights(world.folder / "off", world.folder / "on")


def test_a_resumed_run_says_where_it_continues(world: World) -> None:
    with pytest.MonkeyPatch.context() as patch:
        die_in_step(patch, 5)
        with pytest.raises(Death):
            world.train("dpo", "run")
    display = Listener()
    world.train("dpo", "run", display=display)
    assert display.told("continuing behind step 4")
    # Nothing is verified again: the policy has moved.
    assert not display.told("step 0")


def test_without_the_checkpoint_the_end_would_be_another(world: World) -> None:
    """Control: a run from step 4 on, with the optimizer's memory lost, ends elsewhere."""
    world.train("dpo", "whole")
    with pytest.MonkeyPatch.context() as patch:
        die_in_step(patch, 5)
        with pytest.raises(Death):
            world.train("dpo", "broken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.optim.AdamW.load_state_dict", lambda self, state: None)
        world.train("dpo", "broken")
    assert not same_weights(world.folder / "whole", world.folder / "broken")


def _nth(number: int, function: Callable[..., Any], *, behind: bool) -> Callable[..., Any]:
    """The function, dying before or behind its n-th call."""
    calls = [0]

    def dying(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == number and not behind:
            raise Death
        result = function(*arguments, **named)
        if calls[0] == number:
            raise Death
        return result

    return dying


class Except:
    """A module but for one of its functions."""

    def __init__(self, module: Any, name: str, function: Callable[..., Any]) -> None:
        self._module = module
        setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("name", ["save_file", "torch.save", "_write_synced", "os.replace"])
def test_a_run_that_died_while_it_wrote_a_checkpoint_continues(
    name: str, behind: bool, world: World
) -> None:
    world.train("dpo", "whole")
    with pytest.MonkeyPatch.context() as patch:
        module, _, function = name.rpartition(".")
        if module:
            # `os` and `torch` are everybody's; only the name in this module is replaced.
            real = getattr(checkpoint_module, module)
            dying = _nth(2, getattr(real, function), behind=behind)
            patch.setattr(checkpoint_module, module, Except(real, function, dying))
        else:
            dying = _nth(2, getattr(checkpoint_module, function), behind=behind)
            patch.setattr(checkpoint_module, function, dying)
        with pytest.raises(Death):
            world.train("dpo", "broken")
    assert_continues(world, "dpo")


def test_a_run_that_died_while_it_wrote_a_line_continues(world: World) -> None:
    world.train("dpo", "whole")
    with pytest.MonkeyPatch.context() as patch:
        write = log_module.RunLog.write

        def half(self: log_module.RunLog, line: Any) -> None:
            if line["step"] == 3:
                self._stream.write('{"step": 3, "lo')
                self._stream.flush()
                raise Death
            write(self, line)

        patch.setattr(log_module.RunLog, "write", half)
        with pytest.raises(Death):
            world.train("dpo", "broken")
    assert_continues(world, "dpo")


@pytest.mark.parametrize("where", ["save_model", "finish_run", "begin_run", "_score", "run_report"])
def test_a_run_that_died_outside_its_steps_can_be_given_again(where: str, world: World) -> None:
    world.train("dpo", "whole")
    shutil.rmtree(world.folder / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            f"veritune.commands.train.{where}", _nth(1, lambda *_, **__: None, behind=False)
        )
        with pytest.raises(Death):
            world.train("dpo", "broken")
    assert_continues(world, "dpo")
    assert (world.folder / "broken" / "report.html").is_file()


@pytest.mark.parametrize("name", ["exo_rw, evaluated", "dpo with an adapter"])
def test_a_run_that_died_while_its_model_was_saved_makes_no_step_again(
    name: str, world: World
) -> None:
    changes = dict(RUNS[name])
    objective = changes.pop("objective")
    world.train(objective, "whole", **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("veritune.commands.train.save_model", _nth(1, print, behind=False))
        with pytest.raises(Death):
            world.train(objective, "broken", **changes)
    log = (world.folder / "broken" / "metrics.jsonl").read_bytes()
    display = Listener()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingStep, "run", _nth(1, print, behind=False))
        result = world.train(objective, "broken", display=display, **changes)
    assert display.told("continuing behind step 6")
    assert (result.steps, result.last_line) == (6, {})
    assert (world.folder / "broken" / "metrics.jsonl").read_bytes() == log
    assert same_weights(world.folder / "whole", world.folder / "broken")
    assert lines(world.folder / "broken") == lines(world.folder / "whole")


def test_a_checkpoint_without_a_manifest_is_passed_over(world: World) -> None:
    world.train("dpo", "whole", train__keep_checkpoints=3)
    with pytest.MonkeyPatch.context() as patch:
        die_in_step(patch, 5)
        with pytest.raises(Death):
            world.train("dpo", "broken", train__keep_checkpoints=3)
    folder = world.folder / "broken" / "checkpoints"
    (folder / "step-4" / "manifest.json").unlink()
    display = Listener()
    world.train("dpo", "broken", train__keep_checkpoints=3, display=display)
    assert display.told("continuing behind step 2")
    assert same_weights(world.folder / "whole", world.folder / "broken")
    assert lines(world.folder / "broken") == lines(world.folder / "whole")


def interrupted(world: World, **changes: Any) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        die_in_step(patch, 5)
        with pytest.raises(Death):
            world.train("dpo", "run", **changes)
    return world.folder / "run"


def test_a_damaged_checkpoint_is_refused(world: World) -> None:
    run = interrupted(world)
    file = run / "checkpoints" / "step-4" / "trained.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"trained\.safetensors is damaged"):
        world.train("dpo", "run")
    # As the message says, the run goes on once the folder is gone.
    shutil.rmtree(file.parent)
    world.train("dpo", "run")
    world.train("dpo", "whole")
    assert same_weights(world.folder / "whole", run)


def test_other_settings_are_refused_and_named(world: World) -> None:
    interrupted(world)
    with pytest.raises(RunFolderError, match=r"train\.learning_rate: 0\.003 there, 0\.001 now"):
        world.train("dpo", "run", train__learning_rate=0.001)
    with pytest.raises(RunFolderError, match=r"objective\.beta: 0\.1 there, 0\.2 now"):
        world.train("dpo", "run", objective__beta=0.2)
    with pytest.raises(RunFolderError, match=r"objective\.name: 'dpo' there, 'ipo' now"):
        world.train("ipo", "run")


def test_other_data_under_the_same_name_are_refused(world: World) -> None:
    interrupted(world)
    write_records(world.records("paired", 13), "paired", 13, seed=8)
    with pytest.raises(RunFolderError, match="its data_tokens is not the one it began with"):
        world.train("dpo", "run")


def test_other_labels_of_the_same_text_are_refused(world: World) -> None:
    with pytest.MonkeyPatch.context() as patch:
        die_in_step(patch, 5)
        with pytest.raises(Death):
            world.train("kto", "run")
    file = world.records("unpaired", 13)
    rows = [json.loads(row) for row in file.read_text().splitlines()]
    rows[0]["label"], rows[1]["label"] = rows[1]["label"], rows[0]["label"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(RunFolderError, match="its data_tokens is not the one it began with"):
        world.train("kto", "run")


def test_other_held_out_data_under_the_same_name_are_refused(world: World) -> None:
    held_out = write_records(world.folder / "held-out.jsonl", "paired", 4, seed=1)
    interrupted(world, evaluation__data=held_out)
    write_records(held_out, "paired", 4, seed=2)
    with pytest.raises(RunFolderError, match="its held_out_tokens is not the one it began with"):
        world.train("dpo", "run", evaluation__data=held_out)
    write_records(held_out, "paired", 4, seed=1)
    world.train("dpo", "run", evaluation__data=held_out)


def test_another_model_under_the_same_name_is_refused(world: World) -> None:
    interrupted(world)
    write_model(world.model, seed=9)
    with pytest.raises(RunFolderError, match="its model is not the one it began with"):
        world.train("dpo", "run")


def test_another_reference_under_the_same_name_is_refused(world: World) -> None:
    write_model(world.folder / "other", seed=1)
    interrupted(world, reference=world.folder / "other")
    write_model(world.folder / "other", seed=2)
    with pytest.raises(RunFolderError, match="its reference is not the one it began with"):
        world.train("dpo", "run", reference=world.folder / "other")


def test_overwrite_begins_anew(world: World) -> None:
    interrupted(world)
    world.train("dpo", "run", overwrite=True, train__learning_rate=0.001)
    world.train("dpo", "whole", train__learning_rate=0.001)
    assert same_weights(world.folder / "run", world.folder / "whole")
    assert lines(world.folder / "run") == lines(world.folder / "whole")


def test_a_run_that_is_refused_overwrites_nothing(world: World) -> None:
    """Refused at the last moment: the cache is a file."""
    run = interrupted(world)
    before = {f: f.read_bytes() for f in run.rglob("*") if f.is_file()}
    blocked = world.folder / "blocked"
    blocked.write_text("a file")
    with pytest.raises(SettingsError, match="the cache folder cannot be written"):
        world.train("dpo", "run", overwrite=True, cache=blocked)
    with pytest.raises(SettingsError, match="the cache folder cannot be written"):
        world.train("dpo", "new", cache=blocked)
    assert {f: f.read_bytes() for f in run.rglob("*") if f.is_file()} == before
    assert not (world.folder / "new").exists()


def test_a_run_does_not_overwrite_the_model_that_it_starts_from(world: World) -> None:
    world.train("dpo", "run")
    model = world.folder / "run" / "model"
    for role in ("model", "reference"):
        with pytest.raises(RunFolderError, match="holds a model that the new one starts from"):
            world.train("dpo", "run", overwrite=True, **{role: model})
    assert (model / "model.safetensors").is_file()
    world.train("dpo", "next", model=model)


def test_a_tilde_in_the_output_is_the_home_folder(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(world.folder / "home"))
    monkeypatch.chdir(world.folder)
    result = world.train("dpo", "run", output="~/run")
    assert result.folder == world.folder / "home" / "run"
    assert (result.folder / "model" / "model.safetensors").is_file()
    assert not Path("~").exists()


def test_a_finished_run_says_so_and_changes_nothing(world: World) -> None:
    world.train("dpo", "run")
    run = world.folder / "run"
    before = {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in run.rglob("*") if f.is_file()}
    display = Listener()
    result = world.train("dpo", "run", display=display)
    assert result.steps == 0
    assert display.told("is complete")
    after = {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in run.rglob("*") if f.is_file()}
    assert after == before


def test_a_foreign_folder_is_left_as_it_is(world: World) -> None:
    foreign = world.folder / "run"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(RunFolderError, match="holds no run"):
            world.train("dpo", "run", overwrite=overwrite)
    assert [f.name for f in foreign.iterdir()] == ["notes.txt"]


def test_how_often_checkpoints_are_written_does_not_change_the_run(world: World) -> None:
    world.train("dpo", "whole")
    world.train("dpo", "seldom", train__checkpoint_every=100)
    assert same_weights(world.folder / "whole", world.folder / "seldom")
    assert lines(world.folder / "whole") == lines(world.folder / "seldom")
    found = sorted(f.name for f in (world.folder / "whole" / "checkpoints").iterdir())
    assert found == ["step-6"]
