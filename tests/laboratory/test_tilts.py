import pytest
import torch

from veritune.laboratory.problems import bradley_terry_problem
from veritune.laboratory.tilts import tilted_per_token
from veritune.objectives.optimum import tilted_reference

PROBLEM = bradley_terry_problem(5, seed=3)
LENGTH = torch.tensor([1, 7, 2, 30, 4])


@pytest.mark.parametrize("scale", [0.1, 3.0, 50.0])
def test_the_law_sums_to_one_and_each_token_gains_the_same_constant(scale):
    law = tilted_per_token(PROBLEM.reference, scale * PROBLEM.reward, LENGTH)

    constant = (law - PROBLEM.reference) / LENGTH - scale * PROBLEM.reward
    assert float(law.logsumexp(dim=0)) == pytest.approx(0, abs=1e-11)
    assert torch.allclose(constant, constant[0])


def test_for_completions_of_one_token_it_is_the_tilted_reference():
    one = torch.ones(5, dtype=torch.int64)

    law = tilted_per_token(PROBLEM.reference, PROBLEM.reward, one)

    assert torch.allclose(law, tilted_reference(PROBLEM.reference, PROBLEM.reward), atol=1e-13)


def test_without_a_gain_it_is_the_reference():
    law = tilted_per_token(PROBLEM.reference, torch.zeros_like(PROBLEM.reward), LENGTH)

    assert torch.allclose(law, PROBLEM.reference, atol=1e-13)
