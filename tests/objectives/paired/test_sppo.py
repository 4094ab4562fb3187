import pytest
import torch

from veritune.laboratory.distances import total_variation
from veritune.laboratory.minimize import minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import cyclic_problem
from veritune.objectives.optimum import tilted_reference, win_probability
from veritune.objectives.paired.sppo import sppo_loss


def test_sppo_loss_and_its_derivatives_are_those_of_the_formula(pairs):
    loss = sppo_loss(pairs, beta=0.5)
    loss.sum().backward()

    assert loss.item() == pytest.approx((1.0 - 1.0) ** 2 + (-0.5 + 1.0) ** 2)
    assert pairs.chosen.policy.grad.item() == pytest.approx(0.0, abs=1e-6)
    assert pairs.rejected.policy.grad.item() == pytest.approx(2 * 0.5, abs=1e-6)


def test_unnormalized_its_minimizer_is_a_regression_on_the_win_probability():
    """Also where no reward explains the preferences."""
    problem = cyclic_problem(num_completions=5, seed=0)
    log_ratio = (2 * win_probability(problem) - 1) / (2 * 0.5)
    policy = (problem.reference + log_ratio).requires_grad_()

    population_loss(sppo_loss, problem, beta=0.5)(policy).backward()
    at_claim = policy.grad.norm().item()

    elsewhere = (problem.reference + 0.9 * log_ratio).requires_grad_()
    population_loss(sppo_loss, problem, beta=0.5)(elsewhere).backward()

    assert at_claim < 1e-12
    assert elsewhere.grad.norm().item() > 1e-3
    # Its own normalization does not hold: that is what the card says.
    assert abs(torch.logsumexp(policy.detach(), dim=0).item()) > 1e-3


def test_its_minimizer_among_laws_is_not_the_tilted_reference_of_the_game():
    """Wu et al. 2024 take the log of the normalizer to be 1 / (2 beta), which it is not.

    With the multiplier nu of the normalization, a log-ratio g solves g + nu exp(g) = target: the
    pairs come from the reference, so every completion counts as often as the reference says.
    """
    problem = cyclic_problem(num_completions=5, seed=0)

    found = minimize(population_loss(sppo_loss, problem, beta=0.1), problem.reference)

    target = (win_probability(problem) - 0.5) / 0.1
    log_ratio = found.policy - problem.reference
    multiplier = (target - log_ratio) / log_ratio.exp()
    assert found.gradient_norm < 1e-9
    assert torch.allclose(multiplier, multiplier.mean().expand(5), rtol=1e-8)
    # Unnormalized, the probabilities sum to more than one.
    assert multiplier.mean().item() > 1e-2
    tilted = tilted_reference(problem.reference, win_probability(problem) / 0.1)
    assert total_variation(found.policy, tilted) > 1e-2
