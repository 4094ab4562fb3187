from pathlib import Path
from typing import Any

import pytest
import torch
from longhand import longhand
from run_world import Listener, World, lines
from tiny_world import (
    FROM_RECORDS,
    batch_of,
    gradients,
    lively_model,
    make_pass,
    perturbed,
    random_dataset,
)

from veritune.batches.loader import GlobalBatch
from veritune.evaluation.held_out import HeldOut
from veritune.objectives.catalog import CATALOG
from veritune.training.objective_pass import ObjectivePass

POLICY = lively_model(seed=1)
NEAR, FAR = (perturbed(POLICY, size, seed=5) for size in (0.004, 0.05))


def world(name: str, folder: Path) -> tuple[ObjectivePass, GlobalBatch]:
    dataset = random_dataset(CATALOG[name].kind, 11, seed=3)
    batch = batch_of(dataset, 11)
    reference = FAR if CATALOG[name].finite_everywhere else NEAR
    return make_pass(name, POLICY, reference, dataset, batch, folder, tokens_per_row=60), batch


@pytest.mark.parametrize("name", FROM_RECORDS)
def test_held_out_numbers_are_those_of_the_training_pass_and_of_the_longhand_one(
    name: str, tmp_path: Path
) -> None:
    ours, batch = world(name, tmp_path)
    line = HeldOut(ours, batch, None, 10).measure(7)
    result = ours.run(batch, backward=True)
    assert line == {
        "step": 7,
        "eval/loss": result.loss,
        "eval/records": 11,
        **{f"eval/{metric}": value for metric, value in result.metrics.items()},
    }
    reference = FAR if CATALOG[name].finite_everywhere else NEAR
    expected = longhand(POLICY, reference, ours.objective, ours.dataset, batch.indices)
    assert line["eval/loss"] == pytest.approx(expected.loss, rel=1e-5)


def test_measuring_leaves_weights_gradients_and_mode_as_they_were(tmp_path: Path) -> None:
    ours, batch = world("kto", tmp_path)
    before = [p.detach().clone() for p in ours.model.hf.parameters()]
    for mode in (True, False):
        ours.model.hf.train(mode)
        HeldOut(ours, batch, None, 10).measure(0)
        assert ours.model.hf.training == mode
    assert gradients(ours) == {}
    assert all(torch.equal(a, b) for a, b in zip(before, ours.model.hf.parameters(), strict=True))


def test_dropout_is_off_while_measuring(tmp_path: Path) -> None:
    ours, batch = world("dpo", tmp_path)
    expected = HeldOut(ours, batch, None, 10).measure(0)
    for layer in ours.model.hf.model.layers:
        layer.self_attn.attention_dropout = 0.5
    ours.model.hf.train()
    assert HeldOut(ours, batch, None, 10).measure(0) == expected
    # Control: in the mode of training it would show.
    assert ours.run(batch).loss != expected["eval/loss"]


@pytest.mark.parametrize(("every", "due"), [(None, [0, 10]), (4, [0, 4, 8, 10]), (5, [0, 5, 10])])
def test_an_evaluation_is_due_at_the_start_at_the_end_and_every_so_often(
    tmp_path: Path, every: int | None, due: list[int]
) -> None:
    ours, batch = world("pmle", tmp_path)
    held_out = HeldOut(ours, batch, every, 10)
    found = [line["step"] for step in range(11) if (line := held_out(step)) is not None]
    assert found == due


def evaluated(run: Path) -> list[dict[str, Any]]:
    return [line for line in lines(run) if "eval/loss" in line]


def test_evaluating_on_the_training_data_gives_the_training_loss(tmp_path: Path) -> None:
    world = World(tmp_path)
    data = world.records("unpaired", 13)
    world.train("kto", "run", evaluation__data=data, train__batch_size=13, evaluation__every=1)
    found = {line["step"]: line["eval/loss"] for line in evaluated(tmp_path / "run")}
    steps = [line for line in lines(tmp_path / "run") if "loss" in line]
    # A step's line is made before its update, an evaluation behind it. The baseline takes other
    # partners where the order of the records is another, so losses agree nearly.
    for line in steps:
        assert line["loss"] == pytest.approx(found[line["step"] - 1], rel=1e-2)
    assert found[6] < found[0]


def test_evaluation_does_not_change_the_run(tmp_path: Path) -> None:
    world = World(tmp_path)
    data = world.records("paired", 7)
    world.train("dpo", "with", evaluation__data=data, evaluation__every=1)
    world.train("dpo", "without")
    assert [line for line in lines(tmp_path / "with") if "loss" in line] == lines(
        tmp_path / "without"
    )


def test_a_held_out_fraction_shares_no_prompt_with_the_training_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[ObjectivePass] = []
    build = ObjectivePass.__init__

    def watched(self: ObjectivePass, *arguments: Any) -> None:
        build(self, *arguments)
        passes.append(self)

    monkeypatch.setattr(ObjectivePass, "__init__", watched)
    display = Listener()
    World(tmp_path).train("rdro", "run", num_records=40, evaluation__fraction=0.3, display=display)
    training, held_out = (
        [p.dataset[i].prompt.tobytes() for i in range(len(p.dataset))] for p in passes
    )
    assert len(training) + len(held_out) == 40
    assert set(training).isdisjoint(held_out)
    # Control: prompts repeat, so a split by record would not have done.
    assert len(set(training)) < len(training)
    assert display.facts["held out"] == f"{len(held_out)} records"
    assert [line["step"] for line in evaluated(tmp_path / "run")] == [0, 6]
    assert evaluated(tmp_path / "run")[0]["eval/records"] == len(held_out)
