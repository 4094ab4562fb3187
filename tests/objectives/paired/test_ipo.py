import pytest

from veritune.laboratory.distances import total_variation
from veritune.laboratory.minimize import minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import cyclic_problem
from veritune.objectives.paired.ipo import ipo_loss, ipo_optimum


def test_ipo_loss_and_its_derivatives_are_the_known_numbers(pairs):
    loss = ipo_loss(pairs, tau=0.1)
    loss.sum().backward()

    assert loss.item() == pytest.approx((1.0 + 0.5 - 5.0) ** 2)
    assert loss.item() == pytest.approx(12.25)
    assert pairs.chosen.policy.grad.item() == pytest.approx(-7.0)
    assert pairs.rejected.policy.grad.item() == pytest.approx(7.0)


def test_ipo_minimizer_tilts_the_reference_by_the_win_probability():
    """Azar et al. 2023: also where no reward explains the preferences."""
    problem = cyclic_problem(num_completions=5, seed=2)

    found = minimize(population_loss(ipo_loss, problem, tau=0.5), problem.reference)

    assert found.gradient_norm < 1e-9
    assert total_variation(found.policy, ipo_optimum(problem, tau=0.5)) < 1e-6
    assert total_variation(found.policy, ipo_optimum(problem, tau=0.4)) > 1e-3
