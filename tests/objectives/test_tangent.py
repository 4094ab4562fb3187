from math import exp

import pytest
import torch

from veritune.objectives.tangent import exponential_with_tangent


def test_below_the_place_it_is_the_exponential():
    exponent = torch.tensor([-1e4, -2.0, 0.0, 2.9], dtype=torch.float64)

    assert torch.equal(exponential_with_tangent(exponent, tangent_from=3.0), exponent.exp())


def test_beyond_the_place_it_is_the_tangent_line():
    value = exponential_with_tangent(torch.tensor([5.0]).double(), tangent_from=3.0)

    assert value.item() == pytest.approx(exp(3) * (1 + 2))


def test_its_slope_is_that_of_the_exponential_until_it_stays():
    exponent = torch.tensor([1.0, 3.0, 1e4], dtype=torch.float64, requires_grad=True)

    exponential_with_tangent(exponent, tangent_from=3.0).sum().backward()

    assert exponent.grad.tolist() == pytest.approx([exp(1), exp(3), exp(3)])


def test_it_is_finite_where_the_exponential_overflows():
    exponent = torch.tensor([1e4, 1e30], requires_grad=True)

    value = exponential_with_tangent(exponent, tangent_from=3.0)
    value.sum().backward()

    assert torch.isfinite(value).all()
    assert torch.isfinite(exponent.grad).all()
    assert torch.isinf(exponent.exp()).all()


def test_the_slope_of_the_line_takes_no_digits_from_the_exponential_in_float32():
    exponent = torch.tensor([-3.0, 0.0], requires_grad=True)

    exponential_with_tangent(exponent, tangent_from=10.0).sum().backward()

    assert exponent.grad.tolist() == pytest.approx([exp(-3), 1.0], rel=1e-6)
