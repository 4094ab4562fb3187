"""Each check accepts Veritune's functions and rejects an implementation that is wrong its way."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from peers import published, veritune_losses
from peers.batches import Batch
from peers.checks import CHECKS, CannotFailError, value
from peers.hyperparameters import BETA
from peers.implementation import Formula, Implementation
from peers.optimum import optimum
from torch import Tensor
from torch.nn.functional import logsigmoid

RIGHT = next(loss for loss in veritune_losses.implementations() if loss.where == "dpo")
Loss = Callable[[Batch], Tensor]


def wrong(loss: Loss) -> Implementation:
    return replace(RIGHT, mean_loss=loss)


def margins(batch: Batch) -> Tensor:
    ratio = batch.rows.policy_sums - batch.rows.reference_sums
    return ratio[: batch.num_examples] - ratio[batch.num_examples :]


def other_beta(batch: Batch) -> Tensor:
    return published.dpo(1.01 * BETA).mean_loss(batch)


def wrong_sign(batch: Batch) -> Tensor:
    return -logsigmoid(-BETA * margins(batch)).mean()


def half_the_gradient(batch: Batch) -> Tensor:
    loss = RIGHT.mean_loss(batch)
    return (loss + loss.detach()) / 2


def naive(batch: Batch) -> Tensor:
    return -torch.log(1 / (1 + torch.exp(-BETA * margins(batch)))).mean()


def weighted_by_place(batch: Batch) -> Tensor:
    place = torch.arange(1, batch.num_examples + 1)
    return (place * -logsigmoid(BETA * margins(batch))).sum() / place.sum()


def per_token_of_the_batch(batch: Batch) -> Tensor:
    total = -logsigmoid(BETA * margins(batch)).sum()
    return total * batch.num_examples / batch.rows.lengths.sum()


def reads_padding(batch: Batch) -> Tensor:
    return RIGHT.mean_loss(batch) + 1e-3 * batch.rows.policy.logsumexp(dim=-1).mean()


def ignores_the_reference(batch: Batch) -> Tensor:
    return RIGHT.mean_loss(batch.with_reference(torch.zeros_like(batch.rows.reference)))


def in_half_precision(batch: Batch) -> Tensor:
    return RIGHT.mean_loss(batch).to(torch.float32)


MUTANTS: list[tuple[str, Loss]] = [
    ("value", other_beta),
    ("value", wrong_sign),
    ("value", half_the_gradient),
    ("gradient", half_the_gradient),
    ("extremes", naive),
    ("order", weighted_by_place),
    ("cutting", per_token_of_the_batch),
    ("padding", reads_padding),
    ("reference", ignores_the_reference),
    ("precision", in_half_precision),
    ("optimum", other_beta),
    ("optimum", wrong_sign),
]


@pytest.mark.parametrize(
    ("check", "mutant"), MUTANTS, ids=lambda each: getattr(each, "__name__", each)
)
def test_a_check_rejects_what_is_wrong_in_its_way(check: str, mutant: Loss) -> None:
    outcome = {**CHECKS, "optimum": optimum}[check](wrong(mutant))
    assert outcome is not None
    assert not outcome.holds


def test_every_check_has_something_that_it_rejects() -> None:
    assert {check for check, _ in MUTANTS} == {*CHECKS, "optimum"}


@pytest.mark.parametrize("loss", veritune_losses.implementations(), ids=lambda loss: loss.name)
def test_veritune_holds_in_every_check(loss: Implementation) -> None:
    outcomes = {name: check(loss) for name, check in {**CHECKS, "optimum": optimum}.items()}
    assert {name: given for name, given in outcomes.items() if given and not given.holds} == {}


def test_a_formula_that_does_not_see_the_policy_is_an_error() -> None:
    blind = Formula(lambda batch: 0 * batch.rows.policy.sum() + 1, "nobody")
    with pytest.raises(CannotFailError, match="does not see the policy"):
        value(replace(RIGHT, formula=blind, mean_loss=blind.mean_loss))
