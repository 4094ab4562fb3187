"""RDRO by LSIF: relative density ratio optimization with the least-squares criterion."""

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import UnpairedLogProbs
from veritune.objectives.card import Card
from veritune.objectives.optimum import FiniteProblem
from veritune.objectives.tangent import exponential_with_tangent
from veritune.objectives.unpaired.ceiling import tangent_place
from veritune.objectives.unpaired.class_mean import class_mean_weight
from veritune.ranges import OpenFraction


def rdro_lsif_loss(labels: UnpairedLogProbs, *, alpha: OpenFraction) -> Float[Tensor, " B"]:
    """Least-squares estimate of the ratio between desirable completions and the mixture.

    The target is that of `rdro`: the ratio policy / reference is fitted to
    `p+ / (alpha p+ + (1 - alpha) p-)`, which never exceeds 1 / alpha. The squared error is taken in
    the ratio, not in its logarithm, so completions that the policy has made rare hardly count: a
    desirable one is pulled up with force `ratio * (1 - alpha * ratio)`, which fades as the ratio
    falls.

        desirable:   loss = (n / n_desirable)   * (alpha * ratio^2 / 2 - ratio)
        undesirable: loss = (n / n_undesirable) * (1 - alpha) * ratio^2 / 2

    with ratio = exp(log_ratio), from log_ratio = log(1 / alpha) + 1 on the tangent lines of ratio
    and ratio^2 in log_ratio, and n, n_desirable and n_undesirable counted over the global batch:
    the mean over its examples is the sum of the two class means.

    Args:
        labels: Log-probabilities of B labelled completions, in nats, summed over tokens, and the
            counts of both labels in the global batch.
        alpha: Share of desirable completions in what the reference produces; the desirable
            fraction of the data if they were sampled from the reference. A smaller one lets the
            policy move farther.

    Returns:
        Loss of each example, not reduced; it can be negative.

    Differs from the paper:
        The paper estimates by the logistic criterion (`rdro`); this is another member of the same
        family. The tangent lines are ours. They begin where every completion is already pushed
        toward the target, and they keep the direction of the push, so under a reference that is the
        mixture the minimizer stays and no other appears. They limit the force on a completion to
        `e (e - 1) / alpha` where it is desirable and `(1 - alpha) e^2 / alpha^2` where it is not,
        times the class weight.

    Source:
        Takahashi et al. 2026, arXiv:2604.04410, for the ratio; Kanamori et al. 2009, "A
        least-squares approach to direct importance estimation", for the criterion.
    """
    log_ratio = labels.completion.log_ratio
    place = tangent_place(alpha)
    ratio = exponential_with_tangent(log_ratio, tangent_from=place)
    square = exponential_with_tangent(2 * log_ratio, tangent_from=2 * place)
    loss = torch.where(labels.desirable, alpha * square / 2 - ratio, (1 - alpha) * square / 2)
    return class_mean_weight(labels) * loss


def rdro_lsif_optimum(problem: FiniteProblem, *, alpha: OpenFraction) -> Float[Tensor, " Y"]:
    """The law of desirable completions, if the reference is `alpha p+ + (1 - alpha) p-`."""
    assert problem.desirable is not None, "labelled completions have a law of desirable ones"
    return problem.desirable


def rdro_lsif_initial_loss(labels: UnpairedLogProbs, *, alpha: OpenFraction) -> Float[Tensor, " B"]:
    """`alpha / 2 - 1` and `(1 - alpha) / 2`, each times the weight of its class."""
    like = torch.ones_like(labels.completion.policy)
    value = torch.where(labels.desirable, (alpha / 2 - 1) * like, (1 - alpha) / 2)
    return class_mean_weight(labels) * value


CARD = Card(
    loss=rdro_lsif_loss,
    data=UnpairedLogProbs,
    source="arXiv:2604.04410; criterion of Kanamori et al. 2009",
    title="relative density ratio optimization, least-squares criterion",
    target="the law of desirable completions, if the reference is the mixture that was labelled",
    optimum=rdro_lsif_optimum,
    initial_loss=rdro_lsif_initial_loss,
    data_fraction="alpha",
)
