"""RDRO by KLIEP: relative density ratio optimization with the Kullback-Leibler criterion."""

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


def rdro_kliep_loss(labels: UnpairedLogProbs, *, alpha: OpenFraction) -> Float[Tensor, " B"]:
    """Kullback-Leibler estimate of the ratio between desirable completions and the mixture.

    The target is that of `rdro`: the ratio policy / reference is fitted to
    `p+ / (alpha p+ + (1 - alpha) p-)`, which never exceeds 1 / alpha. A desirable completion is
    pulled up with force `1 - alpha * ratio` and an undesirable one down with force
    `(1 - alpha) * ratio`. Under a reference that is the mixture the mean of the ratio is 1 for
    every policy, so in expectation this is the likelihood of desirable completions; on a sample the
    ratio holds back completions that the policy already favors.

        desirable:   loss = (n / n_desirable)   * (alpha * ratio - log_ratio)
        undesirable: loss = (n / n_undesirable) * (1 - alpha) * ratio

    with ratio = exp(log_ratio), continued by its tangent line from log_ratio = log(1 / alpha) + 1,
    and n, n_desirable and n_undesirable counted over the global batch: the mean over its examples
    is the sum of the two class means.

    Args:
        labels: Log-probabilities of B labelled completions, in nats, summed over tokens, and the
            counts of both labels in the global batch.
        alpha: Share of desirable completions in what the reference produces; the desirable
            fraction of the data if they were sampled from the reference. A smaller one lets the
            policy move farther.

    Returns:
        Loss of each example, in nats, not reduced.

    Differs from the paper:
        The paper estimates by the logistic criterion (`rdro`); this is another member of the same
        family. The tangent line is ours. It begins where every completion is already pushed toward
        the target, and it keeps the direction of the push, so under a reference that is the mixture
        the minimizer stays and no other appears. It limits the force on a completion to `e - 1`
        where it is desirable and `(1 - alpha) e / alpha` where it is not, times the class weight.

    Source:
        Takahashi et al. 2026, arXiv:2604.04410, for the ratio; Sugiyama et al. 2008, "Direct
        importance estimation for covariate shift adaptation", for the criterion.
    """
    log_ratio = labels.completion.log_ratio
    ratio = exponential_with_tangent(log_ratio, tangent_from=tangent_place(alpha))
    loss = torch.where(labels.desirable, alpha * ratio - log_ratio, (1 - alpha) * ratio)
    return class_mean_weight(labels) * loss


def rdro_kliep_optimum(problem: FiniteProblem, *, alpha: OpenFraction) -> Float[Tensor, " Y"]:
    """The law of desirable completions, if the reference is `alpha p+ + (1 - alpha) p-`."""
    assert problem.desirable is not None, "labelled completions have a law of desirable ones"
    return problem.desirable


def rdro_kliep_initial_loss(
    labels: UnpairedLogProbs, *, alpha: OpenFraction
) -> Float[Tensor, " B"]:
    """`alpha` and `1 - alpha`, each times the weight of its class."""
    like = torch.ones_like(labels.completion.policy)
    return class_mean_weight(labels) * torch.where(labels.desirable, alpha * like, 1 - alpha)


CARD = Card(
    loss=rdro_kliep_loss,
    data=UnpairedLogProbs,
    source="arXiv:2604.04410; criterion of Sugiyama et al. 2008",
    title="relative density ratio optimization, Kullback-Leibler criterion",
    target="the law of desirable completions, if the reference is the mixture that was labelled",
    optimum=rdro_kliep_optimum,
    initial_loss=rdro_kliep_initial_loss,
    data_fraction="alpha",
)
