"""What objectives on samples share: ratios that cannot overflow, and baselines without bias."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from veritune.objectives.tangent import exponential_with_tangent

TANGENT_FROM = 10.0
"""Log-ratio, in nats, from which a ratio is its tangent line: far outside of any trust region."""


def importance_ratio(log_ratio: Float[Tensor, " *S"]) -> Float[Tensor, " *S"]:
    """exp(log_ratio), continued by its tangent line from 10 nats on.

    Value and gradient stay finite, and the gradient keeps its direction.
    """
    return exponential_with_tangent(log_ratio, tangent_from=TANGENT_FROM)


def leave_one_out_mean(
    values: Float[Tensor, "B K"], present: Bool[Tensor, "B K"]
) -> Float[Tensor, "B K"]:
    """For each completion, the mean over the other completions of its group; 0 if it is alone.

    It does not depend on the completion that it is subtracted from, so it is a baseline that
    leaves the expected gradient as it is.
    """
    masked = torch.where(present, values, 0)
    num_others = present.sum(dim=-1, keepdim=True) - 1
    # Summed over the others, not "the sum less one's own", which cancels digits.
    is_other = ~torch.eye(values.shape[-1], dtype=torch.bool, device=values.device)
    return masked @ is_other.to(values.dtype) / num_others.clamp(min=1)


def clipped_gain(
    log_ratio: Float[Tensor, "B K T"],
    advantage: Float[Tensor, "B K T"],
    epsilon: float,
) -> Float[Tensor, "B K T"]:
    """What a change of a token's probability gains, without credit for leaving the trust region.

        ratio = exp(log_ratio)
        gain  = min(ratio * advantage, clip(ratio, 1 - epsilon, 1 + epsilon) * advantage)

    Source:
        Schulman et al. 2017, arXiv:1707.06347, eq. 7.
    """
    ratio = importance_ratio(log_ratio)
    return torch.minimum(
        ratio * advantage, ratio.clamp(min=1 - epsilon, max=1 + epsilon) * advantage
    )
