"""OptiDICE with soft chi-square in one step: linear above the average weight, exponential below."""

from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import ScoredLogProbs
from veritune.objectives.card import Card
from veritune.objectives.group_mean import group_mean
from veritune.objectives.scored.dual_weights import soft_chi_square_weights
from veritune.ranges import Positive


def optidice_soft_chi_square_loss(
    groups: ScoredLogProbs, *, alpha: Positive = 1.0
) -> Float[Tensor, " B"]:
    """Negative log-likelihood of the completions, weighted with bounded growth in their score.

    The divergence is the paper's default: chi-square for completions that become more probable,
    and KL for those that become less so. A good completion gains only linearly, and a bad one
    fades without ever being dropped. A group of one completion is imitated as it is.

        e(i)      = (score(i) - nu) / alpha
        weight(i) = exp(e(i)) if e(i) < 0, else e(i) + 1, without gradient
        loss      = -mean over i of weight(i) * policy(i)

    with nu the number for which the mean of the weights over the group is 1.

    Args:
        groups: B groups of up to K scored completions, drawn from the law that is to be improved;
            log-probabilities in nats, summed over tokens; the reference is not read. Absent entries
            are not read.
        alpha: Weight of the divergence, in units of the score. A small one favors the best of the
            group; a large one imitates all alike.

    Returns:
        Loss of each group, in nats, not reduced.

    Differs from the paper:
        The paper treats sequences of actions with a learned dual variable per state; a completion
        is one action here, and the dual variable of each prompt is solved for exactly. The policy
        is extracted by weighted imitation, which the paper gives beside its default.

    Source:
        Lee et al. 2021, arXiv:2106.10783, the optimal weights for the f of the released code:
        x log x - x + 1 below 1, (x - 1)^2 / 2 above.
    """
    weights = soft_chi_square_weights(groups.scores, groups.present, alpha=alpha)
    return group_mean(-weights * groups.completions.policy, groups.present)


CARD = Card(
    loss=optidice_soft_chi_square_loss,
    data=ScoredLogProbs,
    source="arXiv:2106.10783, the f of the released code, one step",
    title="imitation weighted linearly above the average, exponentially below",
    target=(
        "as the groups grow, the law that drew them times exp(e) if e < 0, else e + 1, where e is "
        "(score - nu) / alpha, with nu such that it sums to one; none in closed form for small "
        "groups"
    ),
    needs_reference=False,
)
