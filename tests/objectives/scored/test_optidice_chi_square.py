import pytest
import torch

from veritune.laboratory.distances import total_variation
from veritune.laboratory.minimize import minimize
from veritune.objectives.scored.optidice_chi_square import optidice_chi_square_loss


def law_with_weights(behavior, reward, alpha):
    """behavior * max(0, (reward - nu) / alpha + 1), with the nu that 200 halvings find."""
    low, high = float(reward.min()) - alpha, float(reward.max()) + alpha
    for _ in range(200):
        nu = (low + high) / 2
        law = behavior.exp() * ((reward - nu) / alpha + 1).clamp(min=0)
        low, high = (nu, high) if law.sum() > 1 else (low, nu)
    return law.log()


def test_optidice_chi_square_loss_and_its_derivatives_are_those_of_the_formula(groups):
    loss = optidice_chi_square_loss(groups, alpha=2.0)
    loss.sum().backward()

    # The mean score is 0.45: with nothing dropped it is nu.
    better, worse = (1.2 - 0.45) / 2 + 1, (-0.3 - 0.45) / 2 + 1
    assert loss.item() == pytest.approx((better * 12.0 + worse * 15.0) / 2)
    assert groups.completions.policy.grad[0].tolist() == pytest.approx([-better / 2, -worse / 2])


def test_optidice_chi_square_does_not_imitate_a_completion_far_below_the_others(groups):
    loss = optidice_chi_square_loss(groups, alpha=0.7)
    loss.sum().backward()

    assert loss.item() == pytest.approx(12.0)
    assert groups.completions.policy.grad[0].tolist() == pytest.approx([-1.0, 0.0])


def test_optidice_chi_square_imitates_a_completion_that_is_alone(group_of):
    assert optidice_chi_square_loss(group_of([1.0], [7.0])).item() == pytest.approx(19.0)


def test_optidice_chi_square_minimizer_of_a_whole_group_has_the_optimal_weights(
    whole_group, behavior, reward
):
    """Lee et al. 2021 in one step, with f = (x - 1)^2 / 2."""
    found = minimize(lambda p: optidice_chi_square_loss(whole_group(p), alpha=1.5).sum(), behavior)

    assert found.gradient_norm < 1e-9
    assert found.smallest_curvature > 0
    assert total_variation(found.policy, law_with_weights(behavior, reward, 1.5)) < 1e-9
    assert total_variation(found.policy, law_with_weights(behavior, reward, 1.9)) > 1e-2


def test_optidice_chi_square_minimizer_lacks_the_completions_that_are_dropped(
    whole_group, behavior, reward
):
    target = law_with_weights(behavior, reward, 0.3)

    policy = torch.log_softmax(target.clamp(min=-40.0), dim=-1).requires_grad_()
    optidice_chi_square_loss(whole_group(policy), alpha=0.3).sum().backward()

    # In logits the gradient is the policy less the weighted law.
    assert target.exp().tolist()[1] == 0
    assert torch.allclose(-policy.grad, target.exp(), atol=1e-12)
