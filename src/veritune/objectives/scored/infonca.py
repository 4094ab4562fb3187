"""InfoNCA: contrastive alignment with scores, by relative likelihoods."""

from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import ScoredLogProbs
from veritune.objectives.card import Card
from veritune.objectives.optimum import FiniteProblem
from veritune.objectives.scored.dpo_rw import dpo_rw_initial_loss, dpo_rw_loss, dpo_rw_optimum
from veritune.ranges import Positive


def infonca_loss(
    groups: ScoredLogProbs, *, alpha: Positive = 1.0, beta: Positive = 0.1
) -> Float[Tensor, " B"]:
    """Cross-entropy, over a group, of telling which completion came from the tilted reference.

    It is `dpo_rw`, reached from noise-contrastive estimation, under the names of another paper, in
    which beta is beta_pi and alpha is beta_r. Only differences of likelihood within the group
    count, so the likelihood of all may fall together; `nca_rw` prevents that.

        loss = -sum over i of softmax(score / alpha)(i) * log softmax(beta * log_ratio)(i)

    with both softmaxes over the completions of the group.

    Args:
        groups: B groups of up to K scored completions; log-probabilities in nats, summed over
            tokens. Absent entries are not read.
        alpha: Temperature of the scores, in their unit. A small one favors the best of the group;
            with two completions and alpha near 0 the loss is that of `dpo`.
        beta: Scale of the implicit reward. A small beta asks for larger log-ratios.

    Returns:
        Loss of each group, in nats, not reduced.

    Source:
        Chen et al. 2024, arXiv:2402.05369, InfoNCA for reward data.
    """
    return dpo_rw_loss(groups, beta_pi=beta, beta_r=alpha)


def infonca_optimum(
    problem: FiniteProblem, *, alpha: Positive = 1.0, beta: Positive = 0.1
) -> Float[Tensor, " Y"]:
    """The reference tilted by the reward over the product of the two temperatures, at any K > 1."""
    return dpo_rw_optimum(problem, beta_pi=beta, beta_r=alpha)


def infonca_initial_loss(
    groups: ScoredLogProbs, *, alpha: Positive = 1.0, beta: Positive = 0.1
) -> Float[Tensor, " B"]:
    """The logarithm of the number of completions in the group."""
    return dpo_rw_initial_loss(groups, beta_pi=beta, beta_r=alpha)


CARD = Card(
    loss=infonca_loss,
    data=ScoredLogProbs,
    source="arXiv:2402.05369, InfoNCA",
    title="noise-contrastive alignment by relative likelihoods",
    target="the reference tilted by exp(reward / (alpha * beta))",
    optimum=infonca_optimum,
    initial_loss=infonca_initial_loss,
    reward_scale="beta",
)
