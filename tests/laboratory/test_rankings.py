from math import exp

import pytest
import torch

from veritune.laboratory.group_draws import GroupDraws, every_group
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import bradley_terry_problem
from veritune.laboratory.rankings import (
    every_ranking,
    expected_ranking_loss,
    wins_in_all_pairs,
    wins_of_first_over_last,
)
from veritune.objectives.paired.dpo import dpo_loss
from veritune.objectives.scored.plackett_luce import plackett_luce_loss

PROBLEM = bradley_terry_problem(3, seed=0)
POLICY = bradley_terry_problem(3, seed=1).reference


def one_group(*which):
    return GroupDraws(torch.tensor([which]), torch.ones(1, dtype=torch.float64))


def test_an_order_is_built_from_the_top():
    a, b, c = (exp(r) for r in PROBLEM.reward.tolist())

    rankings = every_ranking(one_group(0, 1, 2), PROBLEM.reward)

    found = dict(zip(map(tuple, rankings.which.tolist()), rankings.weight.tolist(), strict=True))
    assert len(found) == 6
    assert found[1, 0, 2] == pytest.approx(b / (a + b + c) * a / (a + c))
    assert found[2, 1, 0] == pytest.approx(c / (a + b + c) * b / (a + b))


@pytest.mark.parametrize("group_size", [1, 2, 3, 4])
def test_the_orders_of_all_groups_have_probability_one(group_size):
    groups = every_group(PROBLEM.reference, group_size)

    rankings = every_ranking(groups, PROBLEM.reward)

    assert float(rankings.weight.sum()) == pytest.approx(1, abs=1e-12)


def test_a_completion_that_is_there_twice_is_ranked_as_two():
    a, b, _ = (exp(r) for r in PROBLEM.reward.tolist())

    rankings = every_ranking(one_group(0, 0, 1), PROBLEM.reward)

    last = rankings.weight[rankings.which[:, 2] == 1].sum()
    assert float(last) == pytest.approx(2 * a / (2 * a + b) * a / (a + b))


def test_rankings_of_two_are_pairs():
    rankings = every_ranking(every_group(PROBLEM.reference, 2), PROBLEM.reward)

    found = expected_ranking_loss(plackett_luce_loss, PROBLEM, rankings, beta=0.3)(POLICY)

    pairs = population_loss(dpo_loss, PROBLEM, beta=0.3)(POLICY)
    assert float(found) == pytest.approx(float(pairs), abs=1e-13)


def test_the_expected_loss_is_the_cross_entropy_of_orders():
    rankings = every_ranking(one_group(0, 1, 2), PROBLEM.reward)
    implicit = 0.7 * (POLICY - PROBLEM.reference)

    found = expected_ranking_loss(plackett_luce_loss, PROBLEM, rankings, beta=0.7)(POLICY)

    under_policy = every_ranking(one_group(0, 1, 2), implicit).weight
    assert float(found) == pytest.approx(-float((rankings.weight * under_policy.log()).sum()))


def test_all_pairs_of_a_ranking_follow_the_reward_and_first_against_last_do_not():
    rankings = every_ranking(one_group(0, 1, 2), PROBLEM.reward)

    every, ends = (
        wins(rankings, 3).tolist() for wins in (wins_in_all_pairs, wins_of_first_over_last)
    )

    odds = exp(float(PROBLEM.reward[0] - PROBLEM.reward[1]))
    assert sum(map(sum, every)) == pytest.approx(1)
    assert sum(map(sum, ends)) == pytest.approx(1)
    assert every[0][1] / every[1][0] == pytest.approx(odds)
    assert abs(ends[0][1] / ends[1][0] / odds - 1) > 0.05
