"""OptiDICE with chi-square in one step: imitation of the better completions, linear in score."""

from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import ScoredLogProbs
from veritune.objectives.card import Card
from veritune.objectives.group_mean import group_mean
from veritune.objectives.scored.dual_weights import chi_square_weights
from veritune.ranges import Positive


def optidice_chi_square_loss(
    groups: ScoredLogProbs, *, alpha: Positive = 1.0
) -> Float[Tensor, " B"]:
    """Negative log-likelihood of the completions, weighted linearly in their score.

    The weights are those that maximize the mean score of a group, less alpha times the chi-square
    divergence from the group's own law. A completion far enough below the others has weight zero
    and is not imitated at all; one far above them gains only linearly. A group of one completion
    is imitated as it is.

        weight(i) = max(0, (score(i) - nu) / alpha + 1), without gradient
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
        Lee et al. 2021, arXiv:2106.10783, the optimal weights for f(x) = (x - 1)^2 / 2.
    """
    weights = chi_square_weights(groups.scores, groups.present, alpha=alpha)
    return group_mean(-weights * groups.completions.policy, groups.present)


CARD = Card(
    loss=optidice_chi_square_loss,
    data=ScoredLogProbs,
    source="arXiv:2106.10783, f(x) = (x - 1)^2 / 2, one step",
    title="imitation weighted linearly in the score",
    target=(
        "as the groups grow, the law that drew them times max(0, (score - nu) / alpha + 1), with "
        "nu such that it sums to one; none in closed form for small groups"
    ),
    needs_reference=False,
)
