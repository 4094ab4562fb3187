"""Stabilized DDRO: direct density ratio optimization, finite at every ratio."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import UnpairedLogProbs
from veritune.objectives.card import Card
from veritune.objectives.optimum import FiniteProblem
from veritune.objectives.tangent import beyond, exponential_with_tangent
from veritune.objectives.unpaired.class_mean import class_mean_weight
from veritune.ranges import OpenFraction

TANGENT_FROM = 3.0
"""Value of `log(t * ratio)` from which the exponential is its tangent line."""


def ddro_stabilized_loss(
    labels: UnpairedLogProbs, *, t: OpenFraction, delta: OpenFraction = 0.05
) -> Float[Tensor, " B"]:
    """DDRO with the logarithm of an undesirable completion continued by its tangent.

    Where `t * ratio <= 1 - delta` it is `ddro`. Beyond, an undesirable completion is still pushed
    down, by a force that grows with the ratio and is finite.

        z = t * ratio, and beyond log(t * ratio) = 3 the tangent line of that exponential
        log1m(z) = log(1 - z) if z <= 1 - delta, else log(delta) - (z - (1 - delta)) / delta
        desirable:   loss = -(n / n_desirable)   * t       * log(t * ratio)
        undesirable: loss = -(n / n_undesirable) * (1 - t) * log1m(z)

    with ratio = policy / reference, and n, n_desirable and n_undesirable counted over the global
    batch: the mean over its examples is the sum of the two class means.

    Args:
        labels: Log-probabilities of B labelled completions, in nats, summed over tokens, and the
            counts of both labels in the global batch.
        t: Share of desirable completions in what the reference produces; the desirable fraction
            of the data if they were sampled from the reference.
        delta: How far before the end of the domain the tangent begins. A smaller one is nearer to
            DDRO and has larger gradients, up to `(1 - t) e^3 / delta` times the class weight.

    Returns:
        Loss of each example, in nats, not reduced.

    Differs from the paper:
        The paper also tames the spikes of the gradient, by another means; this one is ours. The
        exponential is continued by a tangent and not cut off, because a cut would leave the very
        completions without gradient that the policy favors most wrongly.

    Source:
        Higuchi and Suzuki 2025, arXiv:2505.07558, for the objective; the continuation is ours.
    """
    log_desirable = labels.completion.log_ratio + math.log(t)
    z = exponential_with_tangent(log_desirable, tangent_from=TANGENT_FROM)
    # Below 1 - delta the second summand is zero; above, the first is log(delta).
    log_undesirable = torch.log1p(-z.clamp(max=1 - delta)) - beyond(z, 1 - delta) / delta
    loss = torch.where(labels.desirable, -t * log_desirable, -(1 - t) * log_undesirable)
    return class_mean_weight(labels) * loss


def ddro_stabilized_optimum(
    problem: FiniteProblem, *, t: OpenFraction, delta: OpenFraction = 0.05
) -> Float[Tensor, " Y"]:
    """The law of desirable completions, if the reference is `t p+ + (1 - t) p-` and no completion
    is desirable with a probability above `1 - delta`."""
    assert problem.desirable is not None, "labelled completions have a law of desirable ones"
    return problem.desirable


def ddro_stabilized_initial_loss(
    labels: UnpairedLogProbs, *, t: OpenFraction, delta: OpenFraction = 0.05
) -> Float[Tensor, " B"]:
    """That of `ddro` if t <= 1 - delta; else the tangent's value at t for undesirable examples."""
    undesirable = math.log1p(-t) if t <= 1 - delta else math.log(delta) - (t + delta - 1) / delta
    like = torch.ones_like(labels.completion.policy)
    entropy = torch.where(labels.desirable, -t * math.log(t) * like, -(1 - t) * undesirable * like)
    return class_mean_weight(labels) * entropy


CARD = Card(
    loss=ddro_stabilized_loss,
    data=UnpairedLogProbs,
    source="arXiv:2505.07558; the continuation is Veritune's",
    title="direct density ratio optimization, finite everywhere",
    target=(
        "the law of desirable completions, if the reference is the mixture that was labelled and "
        "no completion is desirable with a probability above 1 - delta"
    ),
    optimum=ddro_stabilized_optimum,
    initial_loss=ddro_stabilized_initial_loss,
    data_fraction="t",
)
