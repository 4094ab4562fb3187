"""DDRO by LSIF: direct density ratio optimization with the least-squares criterion."""

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import UnpairedLogProbs
from veritune.objectives.card import Card
from veritune.objectives.optimum import FiniteProblem
from veritune.objectives.unpaired.class_mean import class_mean_weight
from veritune.objectives.unpaired.implied_ratio import implied_ratio
from veritune.ranges import OpenFraction


def ddro_lsif_loss(labels: UnpairedLogProbs, *, t: OpenFraction) -> Float[Tensor, " B"]:
    """Least-squares estimate of the ratio between desirable and undesirable completions.

    The least stable of its family. The ratio has no bound, so a few desirable completions that no
    undesirable one resembles drive the loss of a sample to minus infinity. Its bounded counterpart
    is `rdro_lsif`; this one is for the comparison.

        R = (1 - t) * rho / (1 - t * rho),  rho = exp(log_ratio)
        desirable:   loss = -(n / n_desirable)   * R
        undesirable: loss =  (n / n_undesirable) * R^2 / 2

    with n, n_desirable and n_undesirable counted over the global batch: the mean over its
    examples is the sum of the two class means.

    Args:
        labels: Log-probabilities of B labelled completions, in nats, summed over tokens, and the
            counts of both labels in the global batch.
        t: Share of desirable completions in what the reference produces; the desirable fraction
            of the data if they were sampled from the reference. A larger one lowers the ratio at
            which the loss ends.

    Returns:
        Loss of each example, not reduced; it can be negative. Where `t * rho >= 1` it is infinite,
        with gradient zero, for either label: the limit of a desirable one is minus infinity, which
        would reward leaving the domain.

    Differs from the paper:
        The parametrization by the mixture and the least-squares criterion are our derivation of a
        member of the family that the paper describes.

    Source:
        Higuchi and Suzuki 2025, arXiv:2505.07558, for the ratio; Kanamori et al. 2009, "A
        least-squares approach to direct importance estimation", for the criterion.
    """
    log_ratio = implied_ratio(labels.completion.log_ratio, t=t)
    ratio = torch.exp(log_ratio.log)
    loss = torch.where(labels.desirable, -ratio, ratio**2 / 2)
    return class_mean_weight(labels) * loss.where(log_ratio.is_defined, torch.inf)


def ddro_lsif_optimum(problem: FiniteProblem, *, t: OpenFraction) -> Float[Tensor, " Y"]:
    """The law of desirable completions, if the reference is `t p+ + (1 - t) p-`."""
    assert problem.desirable is not None, "labelled completions have a law of desirable ones"
    return problem.desirable


def ddro_lsif_initial_loss(labels: UnpairedLogProbs, *, t: OpenFraction) -> Float[Tensor, " B"]:
    """-1 and 1/2, each times the weight of its class: the two laws are still one."""
    like = torch.ones_like(labels.completion.policy)
    return class_mean_weight(labels) * torch.where(labels.desirable, -like, like / 2)


CARD = Card(
    loss=ddro_lsif_loss,
    data=UnpairedLogProbs,
    source="arXiv:2505.07558; criterion of Kanamori et al. 2009",
    title="direct density ratio optimization, least-squares criterion",
    target="the law of desirable completions, if the reference is the mixture that was labelled",
    optimum=ddro_lsif_optimum,
    initial_loss=ddro_lsif_initial_loss,
    finite_everywhere=False,
    data_fraction="t",
)
