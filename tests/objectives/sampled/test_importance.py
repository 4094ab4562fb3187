from math import exp

import pytest
import torch

from veritune.objectives.group_mean import group_mean
from veritune.objectives.sampled.importance import (
    clipped_gain,
    importance_ratio,
    leave_one_out_mean,
)


def test_a_ratio_is_the_exponential_up_to_ten_nats_and_its_tangent_from_there():
    log_ratio = torch.tensor([-2.0, 0.0, 3.0, 12.0], dtype=torch.float64, requires_grad=True)

    ratio = importance_ratio(log_ratio)
    ratio.sum().backward()

    assert ratio.tolist() == pytest.approx([exp(-2), 1.0, exp(3), 3 * exp(10)])
    assert log_ratio.grad.tolist() == pytest.approx([exp(-2), 1.0, exp(3), exp(10)])


def test_the_leave_one_out_mean_is_over_the_others_that_are_present():
    values = torch.tensor([[1.0, 2.0, 6.0], [1.0, 2.0, torch.nan], [4.0, torch.nan, torch.nan]])
    present = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])

    found = leave_one_out_mean(values, present)

    assert found[0].tolist() == [4.0, 3.5, 1.5]
    assert found[1, :2].tolist() == [2.0, 1.0]
    assert found[2, 0].item() == 0.0


def test_a_group_mean_reads_what_is_present_only():
    values = torch.tensor([[1.0, 3.0], [5.0, torch.nan], [torch.nan, torch.nan]])
    present = torch.tensor([[True, True], [True, False], [False, False]])

    assert group_mean(values, present).tolist() == [2.0, 5.0, 0.0]


@pytest.mark.parametrize(
    ("ratio", "advantage", "gain", "slope"),
    [
        (1.1, 2.0, 2.2, 2.2),
        (1.5, 2.0, 2.4, 0.0),  # rewarded no further
        (1.5, -2.0, -3.0, -3.0),  # but pulled back
        (0.5, -2.0, -1.6, 0.0),
        (0.5, 2.0, 1.0, 1.0),
    ],
)
def test_a_gain_outside_the_trust_region_is_capped_on_the_side_of_the_advantage(
    ratio, advantage, gain, slope
):
    log_ratio = torch.tensor(ratio, dtype=torch.float64).log().view(1, 1, 1).requires_grad_()

    found = clipped_gain(log_ratio, torch.full_like(log_ratio, advantage).detach(), 0.2)
    found.sum().backward()

    assert found.item() == pytest.approx(gain)
    assert log_ratio.grad.item() == pytest.approx(slope)
