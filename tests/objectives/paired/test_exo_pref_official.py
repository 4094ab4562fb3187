from math import exp, log, log1p

import pytest

from veritune.objectives.paired.exo_pref import exo_pref_loss
from veritune.objectives.paired.exo_pref_official import exo_pref_official_loss


def test_exo_pref_official_loss_and_its_derivatives_are_the_known_numbers(pairs):
    loss = exo_pref_official_loss(pairs, beta_pi=0.1)
    loss.sum().backward()

    q = 1 / (1 + exp(-0.15))
    assert loss.item() == pytest.approx(q * log(q) + (1 - q) * (log(1 - q) + 10))
    assert loss.item() == pytest.approx(3.935359, abs=5e-7)
    assert pairs.chosen.policy.grad.item() == pytest.approx(0.1 * q * (1 - q) * (0.15 - 10))
    assert pairs.chosen.policy.grad.item() == pytest.approx(-0.244870, abs=1e-6)
    assert pairs.rejected.policy.grad.item() == pytest.approx(0.244870, abs=1e-6)


def test_exo_pref_official_loss_is_exo_pref_less_a_constant(pairs):
    normalized = exo_pref_loss(pairs, beta=0.1, epsilon=1 / (1 + exp(10)))

    released = exo_pref_official_loss(pairs, beta_pi=0.1)

    assert (normalized - released).item() == pytest.approx(log1p(exp(-10)))
