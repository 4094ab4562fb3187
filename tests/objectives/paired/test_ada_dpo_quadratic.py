from math import exp, log

import pytest

from veritune.laboratory.minimize import minimize
from veritune.laboratory.population import population_loss
from veritune.objectives.paired.ada_dpo_quadratic import ada_dpo_quadratic_loss


def test_ada_dpo_quadratic_loss_at_the_smallest_scale_is_that_of_the_formula(pairs):
    """At so high a price the smallest scale is the best."""
    loss = ada_dpo_quadratic_loss(pairs, beta=0.1, tau_0=0.5, rho_0=2.0)
    loss.sum().backward()

    right = 1 / (1 + exp(-0.15 / 0.5))
    assert loss.item() == pytest.approx(-0.5 * log(right) + 2.0 * 0.25 - 0.5 * log(2))
    assert pairs.chosen.policy.grad.item() == pytest.approx(-0.1 * (1 - right))
    assert pairs.rejected.policy.grad.item() == pytest.approx(0.1 * (1 - right))


@pytest.mark.parametrize(
    ("win_probability", "known"), [(0.55, 0.10), (0.7, 0.82), (0.9, 3.68), (0.99, 6.37)]
)
def test_ada_dpo_quadratic_margin_of_one_comparison_is_the_scaled_logit(
    one_comparison, win_probability, known
):
    """Hong et al. 2024, the proposition: the scale grows as the entropy of the preference falls."""
    problem = one_comparison(win_probability)
    loss = population_loss(ada_dpo_quadratic_loss, problem, beta=2.0, tau_0=0.1, rho_0=0.05)

    found = minimize(loss, problem.reference)

    p, q = win_probability, 1 - win_probability
    tau = max(0.1, (log(2) + p * log(p) + q * log(q)) / (2 * 0.05))
    log_ratio = found.policy - problem.reference
    margin = 2.0 * float(log_ratio[0] - log_ratio[1])
    assert tau == pytest.approx(known, abs=6e-3)
    assert found.gradient_norm < 1e-9
    assert margin == pytest.approx(tau * log(p / q), rel=1e-6)
    assert abs(margin - log(p / q)) > 0.1
