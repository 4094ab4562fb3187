"""Unweighted DDRO: direct density ratio optimization by the plain logistic criterion."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from veritune.logprobs import UnpairedLogProbs
from veritune.objectives.card import Card
from veritune.objectives.optimum import FiniteProblem
from veritune.objectives.unpaired.class_mean import class_mean_weight
from veritune.objectives.unpaired.implied_ratio import implied_ratio
from veritune.ranges import OpenFraction


def ddro_unweighted_loss(labels: UnpairedLogProbs, *, t: OpenFraction) -> Float[Tensor, " B"]:
    """Logistic estimate of the ratio between the laws of desirable and undesirable completions.

    As `ddro`, but both laws count alike, whatever their shares: the classifier that it fits is told
    nothing of how often completions are desirable. With t = 1/2 it is twice `ddro`. It has the same
    domain, `t * rho < 1`: use `ddro_stabilized` or `rdro` for training.

        R = (1 - t) * rho / (1 - t * rho),  rho = exp(log_ratio)
        desirable:   loss = (n / n_desirable)   * log(1 + 1 / R)
        undesirable: loss = (n / n_undesirable) * log(1 + R)

    with n, n_desirable and n_undesirable counted over the global batch: the mean over its
    examples is the sum of the two class means.

    Args:
        labels: Log-probabilities of B labelled completions, in nats, summed over tokens, and the
            counts of both labels in the global batch.
        t: Share of desirable completions in what the reference produces; the desirable fraction
            of the data if they were sampled from the reference. A larger one lowers the ratio at
            which the loss ends.

    Returns:
        Loss of each example, in nats, not reduced. Where `t * rho >= 1` it is the limit as R grows
        without bound, with gradient zero: 0 for a desirable completion, infinite for an undesirable
        one.

    Differs from the paper:
        The parametrization by the mixture is our derivation of a member of the family that the
        paper describes.

    Source:
        Higuchi and Suzuki 2025, arXiv:2505.07558.
    """
    ratio = implied_ratio(labels.completion.log_ratio, t=t)
    inside = torch.where(labels.desirable, -logsigmoid(ratio.log), -logsigmoid(-ratio.log))
    beyond = torch.where(labels.desirable, torch.zeros_like(inside), torch.inf)
    return class_mean_weight(labels) * torch.where(ratio.is_defined, inside, beyond)


def ddro_unweighted_optimum(problem: FiniteProblem, *, t: OpenFraction) -> Float[Tensor, " Y"]:
    """The law of desirable completions, if the reference is `t p+ + (1 - t) p-`."""
    assert problem.desirable is not None, "labelled completions have a law of desirable ones"
    return problem.desirable


def ddro_unweighted_initial_loss(
    labels: UnpairedLogProbs, *, t: OpenFraction
) -> Float[Tensor, " B"]:
    """`log 2` times the weight of the class: the two laws are still one."""
    return class_mean_weight(labels) * math.log(2)


CARD = Card(
    loss=ddro_unweighted_loss,
    data=UnpairedLogProbs,
    source="arXiv:2505.07558",
    title="direct density ratio optimization, both laws counted alike",
    target="the law of desirable completions, if the reference is the mixture that was labelled",
    optimum=ddro_unweighted_optimum,
    initial_loss=ddro_unweighted_initial_loss,
    finite_everywhere=False,
    data_fraction="t",
)
