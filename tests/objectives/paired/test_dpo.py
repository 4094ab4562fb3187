import dataclasses
from math import exp, log

import pytest

from veritune.laboratory.distances import total_variation
from veritune.laboratory.minimize import minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import (
    bradley_terry_problem,
    cyclic_problem,
    independent_pairs,
)
from veritune.objectives.paired.dpo import dpo_loss, dpo_optimum


def test_dpo_loss_and_its_derivatives_are_the_known_numbers(pairs):
    loss = dpo_loss(pairs, beta=0.1)
    loss.sum().backward()

    assert loss.item() == pytest.approx(-log(1 / (1 + exp(-0.1 * (1.0 - -0.5)))))
    assert loss.item() == pytest.approx(0.620957, abs=5e-7)
    force = 0.1 * (1 - 1 / (1 + exp(-0.1 * 1.5)))
    assert pairs.chosen.policy.grad.item() == pytest.approx(-force)
    assert pairs.chosen.policy.grad.item() == pytest.approx(-0.046257, abs=1e-6)
    assert pairs.rejected.policy.grad.item() == pytest.approx(0.046257, abs=1e-6)


def test_dpo_minimizer_is_the_tilted_reference_when_preferences_are_bradley_terry():
    """Rafailov et al. 2023, eq. 4: pi*(y) is proportional to pi_ref(y) exp(r(y) / beta)."""
    problem = bradley_terry_problem(num_completions=6, seed=0)

    found = minimize(population_loss(dpo_loss, problem, beta=0.5), problem.reference)

    assert found.gradient_norm < 1e-9
    assert total_variation(found.policy, dpo_optimum(problem, beta=0.5)) < 1e-6
    assert total_variation(found.policy, dpo_optimum(problem, beta=0.6)) > 1e-2


def test_dpo_minimizer_depends_on_the_pair_law_only_when_no_reward_explains_the_preferences():
    def shift(problem):
        """How far the minimizer moves when pairs come from another law."""
        uniform = problem.reference.new_full((problem.num_completions,), 1 / 5).log()
        other = dataclasses.replace(problem, pair_law=independent_pairs(uniform))
        first, second = (
            minimize(population_loss(dpo_loss, p, beta=0.5), p.reference).policy
            for p in (problem, other)
        )
        return total_variation(first, second)

    assert shift(bradley_terry_problem(num_completions=5, seed=1)) < 1e-6
    assert shift(cyclic_problem(num_completions=5, seed=1)) > 1e-2
