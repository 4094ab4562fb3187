import pytest
import torch

from veritune.laboratory.lengths import with_lengths
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import bradley_terry_problem
from veritune.objectives.paired.dpo import dpo_loss
from veritune.objectives.paired.ipo_mean import ipo_mean_loss

PROBLEM = bradley_terry_problem(3, seed=0)
POLICY = bradley_terry_problem(3, seed=1).reference


def test_each_completion_has_its_length_on_either_side():
    length = [1, 4, 2]
    g = (POLICY - PROBLEM.reference).tolist()
    law, wins = PROBLEM.pair_law.tolist(), PROBLEM.preferences.tolist()

    expected = sum(
        2 * law[i][j] * wins[i][j] * (g[i] / length[i] - g[j] / length[j] - 1) ** 2
        for i in range(3)
        for j in range(3)
    )

    loss = with_lengths(ipo_mean_loss, torch.tensor(length))
    assert float(population_loss(loss, PROBLEM, tau=0.5)(POLICY)) == pytest.approx(expected)


def test_a_loss_of_whole_completions_does_not_see_lengths():
    lengths = torch.tensor([1, 4, 2])

    found = population_loss(with_lengths(dpo_loss, lengths), PROBLEM, beta=0.2)(POLICY)

    assert torch.equal(found, population_loss(dpo_loss, PROBLEM, beta=0.2)(POLICY))
