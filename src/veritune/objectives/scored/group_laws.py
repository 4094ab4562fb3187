"""The law that numbers define over the completions of a group."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def group_law(values: Float[Tensor, "B K"], present: Bool[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    """Log-softmax over the entries that are present; zero, without gradient, at the others.

    Whatever stands in an absent entry, a NaN included, has no effect.
    """
    law = torch.log_softmax(values.masked_fill(~present, -torch.inf), dim=-1)
    # An absent entry would be -inf, and 0 * -inf is not a number.
    return law.masked_fill(~present, 0)
