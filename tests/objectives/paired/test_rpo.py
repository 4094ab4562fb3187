from math import exp, log

import pytest

from veritune.laboratory.distances import total_variation
from veritune.laboratory.minimize import minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import bradley_terry_problem
from veritune.objectives.paired.chosen_nll import chosen_nll_optimum
from veritune.objectives.paired.dpo import dpo_loss, dpo_optimum
from veritune.objectives.paired.rpo import rpo_loss


def test_rpo_loss_and_its_derivatives_are_the_known_numbers(pairs):
    loss = rpo_loss(pairs, beta=0.1, eta=0.005)
    loss.sum().backward()

    assert loss.item() == pytest.approx(log(1 + exp(-0.1 * 1.5)) + 0.005 * 0.1 * 12)
    assert loss.item() == pytest.approx(0.626957, abs=1e-6)
    assert pairs.chosen.policy.grad.item() == pytest.approx(-0.046757, abs=1e-6)
    assert pairs.rejected.policy.grad.item() == pytest.approx(0.046257, abs=1e-6)


def test_without_a_baseline_it_is_dpo(pairs):
    assert rpo_loss(pairs, beta=0.1, eta=0.0).item() == dpo_loss(pairs, beta=0.1).item()


def test_its_minimizer_goes_from_that_of_dpo_to_the_law_of_chosen_completions():
    problem = bradley_terry_problem(num_completions=5, seed=0)

    def distances(eta):
        found = minimize(population_loss(rpo_loss, problem, beta=0.5, eta=eta), problem.reference)
        assert found.gradient_norm < 1e-9
        ends = dpo_optimum(problem, beta=0.5), chosen_nll_optimum(problem)
        return [total_variation(found.policy, end) for end in ends]

    to_dpo, to_chosen = zip(*map(distances, (1e-5, 1.0, 1e5)), strict=True)

    assert to_dpo[0] < 1e-3 < to_dpo[1] < to_dpo[2]
    assert to_chosen[0] > to_chosen[1] > 1e-3 > to_chosen[2]
