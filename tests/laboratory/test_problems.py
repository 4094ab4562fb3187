from math import exp

import pytest
import torch

from veritune.laboratory.problems import (
    bradley_terry_problem,
    cyclic_problem,
    mixture_problem,
)


@pytest.mark.parametrize("make", [bradley_terry_problem, cyclic_problem])
def test_a_problem_of_pairs_is_made_of_laws(make):
    problem = make(num_completions=5, seed=0)

    assert float(problem.reference.exp().sum()) == pytest.approx(1)
    assert float(problem.pair_law.sum()) == pytest.approx(1)
    both_ways = problem.preferences + problem.preferences.T
    assert torch.allclose(both_ways, torch.ones(5, 5, dtype=torch.float64))


def test_bradley_terry_preferences_follow_the_reward():
    problem = bradley_terry_problem(num_completions=4, seed=1)
    first, second = problem.reward[:2].tolist()

    assert float(problem.preferences[0, 1]) == pytest.approx(1 / (1 + exp(second - first)))


def test_cyclic_preferences_of_three_go_around():
    preferences = cyclic_problem(num_completions=3, seed=0).preferences

    assert preferences[1, 0] > 0.5
    assert preferences[2, 1] > 0.5
    assert preferences[0, 2] > 0.5


def test_the_reference_of_a_mixture_problem_is_the_mixture():
    problem = mixture_problem(num_completions=5, seed=0, desirable_fraction=0.3)

    mixture = 0.3 * problem.desirable.exp() + 0.7 * problem.undesirable.exp()

    assert torch.allclose(problem.reference.exp(), mixture)
    assert not torch.allclose(problem.desirable, problem.undesirable)


def test_the_seed_decides_the_problem():
    first, again, other = (bradley_terry_problem(4, seed) for seed in (0, 0, 1))

    assert torch.equal(first.reward, again.reward)
    assert not torch.equal(first.reward, other.reward)
