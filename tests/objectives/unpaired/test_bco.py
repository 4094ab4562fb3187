import dataclasses
from math import exp, log

import pytest
import torch

from veritune.logprobs import CompletionLogProbs, PairedLogProbs, UnpairedLogProbs
from veritune.objectives.paired.dpo import dpo_loss
from veritune.objectives.unpaired.bco import bco_loss


@pytest.fixture
def shifted(labels):
    """The labels after steps whose mean log-ratio was that of the two: delta is 0.025."""
    return dataclasses.replace(labels, mean_log_ratio=torch.tensor(0.25, dtype=torch.float64))


def test_bco_loss_and_its_derivatives_are_the_known_numbers(shifted):
    mean = bco_loss(shifted, beta=0.1).mean()
    mean.backward()

    desirable = 1 / (1 + exp(-(0.1 * 1.0 - 0.025)))
    undesirable = 1 / (1 + exp(0.1 * -0.5 - 0.025))
    assert mean.item() == pytest.approx(-log(desirable) - log(undesirable))
    assert mean.item() == pytest.approx(1.312700, abs=5e-7)
    d_chosen, d_rejected = shifted.completion.policy.grad.tolist()
    assert d_chosen == pytest.approx(-0.1 * (1 - desirable))
    assert d_chosen == pytest.approx(-0.048126, abs=1e-6)
    assert d_rejected == pytest.approx(0.1 * (1 - undesirable))
    assert d_rejected == pytest.approx(0.048126, abs=1e-6)


def test_bco_sends_no_gradient_through_the_mean_log_ratio(labels):
    mean_log_ratio = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)

    bco_loss(dataclasses.replace(labels, mean_log_ratio=mean_log_ratio)).sum().backward()

    assert mean_log_ratio.grad is None


def test_bco_weighs_both_classes_alike_whatever_their_counts(shifted):
    plain = bco_loss(shifted)

    uneven = bco_loss(dataclasses.replace(shifted, num_desirable=1, num_undesirable=3))

    # Four examples: the one desirable counts 4, each of the three undesirable 4/3.
    assert torch.allclose(uneven, plain / 2 * torch.tensor([4.0, 4 / 3]).double())


def test_bco_of_a_desirable_and_an_undesirable_completion_bounds_dpo_of_the_pair():
    """Jung et al. 2024, the theorem on the bound, and the shift under which it stays one."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.zeros(400, dtype=torch.float64)
    chosen, rejected = (
        CompletionLogProbs(
            30 * torch.randn(400, generator=generator, dtype=torch.float64),
            torch.ones(400, dtype=torch.int64),
            reference,
        )
        for _ in range(2)
    )

    def bco_of(completion, is_desirable, delta):
        labels = UnpairedLogProbs(
            completion,
            torch.full((400,), is_desirable),
            num_desirable=400,
            num_undesirable=400,
            mean_log_ratio=torch.tensor(delta / 0.1, dtype=torch.float64),
        )
        # Without the class weight of 2.
        return bco_loss(labels, beta=0.1) / 2

    dpo = dpo_loss(PairedLogProbs(chosen, rejected), beta=0.1)
    for delta in (-3.0, 0.0, 0.4):
        both = bco_of(chosen, True, delta) + bco_of(rejected, False, delta)
        assert (both > dpo).all()
        # The mean of the two, in place of their sum, is no bound.
        assert (both / 2 < dpo).any()


def test_bco_logit_of_a_completion_settles_at_the_log_odds_of_its_labels(labels):
    """Without normalization: twice as many desirable as undesirable labels at one completion."""
    log_ratio = 0.25 + log(2.0)
    policy = (labels.completion.reference + log_ratio).requires_grad_()
    completion = dataclasses.replace(labels.completion, policy=policy)
    data = dataclasses.replace(
        labels, completion=completion, mean_log_ratio=torch.tensor(0.25, dtype=torch.float64)
    )

    desirable, undesirable = bco_loss(data, beta=1.0).unbind()
    (2 * desirable + undesirable).backward()

    assert policy.grad.sum().item() == pytest.approx(0, abs=1e-12)
