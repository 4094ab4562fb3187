"""Groups of different sizes in one tensor: what is absent must not be seen."""

import pytest
import torch

from veritune.logprobs import CompletionLogProbs, ScoredLogProbs
from veritune.objectives.catalog import CATALOG
from veritune.objectives.scored.dpo_rw import dpo_rw_loss
from veritune.objectives.scored.exo_rw import exo_rw_loss
from veritune.objectives.scored.group_laws import group_law
from veritune.objectives.scored.infonca import infonca_loss
from veritune.objectives.scored.plackett_luce import plackett_luce_loss
from veritune.objectives.scored.preference_distillation import preference_distillation_loss

EVERY_LOSS = [card.loss for card in CATALOG.values() if card.kind == "scored"]
COMPARING = [
    exo_rw_loss,
    dpo_rw_loss,
    infonca_loss,
    plackett_luce_loss,
    preference_distillation_loss,
]
"""Losses of what completions of a group are to each other, not of each alone."""


def groups_of(log_ratio, scores, present):
    policy = torch.tensor(log_ratio, dtype=torch.float64, requires_grad=True)
    return ScoredLogProbs(
        CompletionLogProbs(
            policy, torch.ones_like(policy, dtype=torch.long), torch.zeros_like(policy)
        ),
        torch.tensor(scores, dtype=torch.float64),
        torch.tensor(present),
    )


def test_group_law_sums_to_one_over_what_is_present():
    values = torch.tensor([[1.0, 2.0, 3.0]])
    present = torch.tensor([[True, False, True]])

    law = group_law(values, present)

    assert law[0, 1] == 0
    assert float(law[0, [0, 2]].exp().sum()) == pytest.approx(1)
    assert float(law[0, 2] - law[0, 0]) == pytest.approx(2)


@pytest.mark.parametrize("loss", EVERY_LOSS)
@pytest.mark.parametrize("filler", [0.0, 1e4, float("nan"), float("inf")])
def test_an_absent_completion_has_no_effect_and_no_gradient(loss, filler):
    padded = groups_of([[0.3, filler, -0.6]], [[1.0, filler, 0.2]], [[True, False, True]])
    plain = groups_of([[0.3, -0.6]], [[1.0, 0.2]], [[True, True]])

    padded_loss, plain_loss = loss(padded), loss(plain)
    padded_loss.sum().backward()
    plain_loss.sum().backward()

    assert padded_loss.item() == pytest.approx(plain_loss.item())
    gradient = padded.completions.policy.grad[0]
    assert gradient[1] == 0
    assert torch.allclose(gradient[[0, 2]], plain.completions.policy.grad[0])


@pytest.mark.parametrize("loss", EVERY_LOSS)
@pytest.mark.parametrize("filler", [0.0, float("nan")])
def test_a_group_of_none_has_loss_and_gradient_zero(loss, filler):
    groups = groups_of([[filler, filler]], [[filler, filler]], [[False, False]])

    value = loss(groups)
    value.sum().backward()

    assert value.tolist() == [0.0]
    assert groups.completions.policy.grad.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("loss", COMPARING)
@pytest.mark.parametrize("present", [[True, False], [False, False]])
def test_a_group_of_one_or_none_has_loss_and_gradient_zero(loss, present):
    groups = groups_of([[2.0, 5.0]], [[1.0, 3.0]], [present])

    value = loss(groups)
    value.sum().backward()

    assert value.tolist() == [0.0]
    assert groups.completions.policy.grad.tolist() == [[0.0, 0.0]]
