from math import exp, log

import pytest
import torch

from veritune.laboratory.distances import total_variation
from veritune.laboratory.minimize import minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import cyclic_problem
from veritune.logprobs import CompletionLogProbs, ScoredLogProbs
from veritune.objectives.optimum import tilted_reference, win_probability
from veritune.objectives.paired.nca import nca_loss
from veritune.objectives.scored.nca_rw import nca_rw_loss


def test_nca_loss_and_its_derivatives_are_those_of_the_formula(pairs):
    loss = nca_loss(pairs, beta=0.2)
    loss.sum().backward()

    expected = log(1 + exp(-0.2)) + 0.5 * log(1 + exp(0.2)) + 0.5 * log(1 + exp(-0.1))
    assert loss.item() == pytest.approx(expected)
    rising = 0.2 / (1 + exp(0.2)) - 0.5 * 0.2 / (1 + exp(-0.2))
    assert pairs.chosen.policy.grad.item() == pytest.approx(-rising, abs=1e-6)
    assert pairs.rejected.policy.grad.item() == pytest.approx(0.5 * 0.2 / (1 + exp(0.1)), abs=1e-6)


def test_unnormalized_its_minimizer_is_twice_the_share_of_chosen_ones():
    """Both places of a pair are drawn alike, so the share is the win probability."""
    problem = cyclic_problem(num_completions=5, seed=0)

    def slope(factor):
        log_ratio = (factor * win_probability(problem)).log() / 0.5
        policy = (problem.reference + log_ratio).requires_grad_()
        population_loss(nca_loss, problem, beta=0.5)(policy).backward()
        return policy.grad.norm().item()

    assert slope(2.0) < 1e-12
    assert slope(1.9) > 1e-3


def test_at_beta_one_its_minimizer_is_twice_the_reference_times_the_win_probability():
    """For any preferences, if pairs come from the reference: then it sums to one."""
    problem = cyclic_problem(num_completions=5, seed=0)

    one, half = (
        minimize(population_loss(nca_loss, problem, beta=beta), problem.reference)
        for beta in (1.0, 0.5)
    )

    share = (2 * win_probability(problem)).log()
    assert one.gradient_norm < 1e-9
    assert total_variation(one.policy, problem.reference + share) < 1e-6
    assert total_variation(half.policy, tilted_reference(problem.reference, share / 0.5)) > 1e-3


def test_nca_is_that_of_scored_groups_of_two_with_all_of_the_share_at_one(pairs):
    groups = ScoredLogProbs(
        completions=CompletionLogProbs(
            *(
                torch.stack([getattr(pairs.chosen, name), getattr(pairs.rejected, name)], dim=1)
                for name in ("policy", "length", "reference")
            )
        ),
        scores=torch.tensor([[1e6, 0.0]], dtype=torch.float64),
        present=torch.tensor([[True, True]]),
    )

    assert nca_loss(pairs, beta=0.2).item() == pytest.approx(
        nca_rw_loss(groups, alpha=1.0, beta=0.2).item()
    )
