"""Curves continued by a tangent line so that they cannot overflow."""

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
    return torch.exp(exponent.clamp(max=tangent_from)) + math.exp(tangent_from) * beyond(
        exponent, tangent_from
    )


def beyond(values: Float[Tensor, " *S"], place: float) -> Float[Tensor, " *S"]:
    """How far values are above a place; 0 below it, and at it and below without gradient.

    What a tangent line is multiplied by. The difference of values and clamped values is the same
    number, but its gradient is a difference of two slopes of the line, in which the small slope of
    a curve beside it drowns: in float32 it would lose four of seven digits beside an exponential.
    """
    return torch.relu(values - place)
