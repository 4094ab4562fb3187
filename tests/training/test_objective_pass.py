"""What lives of the logits while a whole pass over a global batch runs."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from living_tensors import LivingTensors
from tiny_world import batch_of, lively_model, make_pass, perturbed, random_dataset

from veritune.models import head_tiles
from veritune.models.head import BUDGET_BYTES, PART_BYTES
from veritune.models.rehearsal import LiveBytes
from veritune.objectives.catalog import CATALOG

VOCABULARY = 8000
"""So large that all logits outweigh the weights and what the layers keep."""

POLICY = lively_model(seed=1, vocab_size=VOCABULARY)
PART, BUDGET, UNLIMITED = 4 * 30 * VOCABULARY, 2**17, 2**40
"""Bytes: the logits of 30 targets; an eighth of them; and more than there are."""

BUDGETS = {
    "a few groups at a time": (PART, UNLIMITED),
    "a tile at a time": (UNLIMITED, BUDGET),
    "a tile of a few groups at a time": (PART, BUDGET),
}
"""What is set as `PART_BYTES` and as `BUDGET_BYTES`."""


class Lived(NamedTuple):
    """What lived during a pass, as shares of the logits of all targets in float32."""

    largest: float
    """The largest tensor."""

    together: float
    """All tensors that lived at a time, weights and their gradients aside."""


def lived(name: str, folder: Path, *, trains_head: bool = True, backward: bool = True) -> Lived:
    """During a pass over one row of some 300 targets."""
    num_records = {"paired": 40, "unpaired": 80}[CATALOG[name].kind]
    dataset = random_dataset(CATALOG[name].kind, num_records + 5, seed=3)
    batch = batch_of(dataset, num_records)
    reference = perturbed(POLICY, 0.004, seed=2)
    ours = make_pass(name, POLICY, reference, dataset, batch, folder)
    ours.model.head.weight.requires_grad_(trains_head)
    held = [*ours.model.hf.parameters(), *ours.model.hf.buffers()]
    for parameter in ours.model.hf.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
            held.append(parameter.grad)
    prepared = ours.prepare(batch)
    (row,) = prepared.rows
    live = LiveBytes()
    live.ignore(held)

    with live, LivingTensors() as made:
        ours.run(prepared, backward=backward)

    num_logits = len(row.batch.targets) * VOCABULARY
    assert len(row.batch.targets) > 250
    return Lived(made.largest / num_logits, live.peak / (4 * num_logits))


def set_budgets(patch: pytest.MonkeyPatch, part: int, budget: int) -> None:
    patch.setitem(PART_BYTES, "cpu", part)
    patch.setitem(BUDGET_BYTES, "cpu", budget)


@pytest.mark.parametrize("budgets", BUDGETS)
def test_a_step_never_holds_the_logits_of_all_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budgets: str
) -> None:
    """The gradient of the weight is 0.05 of them, and what the layers keep about 0.15."""
    set_budgets(monkeypatch, *BUDGETS[budgets])

    found = lived("dpo", tmp_path)

    assert found.largest < 0.2
    assert found.together < 0.5


@pytest.mark.parametrize("trains_head", [True, False])
@pytest.mark.parametrize("backward", [True, False])
def test_nor_does_a_pass_with_a_baseline_whatever_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trains_head: bool, backward: bool
) -> None:
    set_budgets(monkeypatch, PART, BUDGET)

    found = lived("kto", tmp_path, trains_head=trains_head, backward=backward)

    assert found.largest < 0.2
    assert found.together < 0.5


@pytest.mark.parametrize(("backward", "together"), [(True, 1.2), (False, 1.0)])
def test_without_budgets_a_step_holds_them_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backward: bool, together: float
) -> None:
    """The control."""
    set_budgets(monkeypatch, UNLIMITED, UNLIMITED)
    limits = head_tiles.Limits(*[UNLIMITED] * 4)
    monkeypatch.setitem(head_tiles.LIMITS, "cpu", limits)

    found = lived("dpo", tmp_path, backward=backward)

    assert found.largest == 1
    assert found.together > together


def test_small_tiles_alone_leave_all_logits_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why the largest tensor is not enough to look at: tiles are kept for the backward pass."""
    set_budgets(monkeypatch, UNLIMITED, UNLIMITED)
    limits = head_tiles.LIMITS["cpu"]._replace(tile_bytes=1)
    monkeypatch.setitem(head_tiles.LIMITS, "cpu", limits)

    found = lived("dpo", tmp_path)

    assert found.largest < 0.2
    assert found.together > 1
