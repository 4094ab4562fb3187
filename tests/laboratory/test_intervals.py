import pytest
import torch

from veritune.laboratory.intervals import grid_minimum

LOW = torch.tensor([-3.0, 0.1, 2.0], dtype=torch.float64)
HIGH = torch.tensor([50.0, 5.0, 9.0], dtype=torch.float64)


def test_the_smallest_value_inside_is_found_to_eight_digits():
    place = torch.tensor([0.7, 1.3, 8.9], dtype=torch.float64)

    found = grid_minimum(lambda points: (points - place).cosh(), LOW, HIGH)

    assert found.tolist() == pytest.approx(place.tolist(), abs=5e-8)


def test_a_function_that_only_rises_or_only_falls_is_smallest_exactly_at_an_end():
    assert torch.equal(grid_minimum(torch.exp, LOW, HIGH), LOW)
    assert torch.equal(grid_minimum(torch.neg, LOW, HIGH), HIGH)


def test_more_rounds_give_more_digits():
    errors = [
        abs(
            grid_minimum(
                lambda points: (points - 1 / 3).abs(), LOW[:1], HIGH[:1], num_rounds=rounds
            ).item()
            - 1 / 3
        )
        for rounds in (2, 5, 9)
    ]

    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-9


def test_intervals_of_any_shape_are_searched_each_on_its_own():
    place = torch.tensor([[0.2, 0.4], [0.6, 0.8]], dtype=torch.float64)

    found = grid_minimum(
        lambda points: (points - place) ** 2, torch.zeros_like(place), torch.ones_like(place)
    )

    assert torch.allclose(found, place, atol=1e-7)
