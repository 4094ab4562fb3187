"""f-divergences: the generator f, its derivative, and the inverse of that.

    divergence(p || q) = sum over y of q(y) * f(p(y) / q(y)),  f convex, f(1) = 0

An objective that stays near a law q by such a divergence has its optimum where f' of the ratio is
linear in the reward, so the inverse of f' says how the ratio answers to rewards.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Divergence:
    """One f-divergence by three functions, each elementwise."""

    generator: Callable[[Float[Tensor, " *S"]], Float[Tensor, " *S"]]
    """f, for ratios of at least 0."""

    derivative: Callable[[Float[Tensor, " *S"]], Float[Tensor, " *S"]]
    """f', increasing in the ratio, for ratios above 0."""

    inverse_derivative: Callable[[Float[Tensor, " *S"]], Float[Tensor, " *S"]]
    """The ratio at which f' has a value; negative where none of at least 0 has."""


def _soft_chi_square(ratio: Tensor) -> Tensor:
    # xlogy is 0 at a ratio of 0.
    return torch.where(ratio < 1, torch.xlogy(ratio, ratio) - ratio + 1, (ratio - 1) ** 2 / 2)


def _soft_chi_square_derivative(ratio: Tensor) -> Tensor:
    return torch.where(ratio < 1, ratio.log(), ratio - 1)


def _soft_chi_square_inverse(slope: Tensor) -> Tensor:
    # The clamp keeps the exponential that is not taken from overflowing.
    return torch.where(slope < 0, torch.exp(slope.clamp(max=0)), slope + 1)


KL = Divergence(
    generator=lambda ratio: torch.xlogy(ratio, ratio),
    derivative=lambda ratio: ratio.log() + 1,
    inverse_derivative=lambda slope: torch.exp(slope - 1),
)
"""f = x log x. The ratio grows exponentially with the reward and never reaches 0."""

CHI_SQUARE = Divergence(
    generator=lambda ratio: (ratio - 1) ** 2 / 2,
    derivative=lambda ratio: ratio - 1,
    inverse_derivative=lambda slope: slope + 1,
)
"""f = (x - 1)^2 / 2. The ratio grows linearly with the reward and is 0 below some reward."""

SOFT_CHI_SQUARE = Divergence(
    generator=_soft_chi_square,
    derivative=_soft_chi_square_derivative,
    inverse_derivative=_soft_chi_square_inverse,
)
"""f = x log x - x + 1 below 1, (x - 1)^2 / 2 above. The ratio grows linearly above 1 and falls
exponentially below, so it never reaches 0."""
