"""RDRO: relative density ratio optimization."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from veritune.logprobs import UnpairedLogProbs
from veritune.objectives.card import Card
from veritune.objectives.optimum import FiniteProblem
from veritune.objectives.unpaired.class_mean import class_mean_weight
from veritune.ranges import OpenFraction


def rdro_loss(labels: UnpairedLogProbs, *, alpha: OpenFraction) -> Float[Tensor, " B"]:
    """Logistic estimate of the ratio between desirable completions and the mixture of both kinds.

    The ratio policy / reference is fitted to `p+ / (alpha p+ + (1 - alpha) p-)`, with p+ and p- the
    laws of desirable and undesirable completions. That ratio never exceeds 1 / alpha, so no
    completion is pushed without end: a desirable one is pushed up to `log(1 / alpha)` nats above
    the reference and back down from beyond, an undesirable one down with a force that fades. No
    model of preferences is assumed.

        desirable:   loss = (n / n_desirable)   * ((1 + alpha) * softplus(log_ratio) - log_ratio)
        undesirable: loss = (n / n_undesirable) *  (1 - alpha) * softplus(log_ratio)

    with n, n_desirable and n_undesirable counted over the global batch: the mean over its
    examples is the sum of the two class means.

    Args:
        labels: Log-probabilities of B labelled completions, in nats, summed over tokens, and the
            counts of both labels in the global batch.
        alpha: Share of desirable completions in what the reference produces; the desirable
            fraction of the data if they were sampled from the reference. A smaller one lets the
            policy move farther.

    Returns:
        Loss of each example, in nats, not reduced.

    Differs from the paper:
        The released trainer takes one mean over all examples (`rdro_pooled`), which is biased
        unless alpha is one half. The theory, and this, take the mean of each class.

    Source:
        Takahashi et al. 2026, arXiv:2604.04410; terms as in the released code.
    """
    log_ratio = labels.completion.log_ratio
    # softplus(x) = -logsigmoid(-x); torch's own softplus is cut to a line from x = 20 on.
    softplus = -logsigmoid(-log_ratio)
    loss = torch.where(labels.desirable, (1 + alpha) * softplus - log_ratio, (1 - alpha) * softplus)
    return class_mean_weight(labels) * loss


def rdro_optimum(problem: FiniteProblem, *, alpha: OpenFraction) -> Float[Tensor, " Y"]:
    """The law of desirable completions, if the reference is `alpha p+ + (1 - alpha) p-`."""
    assert problem.desirable is not None, "labelled completions have a law of desirable ones"
    return problem.desirable


def rdro_initial_loss(labels: UnpairedLogProbs, *, alpha: OpenFraction) -> Float[Tensor, " B"]:
    """`(1 + alpha) log 2` and `(1 - alpha) log 2`, each times the weight of its class."""
    sign = 2 * labels.desirable.to(labels.completion.policy.dtype) - 1
    return class_mean_weight(labels) * (1 + alpha * sign) * math.log(2)


CARD = Card(
    loss=rdro_loss,
    data=UnpairedLogProbs,
    source="arXiv:2604.04410",
    title="relative density ratio optimization",
    target="the law of desirable completions, if the reference is the mixture that was labelled",
    optimum=rdro_optimum,
    initial_loss=rdro_initial_loss,
    data_fraction="alpha",
)
