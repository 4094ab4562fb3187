"""Tilts of a reference by rewards that are counted per token."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

_HALVINGS = 100


def tilted_per_token(
    reference: Float[Tensor, " Y"], per_token: Float[Tensor, " Y"], length: Int[Tensor, " Y"]
) -> Float[Tensor, " Y"]:
    """Log-probabilities of the reference times `exp(length * (per_token + c))`.

    The constant c, the same for all completions, makes them sum to one; it is found by halving an
    interval. Where every completion has one token this is `tilted_reference`.

    Args:
        reference: Log-probabilities in nats.
        per_token: What each token of a completion gains, in nats.
        length: In tokens.
    """
    # At the upper end one completion alone has probability 1, at the lower none more than 1 / Y.
    high = float((-reference / length - per_token).min())
    low = high - math.log(len(reference))
    for _ in range(_HALVINGS):
        shift = (low + high) / 2
        total = torch.logsumexp(reference + length * (per_token + shift), dim=0)
        low, high = (shift, high) if total < 0 else (low, shift)
    return reference + length * (per_token + low)
