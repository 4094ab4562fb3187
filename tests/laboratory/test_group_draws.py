import math

import pytest
import torch

from veritune.laboratory.group_draws import (
    drawn_groups,
    every_group,
    expected_group_loss,
    proportional_group,
)
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import bradley_terry_problem
from veritune.objectives.scored.dpo_rw import dpo_rw_loss
from veritune.objectives.scored.exo_rw import exo_rw_loss

PROBLEM = bradley_terry_problem(4, seed=0)
POLICY = bradley_terry_problem(4, seed=1).reference


@pytest.mark.parametrize(("size", "group_size"), [(4, 2), (2, 5), (5, 3), (3, 3), (1, 4), (4, 1)])
def test_every_multiset_is_there_once_and_the_weights_sum_to_one(size, group_size):
    reference = bradley_terry_problem(size, seed=0).reference

    groups = every_group(reference, group_size)

    found = {tuple(sorted(row)) for row in groups.which.tolist()}
    assert len(found) == len(groups.which) == math.comb(group_size + size - 1, group_size)
    assert float(groups.weight.sum()) == pytest.approx(1, abs=1e-12)


def test_the_weight_of_a_group_is_multinomial():
    reference = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()

    groups = every_group(reference, 3)

    weights = {
        tuple(sorted(row)): weight
        for row, weight in zip(groups.which.tolist(), groups.weight.tolist(), strict=True)
    }
    assert weights[0, 1, 2] == pytest.approx(6 * 0.2 * 0.3 * 0.5)
    assert weights[1, 1, 2] == pytest.approx(3 * 0.3 * 0.3 * 0.5)
    assert weights[2, 2, 2] == pytest.approx(0.5**3)


@pytest.mark.parametrize("loss", [exo_rw_loss, dpo_rw_loss])
@pytest.mark.parametrize("group_size", [2, 3, 5])
def test_the_mean_over_multisets_is_that_over_ordered_groups(loss, group_size):
    groups = every_group(PROBLEM.reference, group_size)

    found = expected_group_loss(loss, PROBLEM, groups, beta_r=0.4, beta_pi=0.6)(POLICY)

    ordered = population_loss(loss, PROBLEM, group_size=group_size, beta_r=0.4, beta_pi=0.6)
    assert float(found) == pytest.approx(float(ordered(POLICY)), abs=1e-13)


def test_drawn_groups_approach_the_mean_over_all():
    generator = torch.Generator().manual_seed(0)
    drawn = drawn_groups(PROBLEM.reference, 3, 20_000, generator)
    everything = every_group(PROBLEM.reference, 3)

    first, second = (
        float(expected_group_loss(exo_rw_loss, PROBLEM, groups)(POLICY))
        for groups in (drawn, everything)
    )

    assert drawn.which.shape == (20_000, 3)
    assert float(drawn.weight.sum()) == pytest.approx(1)
    assert first == pytest.approx(second, rel=0.05)


def test_a_proportional_group_is_what_large_groups_tend_to():
    counts = torch.tensor([1, 4, 2])
    reference = (counts.double() / 7).log()
    problem = bradley_terry_problem(3, seed=0)
    problem = type(problem)(reference=reference, reward=problem.reward)
    policy = bradley_terry_problem(3, seed=1).reference

    limit = proportional_group(counts)
    values = [
        float(expected_group_loss(exo_rw_loss, problem, groups)(policy))
        for groups in (*(every_group(reference, size) for size in (8, 32, 128)), limit)
    ]

    assert limit.which.tolist() == [[0, 1, 1, 1, 1, 2, 2]]
    errors = [abs(value - values[-1]) for value in values[:-1]]
    assert errors[0] > 3 * errors[1] > 9 * errors[2] > 0
