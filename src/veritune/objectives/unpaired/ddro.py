"""DDRO: direct density ratio optimization."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import UnpairedLogProbs
from veritune.objectives.card import Card
from veritune.objectives.optimum import FiniteProblem
from veritune.objectives.unpaired.class_mean import class_mean_weight
from veritune.ranges import OpenFraction


def ddro_loss(labels: UnpairedLogProbs, *, t: OpenFraction) -> Float[Tensor, " B"]:
    """Logistic estimate of the ratio between desirable and undesirable completions.

    `t * ratio`, with ratio = policy / reference, is the policy's probability that a completion is
    desirable. It must stay below one: the first undesirable completion whose log-ratio reaches
    `log(1 / t)` makes the loss infinite, which for a whole sequence is a short way (0.7 nats at
    t = 1/2). Use `ddro_stabilized` or `rdro` for training.

        desirable:   loss = -(n / n_desirable)   * t       * log(t * ratio)
        undesirable: loss = -(n / n_undesirable) * (1 - t) * log(1 - t * ratio)

    with n, n_desirable and n_undesirable counted over the global batch: the mean over its
    examples is the sum of the two class means.

    Args:
        labels: Log-probabilities of B labelled completions, in nats, summed over tokens, and the
            counts of both labels in the global batch.
        t: Share of desirable completions in what the reference produces; the desirable fraction
            of the data if they were sampled from the reference. A larger one lowers the ratio at
            which the loss ends.

    Returns:
        Loss of each example, in nats, not reduced; infinite, with gradient zero, for an undesirable
        completion with `t * ratio >= 1`.

    Differs from the paper:
        The parametrization by the mixture and the weights t and 1 - t are our derivation of a
        member of the family that the paper describes.

    Source:
        Higuchi and Suzuki 2025, arXiv:2505.07558.
    """
    log_desirable = labels.completion.log_ratio + math.log(t)
    is_defined = log_desirable < 0
    # Both arms of `where` get a gradient, so the arm not taken must be finite, too.
    inside = torch.where(is_defined, log_desirable, -1.0)
    log_undesirable = torch.log(-torch.expm1(inside)).where(is_defined, -torch.inf)
    loss = torch.where(labels.desirable, -t * log_desirable, -(1 - t) * log_undesirable)
    return class_mean_weight(labels) * loss


def ddro_optimum(problem: FiniteProblem, *, t: OpenFraction) -> Float[Tensor, " Y"]:
    """The law of desirable completions, if the reference is `t p+ + (1 - t) p-`."""
    assert problem.desirable is not None, "labelled completions have a law of desirable ones"
    return problem.desirable


def ddro_initial_loss(labels: UnpairedLogProbs, *, t: OpenFraction) -> Float[Tensor, " B"]:
    """`-t log t` and `-(1 - t) log(1 - t)`, each times the weight of its class."""
    like = torch.ones_like(labels.completion.policy)
    entropy = torch.where(
        labels.desirable, -t * math.log(t) * like, -(1 - t) * math.log1p(-t) * like
    )
    return class_mean_weight(labels) * entropy


CARD = Card(
    loss=ddro_loss,
    data=UnpairedLogProbs,
    source="arXiv:2505.07558",
    title="direct density ratio optimization",
    target="the law of desirable completions, if the reference is the mixture that was labelled",
    optimum=ddro_optimum,
    initial_loss=ddro_initial_loss,
    finite_everywhere=False,
    data_fraction="t",
)
