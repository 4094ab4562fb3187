from math import exp

import pytest
import torch

from veritune.laboratory.problems import (
    bradley_terry_problem,
    cyclic_problem,
    deterministic_problem,
    disjoint_problem,
    mixture_problem,
    noisy_problem,
    sampled_problem,
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


def test_the_better_completion_always_wins_a_deterministic_problem():
    problem = deterministic_problem(num_completions=4, seed=0)
    better = problem.reward[:, None] > problem.reward[None, :]

    assert torch.equal(problem.preferences[better], torch.ones(6, dtype=torch.float64))
    assert torch.equal(problem.preferences.diagonal(), torch.full((4,), 0.5, dtype=torch.float64))


def test_labels_of_a_noisy_problem_are_flipped_at_the_given_rate():
    problem = noisy_problem(num_completions=4, seed=0, noise=0.1)
    better = problem.reward[:, None] > problem.reward[None, :]

    assert torch.allclose(problem.preferences[better], torch.tensor(0.9, dtype=torch.float64))
    total = problem.preferences + problem.preferences.T
    assert torch.allclose(total, torch.ones_like(total))


def test_nearly_disjoint_labels_leave_the_stated_probability_to_the_other_half():
    problem = disjoint_problem(8, seed=1, desirable_fraction=0.3, overlap=0.002)

    assert problem.desirable.exp()[:4].sum().item() == pytest.approx(0.998)
    assert problem.undesirable.exp()[:4].sum().item() == pytest.approx(0.002)
    expected = 0.3 * problem.desirable.exp() + 0.7 * problem.undesirable.exp()
    assert torch.allclose(problem.reference.exp(), expected)
    disjoint = disjoint_problem(8, seed=1, desirable_fraction=0.3, overlap=0.0)
    assert (disjoint.desirable.exp()[4:] == 0).all()


def test_sampled_pairs_have_frequencies_near_their_probabilities():
    problem = bradley_terry_problem(num_completions=3, seed=0)
    generator = torch.Generator().manual_seed(0)

    sampled = sampled_problem(problem, 200_000, generator)

    joint = (problem.pair_law + problem.pair_law.T) * problem.preferences
    found = (sampled.pair_law + sampled.pair_law.T) * sampled.preferences
    assert found.sum().item() == pytest.approx(1)
    assert (found * 200_000).round().allclose(found * 200_000, atol=1e-6)
    assert (found - joint).abs().max() < 5 * (joint.max() / 200_000) ** 0.5


def test_sampled_labels_are_counts_of_each_class():
    problem = mixture_problem(num_completions=4, seed=0, desirable_fraction=0.3)

    sampled = sampled_problem(problem, 50, torch.Generator().manual_seed(0))

    for law in (sampled.desirable, sampled.undesirable):
        counts = law.exp() * 50
        assert torch.allclose(counts, counts.round())
        assert law.exp().sum().item() == pytest.approx(1)
    assert sampled.reference is problem.reference
