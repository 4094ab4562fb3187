from math import exp, log

import pytest

from veritune.laboratory.minimize import minimize
from veritune.laboratory.population import population_loss
from veritune.objectives.paired.exo_pref import exo_pref_loss


def test_exo_pref_loss_and_its_derivatives_are_the_known_numbers(pairs):
    loss = exo_pref_loss(pairs, beta=0.1, epsilon=1e-3)
    loss.sum().backward()

    q = 1 / (1 + exp(-0.15))
    assert loss.item() == pytest.approx(q * log(q / 0.999) + (1 - q) * log((1 - q) / 0.001))
    assert loss.item() == pytest.approx(2.505517, abs=5e-7)
    # d loss / d margin = q (1 - q) (margin - log((1 - epsilon) / epsilon))
    force = 0.1 * q * (1 - q) * (0.15 - log(0.999 / 0.001))
    assert pairs.chosen.policy.grad.item() == pytest.approx(force)
    assert pairs.chosen.policy.grad.item() == pytest.approx(-0.167972, abs=1e-6)
    assert pairs.rejected.policy.grad.item() == pytest.approx(0.167972, abs=1e-6)


@pytest.mark.parametrize(
    ("win_probability", "expected"), [(0.6, 1.3814), (0.9, 5.5254), (1.0, 6.9068)]
)
def test_exo_pref_margin_of_one_comparison_is_not_that_of_bradley_terry(
    one_comparison, win_probability, expected
):
    problem = one_comparison(win_probability)

    found = minimize(
        population_loss(exo_pref_loss, problem, beta=1.0, epsilon=1e-3), problem.reference
    )

    log_ratio = found.policy - problem.reference
    margin = float(log_ratio[0] - log_ratio[1])
    assert found.gradient_norm < 1e-9
    assert margin == pytest.approx((2 * win_probability - 1) * log(0.999 / 0.001))
    assert margin == pytest.approx(expected, abs=5e-5)
    assert win_probability == 1 or abs(margin - log(win_probability / (1 - win_probability))) > 0.5
