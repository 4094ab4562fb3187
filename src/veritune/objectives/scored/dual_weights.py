"""Weights of the completions of a group that trade score against a divergence from the group.

For one prompt, OptiDICE maximizes over weights of at least 0 whose mean over the group is 1

    mean of (weight * score) - alpha * mean of f(weight)

and the maximum is at `weight(i) = max(0, (f')^-1((score(i) - nu) / alpha))`, with nu the number for
which the mean is 1. Weights are constants of the data: they carry no gradient.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from veritune.objectives.divergences import CHI_SQUARE, SOFT_CHI_SQUARE
from veritune.objectives.scored.group_laws import group_law

_NEWTON_STEPS = 8
"""Four reached the last digit of float64 in all groups tried, of up to 1,024 completions."""


def kl_weights(
    scores: Float[Tensor, "B K"], present: Bool[Tensor, "B K"], *, alpha: float
) -> Float[Tensor, "B K"]:
    """The weights for f = x log x: completions present times the softmax of score / alpha.

    Absent completions have weight 0, and whatever stands in their scores has no effect.
    """
    share = group_law(_slopes(scores, present, alpha), present).exp()
    count = present.sum(dim=-1, keepdim=True)
    return (count * share).where(present, 0).to(scores.dtype)


def chi_square_weights(
    scores: Float[Tensor, "B K"], present: Bool[Tensor, "B K"], *, alpha: float
) -> Float[Tensor, "B K"]:
    """The weights for f = (x - 1)^2 / 2: linear in the score, and 0 below some score.

    They are the projection of score / alpha on the weights whose mean is 1, found exactly by
    sorting. Absent completions have weight 0.
    """
    slopes = _slopes(scores, present, alpha)
    weights = CHI_SQUARE.inverse_derivative(slopes - _chi_square_nu(slopes, present))
    return weights.clamp(min=0).where(present, 0).to(scores.dtype)


def soft_chi_square_weights(
    scores: Float[Tensor, "B K"], present: Bool[Tensor, "B K"], *, alpha: float
) -> Float[Tensor, "B K"]:
    """The weights for f = x log x - x + 1 below 1 and (x - 1)^2 / 2 above.

    Linear in the score where they are above 1, exponential below, never quite 0. Absent completions
    have weight 0.
    """
    slopes = _slopes(scores, present, alpha)
    count = present.sum(dim=-1, keepdim=True).clamp(min=1)
    # The excess of the mean over 1 is convex and decreasing in nu, and these weights are at least
    # those of chi-square. So Newton's method from the nu of chi-square never passes the root, and
    # at least one weight of 1 or more keeps the derivative away from 0.
    nu = _chi_square_nu(slopes, present)
    for _ in range(_NEWTON_STEPS):
        weights = SOFT_CHI_SQUARE.inverse_derivative(slopes - nu).where(present, 0)
        excess = weights.sum(dim=-1, keepdim=True) - count
        # The derivative of a weight is itself below 1 and 1 above.
        nu = nu + excess / weights.clamp(max=1).sum(dim=-1, keepdim=True).clamp(min=1)
    weights = SOFT_CHI_SQUARE.inverse_derivative(slopes - nu)
    return weights.where(present, 0).to(scores.dtype)


def _slopes(scores: Tensor, present: Tensor, alpha: float) -> Tensor:
    """score / alpha in float64, the largest of the group being 0; -inf where absent.

    Only differences within a group matter, and counted from the largest they cannot overflow.
    """
    known = scores.detach().to(torch.float64).masked_fill(~present, -torch.inf)
    largest = known.amax(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float64).min)
    return (known - largest) / alpha


def _chi_square_nu(slopes: Tensor, present: Tensor) -> Tensor:
    """The nu, over alpha, at which the mean of max(0, slope - nu + 1) is 1; shape (B, 1).

    If the m largest slopes have weights above 0, then nu - 1 is their mean, less count / m; m is
    the largest number for which the smallest of them stays above that.
    """
    count = present.sum(dim=-1, keepdim=True).clamp(min=1)
    ordered = slopes.sort(dim=-1, descending=True).values
    place = torch.arange(1, slopes.shape[-1] + 1, device=slopes.device)
    floor = (ordered.cumsum(dim=-1) - count) / place
    num_positive = (ordered > floor).sum(dim=-1, keepdim=True).clamp(min=1)
    return floor.gather(-1, num_positive - 1) + 1
