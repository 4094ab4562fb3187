"""Labelled completions of finite problems: their laws, the pushes of a loss, several prompts."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import CompletionLogProbs, UnpairedLogProbs
from veritune.objectives.optimum import FiniteProblem


class ClassLaws(NamedTuple):
    """The laws of both labels, as log-probabilities, and the share of the first."""

    desirable: Float[Tensor, " Y"]
    undesirable: Float[Tensor, " Y"]
    fraction: float


def class_laws(problem: FiniteProblem) -> ClassLaws:
    """What a problem with labels holds."""
    assert problem.desirable is not None, "desirable completions have a law"
    assert problem.undesirable is not None, "undesirable completions have a law"
    assert problem.desirable_fraction is not None, "labels have a fraction of desirable ones"
    return ClassLaws(problem.desirable, problem.undesirable, problem.desirable_fraction)


def one_class(log_ratio: Float[Tensor, " B"], *, is_desirable: bool) -> UnpairedLogProbs:
    """Completions with these log-ratios and one label, as a batch of its own.

    A batch without the other class: a loss that takes class means gives each example weight one.
    """
    count = len(log_ratio)
    return UnpairedLogProbs(
        completion=CompletionLogProbs(
            policy=log_ratio,
            length=torch.ones(count, dtype=torch.int64),
            reference=torch.zeros_like(log_ratio).detach(),
        ),
        desirable=torch.full((count,), is_desirable),
        num_desirable=count if is_desirable else 0,
        num_undesirable=0 if is_desirable else count,
    )


def pushes(
    loss: Callable[..., Tensor],
    log_ratio: Float[Tensor, " B"],
    *,
    is_desirable: bool,
    **hyperparameters: float,
) -> Float[Tensor, " B"]:
    """Derivative of the loss of one example by its log-ratio, without the weight of its class.

    Args:
        loss: A loss of the catalog on labels.
        log_ratio: In nats, one for each example.
        is_desirable: The label of all.
        hyperparameters: Of the loss.
    """
    point = log_ratio.detach().clone().requires_grad_()
    losses = loss(one_class(point, is_desirable=is_desirable), **hyperparameters)
    (derivative,) = torch.autograd.grad(losses.sum(), point)
    return derivative


def joint_problem(prompts: Sequence[FiniteProblem]) -> FiniteProblem:
    """Equally likely prompts as one problem, whose completions are prompt and completion together.

    The desirable fraction is that of all data, and the laws of the labels are taken over all
    prompts: one whose completions are often desirable has a large share of the desirable law. The
    log-ratios are those of the prompts: their probability is in policy and reference alike.
    """
    share = 1 / len(prompts)
    laws = [class_laws(prompt) for prompt in prompts]
    fraction = math.fsum(law.fraction for law in laws) * share
    return FiniteProblem(
        reference=torch.cat([prompt.reference + math.log(share) for prompt in prompts]),
        desirable=torch.cat(
            [law.desirable + math.log(share * law.fraction / fraction) for law in laws]
        ),
        undesirable=torch.cat(
            [
                law.undesirable + math.log(share * (1 - law.fraction) / (1 - fraction))
                for law in laws
            ]
        ),
        desirable_fraction=fraction,
    )
