"""The ratio between policy and undesirable law that follows if the reference is their mixture."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class ImpliedRatio(NamedTuple):
    """Logarithm of policy / undesirable law, where there is one."""

    log: Float[Tensor, " B"]
    """In nats; a finite filler without gradient where it is not defined."""

    is_defined: Bool[Tensor, " B"]
    """False where the policy takes more than the reference has: `t * policy >= reference`."""


def implied_ratio(log_ratio: Float[Tensor, " B"], *, t: float) -> ImpliedRatio:
    """The ratio that DDRO fits, from the log-ratio of policy and reference.

    A reference that is the mixture `t * policy + (1 - t) * undesirable` leaves

        undesirable = (reference - t * policy) / (1 - t)
        ratio       = policy / undesirable = (1 - t) * rho / (1 - t * rho),  rho = exp(log_ratio)

    which grows without bound as t * rho approaches one and is defined only below.

    Args:
        log_ratio: Policy minus reference, in nats.
        t: Share of desirable completions in the mixture, strictly between 0 and 1.
    """
    log_desirable = log_ratio + math.log(t)
    is_defined = log_desirable < 0
    # Both arms of a later `where` get a gradient, so the filler must be well inside the domain.
    inside = torch.where(is_defined, log_desirable, -1.0)
    log = inside + math.log1p(-t) - math.log(t) - torch.log(-torch.expm1(inside))
    return ImpliedRatio(log, is_defined)
