"""Rows that fit the memory of a run, kept when it goes on, and what is said where none fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from run_world import Listener, World, lines, same_weights

from veritune.commands import run_rows
from veritune.errors import OutOfMemoryError, SettingsError
from veritune.models.rehearsal import NotRehearsedError, Skeleton
from veritune.training.step import TrainingStep


class Death(Exception):
    """What stands for a process that dies."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def kept(world: World, run: str) -> dict[str, Any]:
    found = json.loads((world.folder / run / "provenance.json").read_text())
    assert isinstance(found, dict)
    return found


def die_in_step(patch: pytest.MonkeyPatch, number: int) -> None:
    run = TrainingStep.run

    def dying(self: TrainingStep, step: int, batch: Any) -> dict[str, float]:
        if step == number:
            raise Death
        return run(self, step, batch)

    patch.setattr(TrainingStep, "run", dying)


def test_with_plenty_of_memory_a_step_is_one_row(world: World) -> None:
    display = Listener()
    world.train("dpo", "run", display=display)
    assert "by train.memory" in display.facts["rows"]
    assert " tokens a row: weights " in display.facts["memory"]
    assert kept(world, "run")["rows"]["checkpoint_every"] is None
    memory = kept(world, "run")["memory"]
    assert memory["peak_bytes"] > 0
    assert memory["planned_bytes"] > sum(memory["parts"].values())
    assert display.told("memory: at most")


def test_with_little_memory_rows_are_smaller_and_the_result_is_the_same(world: World) -> None:
    world.train("dpo", "plenty")
    display = Listener()
    world.train("dpo", "little", display=display, train__memory="3MB")
    much, little = (kept(world, run)["rows"]["tokens_per_row"] for run in ("plenty", "little"))
    assert little < much
    assert display.facts["rows"].startswith(f"up to {little:,} tokens (by train.memory)")
    assert display.told("trial of the largest row")
    for one, other in zip(
        lines(world.folder / "plenty"), lines(world.folder / "little"), strict=True
    ):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3, abs=1e-4)


def test_a_run_that_goes_on_has_the_rows_that_it_began_with(world: World) -> None:
    world.train("dpo", "whole", train__memory="3MB")
    with pytest.MonkeyPatch.context() as patch:
        die_in_step(patch, 4)
        with pytest.raises(Death):
            world.train("dpo", "broken", train__memory="3MB")
    # There is more memory now, and the rows stay.
    display = Listener()
    world.train("dpo", "broken", train__memory="3GB", display=display)
    assert kept(world, "broken")["rows"] == kept(world, "whole")["rows"]
    assert "by train.memory" not in display.facts["rows"]
    assert same_weights(world.folder / "whole", world.folder / "broken")
    assert lines(world.folder / "whole") == lines(world.folder / "broken")


def test_rows_that_are_given_are_taken_whatever_memory_there_is(world: World) -> None:
    display = Listener()
    world.train("dpo", "run", train__tokens_per_row=100, display=display)
    assert display.facts["rows"] == "up to 100 tokens"
    assert kept(world, "run")["rows"]["tokens_per_row"] == 100


def test_what_does_not_fit_is_refused_before_anything_is_written(world: World) -> None:
    with pytest.raises(SettingsError, match=r"does not fit into memory\.(\n.*)*a smaller model"):
        world.train("dpo", "run", train__memory="0.1MB")
    assert not (world.folder / "run").exists()
    world.train("dpo", "run", train__memory="null")


def test_a_row_that_does_not_pass_its_trial_is_made_smaller(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    dry_run = run_rows.dry_run
    trials = []

    def failing_twice(*arguments: Any) -> int | None:
        trials.append(len(arguments[1]))
        return None if len(trials) < 3 else dry_run(*arguments)

    monkeypatch.setattr(run_rows, "dry_run", failing_twice)
    monkeypatch.setattr(run_rows, "_PLENTY", 0.0)
    display = Listener()
    world.train("dpo", "run", display=display)
    assert display.told("do not fit; trying rows up to")
    assert trials == sorted(trials, reverse=True)
    assert len(lines(world.folder / "run")) == 6


def test_where_no_row_passes_its_trial_the_run_ends_with_what_to_change(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_rows, "dry_run", lambda *_: None)
    monkeypatch.setattr(run_rows, "_PLENTY", 0.0)
    with pytest.raises(OutOfMemoryError, match=r"largest group.*(\n.*)*adapter={}"):
        world.train("dpo", "run")


def test_a_model_that_cannot_be_followed_is_tried_instead_of_planned(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise NotRehearsedError("values are looked at")

    monkeypatch.setattr(Skeleton, "row", refused)
    display = Listener()
    world.train("dpo", "run", display=display)
    assert "memory" not in display.facts
    assert display.told("trial of the largest row")


def test_a_step_that_runs_out_of_memory_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    monkeypatch.setattr(TrainingStep, "run", failing)
    with pytest.raises(OutOfMemoryError, match=r"step 1: .*(\n.*)*train\.tokens_per_row"):
        world.train("dpo", "run")
