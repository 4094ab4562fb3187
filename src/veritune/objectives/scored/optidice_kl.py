"""OptiDICE with KL in one step: imitation weighted by the softmax of the score."""

from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import ScoredLogProbs
from veritune.objectives.card import Card
from veritune.objectives.group_mean import group_mean
from veritune.objectives.scored.dual_weights import kl_weights
from veritune.ranges import Positive


def optidice_kl_loss(groups: ScoredLogProbs, *, alpha: Positive = 1.0) -> Float[Tensor, " B"]:
    """Negative log-likelihood of the completions, weighted exponentially in their score.

    Also called reward-weighted regression. The weights are those that maximize the mean score of a
    group, less alpha times the KL divergence from the group's own law. Every completion is imitated
    a little, and one far above the others takes the whole weight. A group of one completion is
    imitated as it is.

        weight(i) = K * softmax over the group of (score(i) / alpha), without gradient
        loss      = -mean over i of weight(i) * policy(i)

    with K the number of completions present.

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
        Lee et al. 2021, arXiv:2106.10783, the optimal weights for f(x) = x log x.
    """
    weights = kl_weights(groups.scores, groups.present, alpha=alpha)
    return group_mean(-weights * groups.completions.policy, groups.present)


CARD = Card(
    loss=optidice_kl_loss,
    data=ScoredLogProbs,
    source="arXiv:2106.10783, f(x) = x log x, one step",
    title="imitation weighted by the softmax of the score",
    target=(
        "as the groups grow, the law that drew them tilted by exp(score / alpha); none in closed "
        "form for small groups"
    ),
    needs_reference=False,
)
