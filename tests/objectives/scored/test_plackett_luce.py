from itertools import permutations, product
from math import exp, log

import pytest
import torch

from veritune.laboratory.distances import total_variation
from veritune.laboratory.minimize import minimize
from veritune.laboratory.problems import bradley_terry_problem
from veritune.logprobs import CompletionLogProbs, PairedLogProbs, ScoredLogProbs
from veritune.objectives.paired.dpo import dpo_loss
from veritune.objectives.scored.plackett_luce import (
    plackett_luce_initial_loss,
    plackett_luce_loss,
    plackett_luce_optimum,
)


def test_plackett_luce_loss_of_two_completions_is_that_of_dpo(groups):
    loss = plackett_luce_loss(groups, beta=0.1)
    loss.sum().backward()

    # The known numbers of DPO.
    assert loss.item() == pytest.approx(0.620957, abs=5e-7)
    chosen, rejected = groups.completions.policy.grad[0].tolist()
    assert chosen == pytest.approx(-0.046257, abs=1e-6)
    assert rejected == pytest.approx(0.046257, abs=1e-6)


def test_plackett_luce_and_dpo_agree_at_every_margin(group_of):
    for log_ratio in (-1e4, -3.0, 0.0, 0.5, 1e4):
        group = group_of([log_ratio, 0.2], [3.0, 1.0])
        chosen, rejected = (
            CompletionLogProbs(
                group.completions.policy[:, i],
                group.completions.length[:, i],
                group.completions.reference[:, i],
            )
            for i in (0, 1)
        )

        dpo = dpo_loss(PairedLogProbs(chosen, rejected), beta=0.3)

        assert torch.allclose(plackett_luce_loss(group, beta=0.3), dpo)


@pytest.mark.parametrize("num_completions", [1, 3, 4])
def test_plackett_luce_loss_is_the_likelihood_of_the_ranking_from_the_top(
    group_of, num_completions
):
    log_ratios = [0.4, -1.0, 2.1, 0.1][:num_completions]
    scores = [1.0, 2.0, -1.0, 0.3][:num_completions]

    loss = plackett_luce_loss(group_of(log_ratios, scores), beta=0.7)

    left = sorted(range(num_completions), key=lambda i: -scores[i])
    likelihood = 1.0
    while left:
        strengths = [exp(0.7 * log_ratios[i]) for i in left]
        likelihood *= strengths[0] / sum(strengths)
        left.pop(0)
    assert loss.item() == pytest.approx(-log(likelihood), abs=1e-12)


def test_plackett_luce_puts_tied_completions_among_those_that_are_left_for_each_other(group_of):
    log_ratios = [0.4, -1.0, 2.1]

    loss = plackett_luce_loss(group_of(log_ratios, [5.0, 5.0, 1.0]), beta=0.7)

    first, second, third = (exp(0.7 * g) for g in log_ratios)
    everyone = first + second + third
    assert loss.item() == pytest.approx(-log(first / everyone) - log(second / everyone))


def test_plackett_luce_reads_only_the_order_of_the_scores(group_of):
    log_ratios = [0.4, -1.0, 2.1]

    near, far = (
        plackett_luce_loss(group_of(log_ratios, scores))
        for scores in ([0.2, 0.1, 0.0], [9.0, 3.0, -1e4])
    )

    assert torch.equal(near, far)
    assert not torch.equal(near, plackett_luce_loss(group_of(log_ratios, [0.1, 0.2, 0.0])))


def test_plackett_luce_initial_loss_counts_how_many_are_left_at_each_place(group_of):
    distinct = plackett_luce_initial_loss(group_of([0.0] * 4, [1.0, 7.0, 3.0, 2.0]))
    tied = plackett_luce_initial_loss(group_of([0.0] * 4, [1.0, 7.0, 7.0, 2.0]))

    assert distinct.item() == pytest.approx(log(4 * 3 * 2 * 1))
    assert tied.item() == pytest.approx(log(4 * 4 * 2 * 1))


def expected_loss(problem, behavior, group_size, beta):
    """Over every group that a law draws and every ranking of it, by Plackett-Luce of the reward."""
    groups, rankings, weights = [], [], []
    strength = problem.reward.exp().tolist()
    for group in product(range(problem.num_completions), repeat=group_size):
        for order in permutations(range(group_size)):
            weight = float(behavior[list(group)].sum().exp())
            for place in range(group_size):
                left = [strength[group[i]] for i in order[place:]]
                weight *= left[0] / sum(left)
            groups.append(group)
            rankings.append([-float(order.index(i)) for i in range(group_size)])
            weights.append(weight)
    which, weight = torch.tensor(groups), torch.tensor(weights, dtype=torch.float64)
    assert float(weight.sum()) == pytest.approx(1)

    def loss(policy):
        completions = CompletionLogProbs(
            policy[which], torch.ones_like(which), problem.reference[which]
        )
        data = ScoredLogProbs(
            completions,
            torch.tensor(rankings, dtype=torch.float64),
            torch.ones_like(which, dtype=torch.bool),
        )
        return (weight * plackett_luce_loss(data, beta=beta)).sum()

    return loss


@pytest.mark.parametrize("group_size", [2, 3])
@pytest.mark.parametrize("draws", ["reference", "uniform"])
def test_plackett_luce_minimizer_is_the_tilted_reference_if_rankings_follow_a_reward(
    group_size, draws
):
    """Rafailov et al. 2023, appendix A.3: whatever law the ranked completions come from."""
    problem = bradley_terry_problem(num_completions=4, seed=0)
    uniform = torch.full((4,), 0.25, dtype=torch.float64).log()
    behavior = {"reference": problem.reference, "uniform": uniform}[draws]

    found = minimize(expected_loss(problem, behavior, group_size, beta=0.5), problem.reference)

    assert found.gradient_norm < 1e-9
    assert found.smallest_curvature > 0
    assert total_variation(found.policy, plackett_luce_optimum(problem, beta=0.5)) < 1e-6
    assert total_variation(found.policy, plackett_luce_optimum(problem, beta=0.6)) > 1e-2
