from math import exp, log

import pytest
import torch

from veritune.laboratory.distances import kl
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import bradley_terry_problem
from veritune.logprobs import CompletionLogProbs, PairedLogProbs
from veritune.objectives.paired.pmle import pmle_loss
from veritune.objectives.paired.pmle_kl import pmle_kl_loss


def test_pmle_kl_loss_adds_the_mean_penalty_of_both_completions(pairs):
    loss = pmle_kl_loss(pairs, gamma=0.1, kl_weight=0.2)
    loss.sum().backward()

    right = 1 / (1 + exp(-0.3))
    chosen = exp(1) * 1 - exp(1) + 1
    rejected = exp(-0.5) * -0.5 - exp(-0.5) + 1
    assert loss.item() == pytest.approx(-log(right) + 0.2 * (chosen + rejected) / 2)
    # The penalty's derivative is ratio * log_ratio.
    assert pairs.chosen.policy.grad.item() == pytest.approx(-0.1 * (1 - right) + 0.1 * exp(1))
    assert pairs.rejected.policy.grad.item() == pytest.approx(
        0.1 * (1 - right) + 0.1 * exp(-0.5) * -0.5
    )


def test_pmle_kl_penalty_is_the_exact_kl_when_pairs_come_from_the_reference():
    problem = bradley_terry_problem(num_completions=5, seed=5)
    policy = torch.log_softmax(problem.reference + 0.5 * problem.reward, dim=-1)

    with_penalty = population_loss(pmle_kl_loss, problem, gamma=0.1, kl_weight=1.0)(policy)
    without = population_loss(pmle_loss, problem, gamma=0.1)(policy)
    penalty = float(with_penalty - without)

    assert penalty == pytest.approx(kl(policy, problem.reference))
    assert abs(penalty - kl(problem.reference, policy)) > 1e-3


def test_pmle_kl_penalty_is_a_line_beyond_three_nats():
    def loss_at(log_ratio):
        reference = torch.tensor([-10.0], dtype=torch.float64)
        completion = CompletionLogProbs(reference + log_ratio, torch.tensor([4]), reference)
        both_alike = PairedLogProbs(chosen=completion, rejected=completion)
        return pmle_kl_loss(both_alike, gamma=0.1, kl_weight=1.0).item() - log(2)

    assert loss_at(3.0) == pytest.approx(2 * exp(3) + 1)
    assert loss_at(5.0) - loss_at(4.0) == pytest.approx(3 * exp(3))
