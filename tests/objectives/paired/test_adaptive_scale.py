from math import exp, log

import pytest
import torch

from veritune.objectives.paired.adaptive_scale import (
    adaptive_scale,
    linear_prices,
    projected_newton_scale,
    quadratic_prices,
    scaled_loss,
)

MARGINS = torch.tensor([0.0, 1e-6, 0.01, 0.15, 1.0, 4.0, 30.0, 1e3, 1e5], dtype=torch.float64)
PROBLEMS = [
    {"prices": linear_prices(0.2), "lowest": 0.1, "highest": 5.0},
    {"prices": linear_prices(0.01), "lowest": 0.1, "highest": 5.0},
    {"prices": linear_prices(0.6931), "lowest": 1e-3, "highest": 1e4},
    {"prices": linear_prices(0.2), "lowest": 0.1, "highest": 0.1},
    {"prices": quadratic_prices(0.05), "lowest": 0.1, "highest": log(2) / 0.1},
    {"prices": quadratic_prices(1e-3), "lowest": 1e-4, "highest": log(2) / 2e-3},
]


def entropy(probability):
    return -probability * log(probability) - (1 - probability) * log(1 - probability)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_no_scale_of_a_fine_grid_costs_less(problem):
    lowest, highest = problem["lowest"], problem["highest"]
    prices = problem["prices"]

    tau = adaptive_scale(MARGINS, **problem)
    best = scaled_loss(MARGINS, tau, prices)

    assert ((tau >= lowest) & (tau <= highest)).all()
    grid = torch.linspace(log(lowest), log(highest), 4001, dtype=torch.float64).exp()
    for scale in grid.clamp(lowest, highest):
        other = scaled_loss(MARGINS, scale.expand(len(MARGINS)), prices)
        assert (best <= other + 1e-12 * (1 + other.abs())).all()


def test_a_scale_inside_the_interval_is_where_the_entropy_meets_the_price():
    tau = adaptive_scale(
        torch.tensor([0.15], dtype=torch.float64), linear_prices(0.2), lowest=0.01, highest=5.0
    )

    favored = 1 / (1 + exp(-0.15 / tau.item()))
    assert 0.01 < tau.item() < 5.0
    assert entropy(favored) == pytest.approx(log(2) - 0.2, abs=1e-13)


def test_a_quadratic_scale_inside_the_interval_grows_as_the_entropy_falls():
    tau = adaptive_scale(
        torch.tensor([4.0], dtype=torch.float64), quadratic_prices(0.05), lowest=0.1, highest=7.0
    )

    favored = 1 / (1 + exp(-4.0 / tau.item()))
    assert 0.1 < tau.item() < 7.0
    assert tau.item() == pytest.approx((log(2) - entropy(favored)) / (2 * 0.05), abs=1e-12)


def test_the_scale_does_not_depend_on_the_sign_of_the_margin():
    problem = PROBLEMS[0]

    assert torch.equal(adaptive_scale(MARGINS, **problem), adaptive_scale(-MARGINS, **problem))


def test_five_plain_newton_steps_give_the_known_scale():
    """Hong et al. 2024: the value of the released code."""
    problem = {"prices": linear_prices(0.2), "lowest": 0.1, "highest": 5.0}
    margin = torch.tensor([0.15], dtype=torch.float64)

    five, two = (projected_newton_scale(margin, **problem, num_steps=n) for n in (5, 2))

    assert five.item() == pytest.approx(0.105712, abs=5e-7)
    assert five.item() == projected_newton_scale(margin, **problem).item()
    assert adaptive_scale(margin, **problem).item() == pytest.approx(five.item(), abs=1e-9)
    assert abs(two - five).item() > 1e-4


def test_where_plain_newton_steps_circle_the_search_finds_the_scale():
    """From tau = 1 they overshoot, from there they fall back to 1, and so on."""
    problem = {"prices": linear_prices(0.5), "lowest": 1.0, "highest": 1e6}
    margin = torch.tensor([21.7395], dtype=torch.float64)

    newton = [projected_newton_scale(margin, **problem, num_steps=n).item() for n in range(50, 54)]
    tau = adaptive_scale(margin, **problem).item()

    assert newton[:2] == newton[2:]
    assert min(abs(log(scale / tau)) for scale in newton) > 1
    assert entropy(1 / (1 + exp(-21.7395 / tau))) == pytest.approx(log(2) - 0.5, abs=1e-12)


def test_the_scale_is_in_double_precision_and_carries_no_gradient():
    margin = torch.tensor([0.3, -2.0], requires_grad=True)

    tau = adaptive_scale(margin, **PROBLEMS[0])

    assert tau.dtype == torch.float64
    assert not tau.requires_grad
    assert adaptive_scale(margin[:0], **PROBLEMS[0]).shape == (0,)


def test_the_first_plain_newton_step_goes_from_one():
    problem = {"prices": linear_prices(0.2), "lowest": 0.01, "highest": 5.0}

    once = projected_newton_scale(torch.tensor([1.0]).double(), **problem, num_steps=1)

    favored = 1 / (1 + exp(-1.0))
    slope = entropy(favored) - log(2) + 0.2
    assert once.item() == pytest.approx(1 - slope / (favored * (1 - favored)))
