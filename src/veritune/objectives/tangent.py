"""The exponential, continued by a tangent line so that it cannot overflow."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def exponential_with_tangent(
    exponent: Float[Tensor, " *S"], *, tangent_from: float
) -> Float[Tensor, " *S"]:
    """exp(exponent), and beyond `tangent_from` its tangent line at that place.

    Value and slope are continuous, the function is increasing and convex, and its slope is never
    larger than exp(tangent_from). In float32 the exponential itself overflows at 88.

    Args:
        exponent: Any numbers.
        tangent_from: Where the line begins.
    """
    clamped = exponent.clamp(max=tangent_from)
    # Below, the second summand is zero; above, the first is constant.
    return torch.exp(clamped) + math.exp(tangent_from) * (exponent - clamped)
