"""NCA on scored groups: contrastive alignment with scores, by absolute likelihoods."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from veritune.logprobs import ScoredLogProbs
from veritune.objectives.card import Card
from veritune.objectives.group_mean import group_mean
from veritune.objectives.scored.group_laws import group_law
from veritune.ranges import Positive


def nca_rw_loss(
    groups: ScoredLogProbs, *, alpha: Positive = 1.0, beta: Positive = 0.1
) -> Float[Tensor, " B"]:
    """Cross-entropy, for each completion alone, of telling the tilted reference from the reference.

    A completion is pulled up by its share in the group's softmax of scores and down by 1/K, each
    with a force that fades, so its likelihood itself is fitted and not only its place among the
    others: one whose share is above 1/K is pulled above the reference and held there. A group of
    one completion is held at the reference.

        share(i) = softmax over the group of (score(i) / alpha)
        loss     = -sum over i of (share(i) * log sigmoid( beta * log_ratio(i))
                                   + 1/K    * log sigmoid(-beta * log_ratio(i)))

    with K the number of completions present.

    Args:
        groups: B groups of up to K scored completions; log-probabilities in nats, summed over
            tokens. Absent entries are not read. They are taken to be drawn from the reference.
        alpha: Temperature of the scores, in their unit. A small one favors the best of the group.
        beta: Scale of the implicit reward. A small beta asks for larger log-ratios; below 1, for
            likelihoods that add up to more than one, of which the law gets as near as it can.

    Returns:
        Loss of each group, in nats, not reduced.

    Source:
        Chen et al. 2024, arXiv:2402.05369, NCA for reward data; released code.
    """
    present = groups.present
    implicit_reward = beta * groups.completions.log_ratio.where(present, 0)
    share = group_law(groups.scores / alpha, present).exp().where(present, 0)
    raised = (share * logsigmoid(implicit_reward)).sum(dim=-1)
    return -raised - group_mean(logsigmoid(-implicit_reward), present)


def nca_rw_initial_loss(
    groups: ScoredLogProbs, *, alpha: Positive = 1.0, beta: Positive = 0.1
) -> Float[Tensor, " B"]:
    """`2 log 2`: the shares add up to one, and so do the parts of 1/K."""
    like = torch.full_like(groups.scores[:, :1], 2 * math.log(2))
    return like.where(groups.present.any(dim=-1, keepdim=True), 0).sum(dim=-1)


CARD = Card(
    loss=nca_rw_loss,
    data=ScoredLogProbs,
    source="arXiv:2402.05369, NCA",
    title="noise-contrastive alignment by absolute likelihoods",
    target=(
        "at beta = 1, the reference times K times a completion's expected share in a group, which "
        "tends to the reference tilted by exp(score / alpha) as the groups grow; none in closed "
        "form at another beta"
    ),
    initial_loss=nca_rw_initial_loss,
    reward_scale="beta",
)
