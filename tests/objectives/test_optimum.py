import pytest
import torch

from veritune.laboratory.problems import cyclic_problem
from veritune.objectives.optimum import FiniteProblem, tilted_reference, win_probability


def test_tilted_reference_is_proportional_to_reference_times_exponential():
    reference = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    tilt = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)

    found = tilted_reference(reference.log(), tilt).exp()

    unnormalized = reference * tilt.exp()
    assert torch.allclose(found, unnormalized / unnormalized.sum())


def test_tilted_reference_ignores_a_constant():
    reference = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    tilt = torch.tensor([1.0, 2.0], dtype=torch.float64)

    assert torch.allclose(tilted_reference(reference, tilt), tilted_reference(reference, tilt + 9))


def test_win_probability_averages_over_the_opponents_in_the_second_place():
    problem = FiniteProblem(
        reference=torch.tensor([0.5, 0.5], dtype=torch.float64).log(),
        preferences=torch.tensor([[0.5, 0.9], [0.1, 0.5]], dtype=torch.float64),
        pair_law=torch.tensor([[0.0, 0.4], [0.2, 0.4]], dtype=torch.float64),
    )

    first, second = win_probability(problem).tolist()

    assert first == pytest.approx(0.2 * 0.5 + 0.8 * 0.9)
    assert second == pytest.approx(0.2 * 0.1 + 0.8 * 0.5)


def test_win_probabilities_against_the_own_law_average_to_one_half():
    problem = cyclic_problem(num_completions=5, seed=0)

    average = float((problem.reference.exp() * win_probability(problem)).sum())

    assert average == pytest.approx(0.5)
