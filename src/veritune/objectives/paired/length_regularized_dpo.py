"""R-DPO: direct preference optimization of a reward less a price for every token."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from veritune.logprobs import PairedLogProbs
from veritune.objectives.card import Card
from veritune.ranges import NonNegative, Positive


def length_regularized_dpo_loss(
    pairs: PairedLogProbs, *, beta: Positive = 0.1, alpha: NonNegative = 0.01
) -> Float[Tensor, " B"]:
    """DPO of preferences that are taken to include a liking of length.

    The policy aims at `reward - alpha * length` in place of the reward: of two completions that
    differ in length, part of the preference is put down to the length.

        margin = beta * (log_ratio(chosen) - log_ratio(rejected))
        loss   = -log sigmoid(margin + alpha * (length(chosen) - length(rejected)))

    Args:
        pairs: Log-probabilities of B pairs, in nats, summed over tokens, and lengths in tokens.
        beta: Weight of the KL penalty.
        alpha: Price of a token, in units of the reward. 0 is DPO.

    Returns:
        Loss of each pair, in nats, not reduced.

    Differs from the paper:
        The paper writes the regularizer into the reinforcement learning problem; this is the loss
        that follows from it. It is known as R-DPO, and not to be confused with `rdpo`.

    Source:
        Park et al. 2024, arXiv:2403.19159.
    """
    margin = beta * (pairs.chosen.log_ratio - pairs.rejected.log_ratio)
    num_more = (pairs.chosen.length - pairs.rejected.length).to(margin.dtype)
    return softplus(-(margin + alpha * num_more))


def length_regularized_dpo_initial_loss(
    pairs: PairedLogProbs, *, beta: Positive = 0.1, alpha: NonNegative = 0.01
) -> Float[Tensor, " B"]:
    """`log(1 + exp(alpha * (length(rejected) - length(chosen))))`: only the lengths speak."""
    num_more = (pairs.rejected.length - pairs.chosen.length).to(pairs.chosen.policy.dtype)
    return softplus(alpha * num_more)


CARD = Card(
    loss=length_regularized_dpo_loss,
    data=PairedLogProbs,
    source="arXiv:2403.19159",
    title="length-regularized direct preference optimization (R-DPO)",
    target=(
        "the reference tilted by exp((reward - alpha * length) / beta), if preferences follow "
        "Bradley-Terry"
    ),
    initial_loss=length_regularized_dpo_initial_loss,
    reward_scale="beta",
)
