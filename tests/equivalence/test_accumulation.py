"""How a batch is cut into rows must change nothing but rounding."""

from pathlib import Path
from typing import Any

import pytest
from tiny_world import (
    FROM_RECORDS,
    ONE_ROW,
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
from veritune.training.objective_pass import ObjectivePass, PassResult

POLICY = lively_model(seed=1)
# Float32 resolves 6e-8 of a log-probability. The steep slopes of density ratios magnify that, and
# the loss of the quadratic Ada-DPO is a small difference of larger terms.
STEEP = (
    "ddro",
    "ddro_stabilized",
    "ddro_lsif",
    "rdro_lsif",
    "rdro_kliep",
    "ada_dpo_quadratic",
)
NEAR, FAR = (perturbed(POLICY, size, seed=5) for size in (0.004, 0.05))


def one_pass(
    name: str, folder: Path, tokens_per_row: int, **settings: Any
) -> tuple[ObjectivePass, PassResult, int]:
    dataset = random_dataset(CATALOG[name].kind, 13, seed=3)
    batch = batch_of(dataset, 11)
    reference = FAR if CATALOG[name].finite_everywhere else NEAR
    ours = make_pass(
        name, POLICY, reference, dataset, batch, folder, tokens_per_row=tokens_per_row, **settings
    )
    groups = {place: dataset[index] for place, index in enumerate(batch.indices)}
    return ours, ours.run(batch, backward=True), len(ours._rows(groups))


def assert_equal(
    name: str, one: tuple[ObjectivePass, PassResult], other: tuple[ObjectivePass, PassResult]
) -> None:
    (expected_pass, expected), (got_pass, got) = one, other
    assert got.loss == pytest.approx(expected.loss, rel=1e-5 if name in STEEP else 1e-6)
    assert got.metrics == pytest.approx(expected.metrics, rel=1e-5, abs=5e-6)
    error = largest_relative_error(gradients(got_pass), gradients(expected_pass))
    assert error < (2e-5 if name in STEEP else 1e-5)


@pytest.mark.parametrize("name", FROM_RECORDS)
def test_the_head_gives_the_same_a_group_at_a_time_as_at_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CausalModel, "targets_at_once", None)
    together, expected, _ = one_pass(name, tmp_path, ONE_ROW)
    monkeypatch.setattr(CausalModel, "targets_at_once", 1)
    calls: list[int] = []
    logprobs = CausalModel.target_logprobs

    def counted(self: CausalModel, states: Any, targets: Any) -> Any:
        if states.requires_grad:
            calls.append(len(targets))
        return logprobs(self, states, targets)

    monkeypatch.setattr(CausalModel, "target_logprobs", counted)
    apart, got, _ = one_pass(name, tmp_path, ONE_ROW)
    assert_equal(name, (together, expected), (apart, got))
    assert len(calls) == 11


@pytest.mark.parametrize("name", FROM_RECORDS)
def test_a_row_for_each_group_gives_the_loss_and_gradient_of_one_row(
    name: str, tmp_path: Path
) -> None:
    one, together, num_rows = one_pass(name, tmp_path, ONE_ROW)
    many, apart, num_own_rows = one_pass(name, tmp_path, OWN_ROWS)
    assert (num_rows, num_own_rows) == (1, 11)
    assert apart.num_tokens == together.num_tokens
    assert_equal(name, (one, together), (many, apart))


@pytest.mark.parametrize("sharing", ["packed", "padded"])
@pytest.mark.parametrize("name", FROM_RECORDS)
def test_rows_without_sharing_give_the_loss_and_gradient_of_shared_prompts(
    name: str, sharing: str, tmp_path: Path
) -> None:
    shared, expected, _ = one_pass(name, tmp_path, 60)
    other, result, _ = one_pass(name, tmp_path, 60, sharing=sharing)
    assert_equal(name, (shared, expected), (other, result))


@pytest.mark.parametrize("name", ["rdro", "kto", "sft"])
def test_a_batch_is_not_the_mean_of_its_parts(name: str, tmp_path: Path) -> None:
    """Control: what accumulation without global counts would give is another loss."""
    dataset = random_dataset(CATALOG[name].kind, 13, seed=3)
    batch = batch_of(dataset, 11)
    ours = make_pass(name, POLICY, FAR, dataset, batch, tmp_path)
    whole = ours.run(batch).loss
    parts = [
        type(batch)(batch.indices[cut], batch.mismatched[cut])
        for cut in (slice(0, 7), slice(7, None))
    ]
    naive = sum(len(part.indices) * ours.run(part).loss for part in parts) / 11
    assert naive != pytest.approx(whole, rel=1e-4)
