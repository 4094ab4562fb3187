"""Both forms of the discount: of policy and reference, and of the policy alone."""

import dataclasses
import math

import pytest
import torch

from veritune.logprobs import PairedLogProbs
from veritune.objectives.paired.dpo import dpo_loss
from veritune.objectives.paired.ld_dpo import ld_dpo_loss
from veritune.objectives.paired.ld_dpo_policy import ld_dpo_policy_loss


def whole(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64, requires_grad=True)


@pytest.fixture
def longer_rejected(pairs) -> PairedLogProbs:
    """All ten chosen tokens are common; ten of the twelve rejected ones, which are -12.5 of the
    policy's -15 and -12 of the reference's -14.5."""
    return PairedLogProbs(
        dataclasses.replace(
            pairs.chosen,
            policy_common=pairs.chosen.policy,
            reference_common=pairs.chosen.reference,
        ),
        dataclasses.replace(
            pairs.rejected, policy_common=whole(-12.5), reference_common=whole(-12.0).detach()
        ),
    )


def test_the_tokens_beyond_the_common_length_count_for_less(longer_rejected):
    loss = ld_dpo_loss(longer_rejected, beta=0.5, alpha=0.4)
    loss.sum().backward()

    rejected = (-12.5 + 0.4 * -2.5) - (-12.0 + 0.4 * -2.5)
    margin = 0.5 * (1.0 - rejected)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-margin)))
    force = 0.5 / (1 + math.exp(margin))
    side = longer_rejected.rejected
    assert longer_rejected.chosen.policy.grad.item() == pytest.approx(-force)
    assert side.policy.grad.item() == pytest.approx(0.4 * force)
    assert side.policy_common.grad.item() == pytest.approx(0.6 * force)


def test_the_policy_alone_can_be_discounted(longer_rejected):
    loss = ld_dpo_policy_loss(longer_rejected, beta=0.5, alpha=0.4)

    margin = 0.5 * (1.0 - ((-12.5 + 0.4 * -2.5) + 14.5))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-margin)))
    assert loss.item() != pytest.approx(
        ld_dpo_loss(longer_rejected, beta=0.5, alpha=0.4).item(), abs=1e-3
    )


@pytest.mark.parametrize("loss", [ld_dpo_loss, ld_dpo_policy_loss])
def test_in_full_both_are_dpo(loss, longer_rejected):
    full = loss(longer_rejected, beta=0.3, alpha=1.0)

    assert torch.allclose(full, dpo_loss(longer_rejected, beta=0.3))


def test_at_weight_zero_the_tokens_beyond_are_not_read(longer_rejected):
    other = PairedLogProbs(
        longer_rejected.chosen, dataclasses.replace(longer_rejected.rejected, policy=whole(-99.0))
    )

    of_one, of_other = (ld_dpo_loss(p, beta=0.3, alpha=0.0) for p in (longer_rejected, other))

    assert torch.equal(of_one, of_other)
