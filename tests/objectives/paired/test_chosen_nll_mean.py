import pytest
import torch

from veritune.laboratory.distances import total_variation
from veritune.laboratory.lengths import with_lengths
from veritune.laboratory.minimize import minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import bradley_terry_problem
from veritune.objectives.paired.chosen_nll import chosen_nll_optimum
from veritune.objectives.paired.chosen_nll_mean import chosen_nll_mean_loss


def test_chosen_nll_mean_loss_and_its_derivatives_are_those_of_the_formula(pairs):
    loss = chosen_nll_mean_loss(pairs)
    loss.sum().backward()

    assert loss.item() == pytest.approx(12.0 / 10)
    assert pairs.chosen.policy.grad.item() == pytest.approx(-1 / 10)
    assert pairs.rejected.policy.grad is None


def test_its_minimizer_weighs_chosen_completions_by_their_inverse_length():
    problem = bradley_terry_problem(num_completions=4, seed=0)
    length = torch.tensor([1, 2, 5, 9])
    loss = with_lengths(chosen_nll_mean_loss, length)

    found = minimize(population_loss(loss, problem), problem.reference)

    law = chosen_nll_optimum(problem)
    assert found.gradient_norm < 1e-9
    assert total_variation(found.policy, torch.log_softmax(law - length.log(), dim=0)) < 1e-6
    assert total_variation(found.policy, law) > 1e-2
