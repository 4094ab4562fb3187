"""PPO: proximal policy optimization with a clipped ratio."""

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import SampledLogProbs
from veritune.objectives.card import Card
from veritune.objectives.sampled.importance import clipped_gain
from veritune.ranges import OpenFraction


def ppo_loss(samples: SampledLogProbs, *, epsilon: OpenFraction = 0.2) -> Float[Tensor, " B"]:
    """Clipped surrogate of the policy gradient, token by token, with the advantages given.

    Every token is an action. Advantages come from a value model, and the KL penalty of RLHF is part
    of the rewards that they were computed from; neither is this function's business. A token whose
    probability has already moved by more than epsilon in the direction of its advantage has no
    gradient.

        ratio(t) = exp(policy(t) - behavior(t))
        loss     = -sum over tokens of min(ratio * advantage, clip(ratio, 1 - epsilon, 1 + epsilon)
                                           * advantage)

    Args:
        samples: Completions of the behavior, token by token, in nats, and the advantage of each.
        epsilon: Largest relative change of a token's probability that is rewarded.

    Returns:
        Loss of each group, summed over its tokens, in units of reward. The step divides by the
        number of tokens of the global batch.

    Differs from the paper:
        From 10 nats on a ratio is its tangent line.

    Source:
        Schulman et al. 2017, arXiv:1707.06347, eq. 7; for language models, Ouyang et al. 2022,
        arXiv:2203.02155.
    """
    assert samples.advantages is not None, "PPO declares that it needs advantages"
    gain = clipped_gain(samples.behavior_log_ratio, samples.advantages, epsilon)
    return -torch.where(samples.bears_loss, gain, 0).sum(dim=(-2, -1))


CARD = Card(
    loss=ppo_loss,
    data=SampledLogProbs,
    source="arXiv:1707.06347, eq. 7",
    title="proximal policy optimization",
    target=(
        "none of its own; on fresh samples it is the policy gradient of the rewards behind the "
        "advantages"
    ),
    elsewhere="the clipped term of PPO in TRL and others",
    needs_reference=False,
    needs_advantages=True,
    normalizer="tokens",
)
