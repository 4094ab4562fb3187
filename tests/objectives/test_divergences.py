"""f, f' and the inverse of f' belong together, for each divergence."""

import pytest
import torch

from veritune.objectives.divergences import CHI_SQUARE, KL, SOFT_CHI_SQUARE

ALL = pytest.mark.parametrize(
    "divergence", [KL, CHI_SQUARE, SOFT_CHI_SQUARE], ids=["kl", "chi_square", "soft_chi_square"]
)
RATIOS = torch.tensor([1e-6, 0.1, 0.5, 0.999, 1.0, 1.001, 2.0, 30.0], dtype=torch.float64)


@ALL
def test_the_derivative_is_that_of_the_generator(divergence):
    ratio = RATIOS.clone().requires_grad_()

    divergence.generator(ratio).sum().backward()

    assert torch.allclose(ratio.grad, divergence.derivative(RATIOS))


@ALL
def test_the_inverse_undoes_the_derivative(divergence):
    assert torch.allclose(divergence.inverse_derivative(divergence.derivative(RATIOS)), RATIOS)


@ALL
def test_the_generator_is_zero_at_one_and_convex(divergence):
    ratio = torch.linspace(0, 5, 501, dtype=torch.float64)
    values = divergence.generator(ratio)

    assert divergence.generator(torch.ones(1)).item() == 0
    assert (values[:-2] - 2 * values[1:-1] + values[2:] > 0).all()


@ALL
def test_the_generator_is_finite_at_zero(divergence):
    assert torch.isfinite(divergence.generator(torch.zeros(1))).all()


def test_each_generator_has_the_values_of_its_formula():
    ratio = torch.tensor([0.5, 3.0], dtype=torch.float64)
    half_log = 0.5 * torch.tensor(0.5).double().log().item()

    assert KL.generator(ratio).tolist() == pytest.approx([half_log, 3 * 1.0986122886681098])
    assert CHI_SQUARE.generator(ratio).tolist() == pytest.approx([0.125, 2.0])
    assert SOFT_CHI_SQUARE.generator(ratio).tolist() == pytest.approx([half_log + 0.5, 2.0])


def test_soft_chi_square_answers_below_one_like_kl_and_above_like_chi_square():
    slope = torch.tensor([-3.0, -0.1, 0.0, 0.1, 50.0], dtype=torch.float64)

    found = SOFT_CHI_SQUARE.inverse_derivative(slope)

    assert found[:2].tolist() == pytest.approx((slope[:2]).exp().tolist())
    assert found[2:].tolist() == pytest.approx((slope[2:] + 1).tolist())


def test_soft_chi_square_has_finite_gradients_far_out():
    slope = torch.tensor([-1e4, 1e4], requires_grad=True)

    SOFT_CHI_SQUARE.inverse_derivative(slope).sum().backward()

    assert slope.grad.tolist() == [0.0, 1.0]
