import dataclasses

import pytest
import torch

from veritune.laboratory.distances import total_variation
from veritune.laboratory.problems import bradley_terry_problem
from veritune.objectives.paired.chosen_nll import chosen_nll_loss, chosen_nll_optimum


def test_chosen_nll_loss_and_its_derivatives_are_those_of_the_formula(pairs):
    loss = chosen_nll_loss(pairs)
    loss.sum().backward()

    assert loss.item() == 12.0
    assert pairs.chosen.policy.grad.item() == -1.0
    assert pairs.rejected.policy.grad is None


def test_the_law_of_chosen_completions_is_that_of_winners_counted_one_comparison_at_a_time():
    problem = bradley_terry_problem(num_completions=3, seed=0)
    reference, preferences = problem.reference.exp(), problem.preferences

    law = chosen_nll_optimum(problem).exp()

    for y in range(3):
        # Both places of a pair are drawn from the reference: y is in the first or in the second.
        wins = sum(
            reference[y] * reference[other] * preferences[y, other] * 2 for other in range(3)
        )
        assert law[y].item() == pytest.approx(wins.item())
    assert law.sum().item() == pytest.approx(1)
    assert total_variation(law.log(), problem.reference) > 1e-2


def test_a_pair_law_of_one_order_counts_as_one_of_both():
    problem = bradley_terry_problem(num_completions=4, seed=0)
    ordered = torch.triu(2 * problem.pair_law, diagonal=1) + problem.pair_law.diag().diag()

    one_order = chosen_nll_optimum(dataclasses.replace(problem, pair_law=ordered))

    assert torch.allclose(one_order, chosen_nll_optimum(problem))
