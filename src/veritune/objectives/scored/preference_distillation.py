"""PD: preference distillation."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from veritune.logprobs import ScoredLogProbs
from veritune.objectives.card import Card
from veritune.objectives.group_mean import group_mean
from veritune.objectives.optimum import FiniteProblem
from veritune.ranges import Positive


def preference_distillation_loss(
    groups: ScoredLogProbs, *, gamma: Positive = 0.1
) -> Float[Tensor, " B"]:
    """Cross-entropy of the policy's preferences under those of a preference model.

    The scores are the log-odds of a preference model, and its probabilities themselves are the
    labels: nothing is lost by drawing a winner. As in `pmle` the policy is compared on its own
    log-probabilities and there is no reference, so nothing cancels the length; use a small gamma
    for long completions. A group of one completion has loss and gradient zero.

        p(i, j) = sigmoid(score(i) - score(j))
        q(i, j) = sigmoid(gamma * (policy(i) - policy(j)))
        loss    = -mean over the pairs i < j of the group of
                   (p(i, j) * log q(i, j) + p(j, i) * log q(j, i))

    Args:
        groups: B groups of up to K scored completions; log-probabilities in nats, summed over
            tokens; the reference is not read. Absent entries are not read.
        gamma: Sharpness of the preferences. A small gamma asks for larger log-probability margins,
            hence for a more peaked policy.

    Returns:
        Loss of each group, in nats, not reduced.

    Differs from the paper:
        The link between preferences and the target model, and the name gamma, are our reading, as
        in `pmle`. Whoever samples the completions may draw them from any law.

    Source:
        Yun et al. 2025, arXiv:2506.01523, preference distillation.
    """
    present = groups.present
    num_places = present.shape[-1]
    first, second = torch.triu_indices(num_places, num_places, offset=1, device=present.device)
    policy = groups.completions.policy.where(present, 0)
    scores = groups.scores.where(present, 0)
    margin = gamma * (policy[:, first] - policy[:, second])
    log_odds = scores[:, first] - scores[:, second]
    # Two products of numbers of one sign: nothing cancels, however sure either side is.
    cross_entropy = -torch.sigmoid(log_odds) * logsigmoid(margin)
    cross_entropy = cross_entropy - torch.sigmoid(-log_odds) * logsigmoid(-margin)
    return group_mean(cross_entropy, present[:, first] & present[:, second])


def preference_distillation_optimum(
    problem: FiniteProblem, *, gamma: Positive = 0.1
) -> Float[Tensor, " Y"]:
    """The law proportional to `exp(score / gamma)`, whatever law the completions came from."""
    assert problem.reward is not None, "scores are a reward"
    return torch.log_softmax(problem.reward / gamma, dim=-1)


CARD = Card(
    loss=preference_distillation_loss,
    data=ScoredLogProbs,
    source="arXiv:2506.01523, preference distillation",
    title="preference distillation",
    target="the law proportional to exp(score / gamma), whatever the reference",
    optimum=preference_distillation_optimum,
    needs_reference=False,
    reward_scale="gamma",
)
