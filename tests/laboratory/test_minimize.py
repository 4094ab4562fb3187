from math import inf

import pytest
import torch

from veritune.laboratory.distances import total_variation
from veritune.laboratory.minimize import distance_of_minimum, minimize

TARGET = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
UNIFORM = torch.full((3,), 1 / 3, dtype=torch.float64).log()


def cross_entropy(policy):
    return -(TARGET * policy).sum()


def test_minimize_finds_the_known_minimum_of_a_cross_entropy():
    found = minimize(cross_entropy, UNIFORM)

    assert found.gradient_norm < 1e-11
    assert found.smallest_curvature > 0
    assert total_variation(found.policy, TARGET.log()) < 1e-10
    assert found.loss == pytest.approx(float(-(TARGET * TARGET.log()).sum()))


def test_the_certificate_shows_that_a_search_was_cut_short():
    found = minimize(cross_entropy, UNIFORM, max_steps=1)

    assert found.num_steps == 1
    assert found.gradient_norm > 1e-6


def test_a_minimum_without_a_certificate_has_the_distance_that_is_given_for_it():
    found = minimize(cross_entropy, UNIFORM)
    cut_short = minimize(cross_entropy, UNIFORM, max_steps=1)

    assert distance_of_minimum(found, UNIFORM, uncertified=inf) == pytest.approx(0.7 - 1 / 3)
    assert distance_of_minimum(cut_short, UNIFORM, uncertified=inf) == inf
    assert distance_of_minimum(cut_short, UNIFORM, uncertified=0.0) == 0


def test_a_law_with_zeros_has_a_distance_only_where_it_may_lie_on_the_boundary():
    found = minimize(lambda policy: -policy[0], UNIFORM)
    corner = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).log()

    assert distance_of_minimum(found, corner, uncertified=inf) == inf
    near = distance_of_minimum(found, corner, uncertified=inf, may_lie_on_boundary=True)
    assert near < 1e-9


def test_the_certificate_shows_a_saddle():
    """At equal probabilities the gradient of this loss vanishes, and it is a maximum."""
    found = minimize(lambda policy: -(policy.exp() ** 2).sum(), UNIFORM)

    assert found.gradient_norm < 1e-11
    assert found.smallest_curvature < -1e-3


def test_minimize_leaves_a_region_of_negative_curvature():
    start = torch.tensor([0.34, 0.33, 0.33], dtype=torch.float64).log()

    found = minimize(lambda policy: -(policy.exp() ** 2).sum(), start)

    assert found.loss == pytest.approx(-1, abs=1e-6)


def test_minimize_does_not_step_over_an_infinite_wall():
    def walled(policy):
        beyond = policy[0].exp() >= 0.5
        return torch.where(beyond, inf, (policy[0] - 0.5) ** 2 + policy.exp().square().sum())

    found = minimize(walled, UNIFORM)

    assert float(found.policy[0].exp()) < 0.5
    assert found.loss < inf
