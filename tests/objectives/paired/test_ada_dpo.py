from math import exp, log

import pytest
import torch

from veritune.laboratory.distances import total_variation
from veritune.laboratory.minimize import minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import bradley_terry_problem
from veritune.logprobs import CompletionLogProbs, PairedLogProbs
from veritune.objectives.optimum import tilted_reference
from veritune.objectives.paired.ada_dpo import ada_dpo_loss
from veritune.objectives.paired.dpo import dpo_loss


def test_ada_dpo_loss_at_a_pinned_scale_is_that_of_the_formula(pairs):
    """With tau_0 = tau_max the scale is known, and so is everything else."""
    loss = ada_dpo_loss(pairs, beta=0.1, tau_0=0.5, tau_max=0.5, rho_0=0.2)
    loss.sum().backward()

    right = 1 / (1 + exp(-0.15 / 0.5))
    assert loss.item() == pytest.approx(-0.5 * log(right) + (0.2 - log(2)) * 0.5)
    assert pairs.chosen.policy.grad.item() == pytest.approx(-0.1 * (1 - right))
    assert pairs.rejected.policy.grad.item() == pytest.approx(0.1 * (1 - right))


def test_ada_dpo_loss_and_its_derivatives_are_the_known_numbers_and_the_penalty(pairs):
    """The known loss is that of the released code, which leaves the price of the scale out."""
    loss = ada_dpo_loss(pairs, beta=0.1, tau_0=0.1, tau_max=5.0, rho_0=0.2)
    loss.sum().backward()

    assert loss.item() == pytest.approx(0.022908 + (0.2 - log(2)) * 0.105712, abs=1e-6)
    assert pairs.chosen.policy.grad.item() == pytest.approx(
        -0.1 / (1 + exp(0.15 / 0.105712)), abs=1e-7
    )
    assert pairs.chosen.policy.grad.item() == pytest.approx(-0.019483, abs=1e-6)
    assert pairs.rejected.policy.grad.item() == pytest.approx(0.019483, abs=1e-6)


def test_ada_dpo_at_scale_one_is_dpo_plus_a_constant(pairs):
    loss = ada_dpo_loss(pairs, beta=0.1, tau_0=1.0, tau_max=1.0, rho_0=0.2)

    assert loss.item() == pytest.approx(dpo_loss(pairs, beta=0.1).item() + 0.2 - log(2))


@pytest.mark.parametrize(
    ("win_probability", "tau"), [(0.55, 0.1), (0.7, 0.1), (0.9, 5.0), (0.99, 5.0)]
)
def test_ada_dpo_margin_of_one_comparison_is_the_scaled_logit(one_comparison, win_probability, tau):
    """Hong et al. 2024, the proposition: the scale is the smallest or the largest, by entropy."""
    problem = one_comparison(win_probability)
    loss = population_loss(ada_dpo_loss, problem, beta=2.0, tau_0=0.1, tau_max=5.0, rho_0=0.2)

    found = minimize(loss, problem.reference)

    log_ratio = found.policy - problem.reference
    margin = 2.0 * float(log_ratio[0] - log_ratio[1])
    logit = log(win_probability / (1 - win_probability))
    assert found.gradient_norm < 1e-9
    assert margin == pytest.approx(tau * logit, rel=1e-6)
    # One scale for all would put the margin elsewhere.
    assert abs(margin - logit) > 0.1


def test_ada_dpo_minimizer_tilts_the_reference_where_every_preference_is_doubtful():
    problem = bradley_terry_problem(num_completions=5, seed=0)
    settings = {"beta": 0.5, "tau_0": 0.5, "tau_max": 5.0}

    doubtful, mixed = (
        minimize(population_loss(ada_dpo_loss, problem, **settings, rho_0=rho_0), problem.reference)
        for rho_0 in (0.68, 0.05)
    )

    claimed = tilted_reference(problem.reference, 0.5 * problem.reward / 0.5)
    assert doubtful.gradient_norm < 1e-9
    assert total_variation(doubtful.policy, claimed) < 1e-6
    assert total_variation(mixed.policy, claimed) > 1e-2


def test_ada_dpo_stays_finite_at_margins_of_ten_thousand_and_the_smallest_scale():
    log_ratio = torch.tensor([-1e4, 1e4])
    reference = torch.full_like(log_ratio, -2e4)
    policy = (reference + log_ratio).requires_grad_()
    length = torch.tensor([5, 5])
    pairs = PairedLogProbs(
        CompletionLogProbs(policy, length, reference),
        CompletionLogProbs(reference, length, reference),
    )

    for tau_max in (0.1, 5.0):
        loss = ada_dpo_loss(pairs, beta=1.0, tau_0=0.1, tau_max=tau_max, rho_0=0.2)
        (gradient,) = torch.autograd.grad(loss.sum(), policy)
        assert loss.isfinite().all()
        assert gradient.tolist() == [-1.0, 0.0]
