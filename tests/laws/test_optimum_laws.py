"""Every claimed optimum is where the exact population loss has its minimum."""

import pytest

from veritune.laboratory.distances import total_variation
from veritune.laboratory.minimize import minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import bradley_terry_problem, mixture_problem


@pytest.fixture
def problem(card):
    if card.kind in ("unpaired", "demonstration"):
        return mixture_problem(num_completions=6, seed=7, desirable_fraction=0.39)
    return bradley_terry_problem(num_completions=6, seed=7)


def test_the_minimizer_of_the_population_loss_is_the_claimed_optimum(card, settings, problem):
    if card.optimum is None:
        pytest.skip("no optimum is claimed")
    claimed = card.optimum(problem, **settings)

    found = minimize(population_loss(card.loss, problem, **settings), problem.reference)

    assert found.gradient_norm < 1e-9
    assert found.smallest_curvature > 0
    assert total_variation(found.policy, claimed) < 1e-6
    assert float(claimed.logsumexp(dim=0)) == pytest.approx(0, abs=1e-12)
    # The check can fail: the search had to leave the reference to get there.
    assert total_variation(problem.reference, claimed) > 1e-2
