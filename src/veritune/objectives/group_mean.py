"""The mean over a group whose completions need not all be present."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def group_mean(values: Float[Tensor, "B K"], present: Bool[Tensor, "B K"]) -> Float[Tensor, " B"]:
    """Mean over the completions that are present; 0 for a group without any."""
    return torch.where(present, values, 0).sum(dim=-1) / present.sum(dim=-1).clamp(min=1)
