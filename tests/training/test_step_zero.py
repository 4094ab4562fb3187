"""What a run verifies before its first update, and what makes it stop there."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import FROM_RECORDS, batch_of, lively_model, make_pass, perturbed, random_dataset

from veritune.errors import StepZeroError
from veritune.logprobs import UnpairedLogProbs
from veritune.models.forward import CausalModel
from veritune.objectives.catalog import CATALOG
from veritune.training import objective_pass, step_zero
from veritune.training.objective_pass import ObjectivePass
from veritune.training.step_zero import assert_step_zero

MODEL = lively_model(seed=4)
WITH_REFERENCE = [name for name in FROM_RECORDS if CATALOG[name].needs_reference]


def world(name: str, folder: Path, reference: Any = MODEL) -> tuple[ObjectivePass, Any]:
    dataset = random_dataset(CATALOG[name].kind, 13, seed=6)
    batch = batch_of(dataset, 11)
    return make_pass(name, MODEL, reference, dataset, batch, folder, tokens_per_row=60), batch


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_step_zero_holds_where_policy_and_reference_are_one_model(
    name: str, tmp_path: Path
) -> None:
    ours, batch = world(name, tmp_path)
    found = assert_step_zero(ours, batch, reference_is_policy=True)
    assert found["log_ratio_over_tolerance"] <= 1
    assert found["loss"] == pytest.approx(found["expected_loss"], rel=1e-5)


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_the_tolerance_of_the_loss_covers_what_rounding_does_to_log_ratios(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With log-ratios at half their tolerance, as in bfloat16, a sound run is not stopped."""
    ours, batch = world(name, tmp_path)
    for module in (objective_pass, step_zero):
        monkeypatch.setattr(module, "noise_tolerance", lambda model, tokens: 0.1 * tokens**0.5)
    sums = objective_pass.sum_by_completion
    generator = torch.Generator().manual_seed(0)

    def noisy(tokens: Any, owner: Any, num_completions: int) -> Any:
        noise = torch.rand(num_completions, generator=generator) - 0.5
        lengths = torch.bincount(owner, minlength=num_completions)
        return sums(tokens, owner, num_completions) + 0.1 * lengths.sqrt() * noise

    monkeypatch.setattr(objective_pass, "sum_by_completion", noisy)
    found = assert_step_zero(ours, batch, reference_is_policy=True)
    assert 0.1 < found["log_ratio_over_tolerance"] <= 1
    assert found["loss"] != pytest.approx(found["expected_loss"], rel=1e-6)


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_step_zero_stops_when_one_cached_value_was_changed(name: str, tmp_path: Path) -> None:
    ours, batch = world(name, tmp_path)
    assert ours.reference is not None
    group = ours.dataset[batch.indices[7]]
    count = sum(int(completion.bears_loss.sum()) for completion in group.completions)
    values = ours.reference.cache.get(group.key(), count)
    values[0] += 0.01
    ours.reference.cache.add({group.key(): values})
    with pytest.raises(StepZeroError, match="their log-probabilities differ"):
        assert_step_zero(ours, batch, reference_is_policy=True)


def test_step_zero_verifies_nothing_with_another_reference(tmp_path: Path) -> None:
    ours, batch = world("dpo", tmp_path, perturbed(MODEL, 0.05, seed=1))
    assert assert_step_zero(ours, batch, reference_is_policy=False) == {}
    # Control: taken for the policy's own, that reference is refused.
    with pytest.raises(StepZeroError):
        assert_step_zero(ours, batch, reference_is_policy=True)


@pytest.mark.parametrize("name", [name for name in FROM_RECORDS if name not in WITH_REFERENCE])
def test_step_zero_verifies_nothing_without_a_reference(name: str, tmp_path: Path) -> None:
    ours, batch = world(name, tmp_path)
    assert assert_step_zero(ours, batch, reference_is_policy=True) == {}


def test_step_zero_stops_when_labels_are_turned_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, batch = world("rdro", tmp_path)
    assemble = objective_pass.assemble

    def turned(*arguments: Any) -> Any:
        data = assemble(*arguments)
        assert isinstance(data, UnpairedLogProbs)
        # The expectation is fed from the reference alone, with a policy that is not a number.
        if torch.isnan(data.completion.policy).any():
            return data
        return dataclasses.replace(data, desirable=~data.desirable)

    for module in (objective_pass, step_zero):
        monkeypatch.setattr(module, "assemble", turned)
    with pytest.raises(StepZeroError, match="not the one its card states"):
        assert_step_zero(ours, batch, reference_is_policy=True)


def test_step_zero_stops_when_losses_are_divided_by_another_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, batch = world("dpo", tmp_path)
    facts = ObjectivePass._facts

    def one_more(self: ObjectivePass, *arguments: Any) -> Any:
        found = facts(self, *arguments)
        return dataclasses.replace(found, num_examples=found.num_examples + 1)

    monkeypatch.setattr(ObjectivePass, "_facts", one_more)
    with pytest.raises(StepZeroError, match="not the one its card states"):
        assert_step_zero(ours, batch, reference_is_policy=True)


def test_step_zero_stops_when_the_policy_is_not_a_number(tmp_path: Path) -> None:
    ours, batch = world("dpo", tmp_path)
    with torch.no_grad():
        next(iter(ours.model.hf.parameters()))[0, 0] = float("nan")
    with pytest.raises(StepZeroError, match="their log-probabilities differ"):
        assert_step_zero(ours, batch, reference_is_policy=True)


def test_step_zero_stops_when_the_policy_computes_along_another_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, batch = world("exo_rw", tmp_path)
    logprobs = CausalModel.target_logprobs

    def without_the_last_token(self: CausalModel, states: Any, targets: Any) -> Any:
        tokens = logprobs(self, states, targets)
        return torch.cat([tokens[:-1], 0 * tokens[-1:]])

    monkeypatch.setattr(CausalModel, "target_logprobs", without_the_last_token)
    with pytest.raises(StepZeroError):
        assert_step_zero(ours, batch, reference_is_policy=True)


def test_step_zero_changes_no_weight_and_leaves_the_model_training(tmp_path: Path) -> None:
    ours, batch = world("kto", tmp_path)
    ours.model.hf.train()
    before = [p.detach().clone() for p in ours.model.hf.parameters()]
    assert_step_zero(ours, batch, reference_is_policy=True)
    after = list(ours.model.hf.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None for p in after)
    assert ours.model.hf.training


def test_a_log_ratio_that_is_not_a_number_is_the_largest(tmp_path: Path) -> None:
    ours, batch = world("dpo", tmp_path)
    with torch.no_grad():
        next(iter(ours.model.hf.parameters()))[0, 0] = float("nan")
    largest = ours.run(batch).largest_log_ratio
    assert largest != largest
