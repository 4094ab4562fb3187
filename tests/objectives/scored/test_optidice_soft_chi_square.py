from math import exp

import pytest
import torch

from veritune.laboratory.distances import total_variation
from veritune.laboratory.minimize import minimize
from veritune.objectives.scored.optidice_soft_chi_square import optidice_soft_chi_square_loss


def law_with_weights(behavior, reward, alpha):
    """behavior * (exp(e) if e < 0 else e + 1), e = (reward - nu) / alpha; nu by 200 halvings."""
    low, high = float(reward.min()), float(reward.max())
    for _ in range(200):
        nu = (low + high) / 2
        e = (reward - nu) / alpha
        law = behavior.exp() * torch.where(e < 0, e.exp(), e + 1)
        low, high = (nu, high) if law.sum() > 1 else (low, nu)
    return law.log()


def test_optidice_soft_chi_square_loss_and_its_derivatives_are_those_of_the_formula(groups):
    loss = optidice_soft_chi_square_loss(groups, alpha=0.5)
    loss.sum().backward()

    # (e + 1) + exp(e - 3) = 2 with e = (1.2 - nu) / 0.5, the scores being 1.5 / 0.5 = 3 apart.
    e = 1.0
    for _ in range(100):
        e = 1 - exp(e - 3)
    better, worse = e + 1, exp(e - 3)
    assert better + worse == pytest.approx(2)
    assert loss.item() == pytest.approx((better * 12.0 + worse * 15.0) / 2)
    assert groups.completions.policy.grad[0].tolist() == pytest.approx([-better / 2, -worse / 2])


def test_optidice_soft_chi_square_imitates_a_completion_that_is_alone(group_of):
    assert optidice_soft_chi_square_loss(group_of([1.0], [7.0])).item() == pytest.approx(19.0)


@pytest.mark.parametrize("alpha", [0.2, 0.7])
def test_optidice_soft_chi_square_minimizer_of_a_whole_group_has_the_optimal_weights(
    whole_group, behavior, reward, alpha
):
    """Lee et al. 2021 in one step, with the f of the released code."""
    found = minimize(
        lambda p: optidice_soft_chi_square_loss(whole_group(p), alpha=alpha).sum(), behavior
    )

    assert found.gradient_norm < 1e-9
    assert found.smallest_curvature > 0
    assert total_variation(found.policy, law_with_weights(behavior, reward, alpha)) < 1e-9
    assert total_variation(found.policy, law_with_weights(behavior, reward, 1.3 * alpha)) > 1e-2
