"""Every objective of the catalog, against a pass written out on paper."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from longhand import Expected, longhand
from tiny_world import (
    FROM_RECORDS,
    OWN_ROWS,
    batch_of,
    gradients,
    largest_relative_error,
    lively_model,
    make_pass,
    perturbed,
    random_dataset,
)

from veritune.models.forward import CausalModel
from veritune.objectives.catalog import CATALOG
from veritune.training import objective_pass
from veritune.training.forms import GlobalFacts
from veritune.training.objective_pass import ObjectivePass, PassResult

POLICY = lively_model(seed=1)
NEAR, FAR = (perturbed(POLICY, size, seed=5) for size in (0.004, 0.05))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One pass over eleven records of thirteen, and what it must give."""

    objective_pass: ObjectivePass
    result: PassResult
    expected: Expected

    def check(self) -> None:
        assert self.result.loss == pytest.approx(self.expected.loss, rel=1e-5)
        # A mean of log-ratios may be near zero, where rounding of the log-probabilities shows.
        assert self.result.metrics == pytest.approx(self.expected.metrics, rel=1e-5, abs=5e-6)
        error = largest_relative_error(gradients(self.objective_pass), self.expected.gradients)
        assert error < 1e-5


def compare(
    name: str, folder: Path, *, temperature: float = 1.0, tokens_per_row: int = 60
) -> Comparison:
    # An objective that ends at some log-ratio has a reference near by.
    reference = FAR if CATALOG[name].finite_everywhere else NEAR
    dataset = random_dataset(CATALOG[name].kind, 13, seed=3)
    batch = batch_of(dataset, 11)
    objective_pass = make_pass(
        name,
        POLICY,
        reference,
        dataset,
        batch,
        folder,
        tokens_per_row=tokens_per_row,
        temperature=temperature,
    )
    return Comparison(
        objective_pass,
        objective_pass.run(batch, backward=True),
        longhand(
            POLICY,
            reference,
            objective_pass.objective,
            dataset,
            batch.indices,
            temperature=temperature,
        ),
    )


@pytest.mark.parametrize("name", FROM_RECORDS)
def test_loss_metrics_and_gradients_equal_the_longhand_pass(name: str, tmp_path: Path) -> None:
    compare(name, tmp_path).check()


@pytest.mark.parametrize("name", ["sft", "kto", "exo_rw"])
def test_they_do_at_another_temperature(name: str, tmp_path: Path) -> None:
    compare(name, tmp_path, temperature=0.8).check()


def test_the_baseline_of_kto_is_positive_here_so_that_its_clamp_hides_nothing(
    tmp_path: Path,
) -> None:
    baseline = compare("kto", tmp_path).expected.baseline
    assert baseline is not None
    assert baseline > 0.1


def test_the_loss_of_each_example_stands_at_its_place_in_the_batch(tmp_path: Path) -> None:
    dataset = random_dataset("paired", 13, seed=3)
    batch = batch_of(dataset, 11)
    ours = make_pass("dpo", POLICY, FAR, dataset, batch, tmp_path, tokens_per_row=60)
    together = ours.run(batch).losses
    for place, index in enumerate(batch.indices):
        alone = dataclasses.replace(batch, indices=(index,), mismatched=(None,))
        assert float(together[place]) == pytest.approx(ours.run(alone).loss, rel=1e-5)


def test_a_pass_without_backward_leaves_no_gradient_and_gives_the_same_loss(
    tmp_path: Path,
) -> None:
    dataset = random_dataset("paired", 5)
    batch = batch_of(dataset, 5)
    ours = make_pass("dpo", POLICY, FAR, dataset, batch, tmp_path)
    without = ours.run(batch)
    assert gradients(ours) == {}
    assert ours.run(batch, backward=True).loss == without.loss
    assert gradients(ours) != {}


# Controls: the comparison above must see each of these mistakes.


def _facts_changed(change: Callable[[GlobalFacts], GlobalFacts]) -> Callable[..., GlobalFacts]:
    facts = ObjectivePass._facts

    def changed(self: ObjectivePass, *arguments: Any) -> GlobalFacts:
        return change(facts(self, *arguments))

    return changed


MISTAKES: dict[str, tuple[str, Callable[[GlobalFacts], GlobalFacts]]] = {
    "the mean is over one example too many": (
        "dpo",
        lambda f: dataclasses.replace(f, num_examples=f.num_examples + 1),
    ),
    "the mean over tokens misses one": (
        "sft",
        lambda f: dataclasses.replace(f, num_tokens=f.num_tokens - 1),
    ),
    "one desirable example is counted twice": (
        "rdro",
        lambda f: dataclasses.replace(f, num_desirable=f.num_desirable + 1),
    ),
    "the baseline is off": (
        "kto",
        lambda f: dataclasses.replace(
            f,
            mismatched_log_ratio=None
            if f.mismatched_log_ratio is None
            else f.mismatched_log_ratio + 0.01,
        ),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_sees_that(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, change = MISTAKES[mistake]
    monkeypatch.setattr(ObjectivePass, "_facts", _facts_changed(change))
    with pytest.raises(AssertionError):
        compare(name, tmp_path).check()


def test_the_comparison_sees_completions_that_are_not_mismatched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        objective_pass, "mismatched_group", lambda dataset, index, partner: dataset[index]
    )
    with pytest.raises(AssertionError):
        compare("kto", tmp_path).check()


def test_the_comparison_sees_a_mean_of_the_means_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ObjectivePass._rows

    def first_row_twice(self: ObjectivePass, groups: dict[int, Any]) -> list[list[int]]:
        found = rows(self, groups)
        return [*found, found[0]]

    monkeypatch.setattr(ObjectivePass, "_rows", first_row_twice)
    with pytest.raises(AssertionError):
        compare("dpo", tmp_path, tokens_per_row=OWN_ROWS).check()


def test_the_comparison_sees_a_temperature_that_the_reference_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = CausalModel.__init__

    def cold(self: CausalModel, hf_model: Any, **settings: Any) -> None:
        is_policy = "sharing" in settings
        build(self, hf_model, **{**settings, **({} if is_policy else {"temperature": 1.0})})

    monkeypatch.setattr(CausalModel, "__init__", cold)
    with pytest.raises(AssertionError):
        compare("exo_rw", tmp_path, temperature=0.8).check()


def test_the_longhand_pass_tells_two_policies_apart(tmp_path: Path) -> None:
    dataset = random_dataset("paired", 5)
    batch = batch_of(dataset, 5)
    ours = make_pass("dpo", POLICY, FAR, dataset, batch, tmp_path)
    ours.run(batch, backward=True)
    other = perturbed(POLICY, 1e-4, seed=5)
    expected = longhand(other, FAR, ours.objective, dataset, batch.indices)
    assert largest_relative_error(gradients(ours), expected.gradients) > 1e-5
    assert all(torch.isfinite(g).all() for g in expected.gradients.values())
