"""LD-DPO: direct preference optimization less sensitive to length."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from veritune.logprobs import CompletionLogProbs, PairedLogProbs
from veritune.objectives.card import Card
from veritune.ranges import Fraction, Positive


def ld_dpo_loss(
    pairs: PairedLogProbs, *, beta: Positive = 0.1, alpha: Fraction = 0.5
) -> Float[Tensor, " B"]:
    """DPO in which the tokens beyond the length of the shorter completion count for less.

    Only the longer of two completions has such tokens. Policy and reference are discounted alike,
    as in TRL; other toolkits discount the policy alone, which is `ld_dpo_policy`.

        sum(y) = common(y) + alpha * (whole(y) - common(y)), of the policy and of the reference
        margin = (policy sum - reference sum)(chosen) - (policy sum - reference sum)(rejected)
        loss   = -log sigmoid(beta * margin)

    Args:
        pairs: Log-probabilities of B pairs, in nats, summed over tokens, `whole`, and over as many
            tokens as the shorter completion has, `common`.
        beta: Weight of the KL penalty.
        alpha: Weight of a token beyond the common length. 1 is DPO, 0 leaves such tokens out.

    Returns:
        Loss of each pair, in nats, not reduced.

    Source:
        Liu et al. 2024, arXiv:2409.06411; `ld_alpha` in TRL.
    """
    margin = discounted_log_ratio(pairs.chosen, alpha) - discounted_log_ratio(pairs.rejected, alpha)
    return -logsigmoid(beta * margin)


def discounted_log_ratio(completion: CompletionLogProbs, alpha: float) -> Float[Tensor, " B"]:
    """Log-ratio in which the tokens beyond the common length count `alpha`."""
    assert completion.policy_common is not None, "the card asks for the common length"
    assert completion.reference_common is not None, "the card asks for a reference"
    common = completion.policy_common - completion.reference_common
    return common + alpha * (completion.log_ratio - common)


def ld_dpo_initial_loss(
    pairs: PairedLogProbs, *, beta: Positive = 0.1, alpha: Fraction = 0.5
) -> Float[Tensor, " B"]:
    """`log 2`: every log-ratio is zero, discounted or not."""
    return torch.full_like(pairs.chosen.policy, math.log(2))


CARD = Card(
    loss=ld_dpo_loss,
    data=PairedLogProbs,
    source="arXiv:2409.06411",
    title="length-desensitized direct preference optimization",
    target="none claimed where lengths differ; that of direct preference optimization where not",
    elsewhere="ld_alpha=alpha of TRL",
    initial_loss=ld_dpo_initial_loss,
    needs_common_length=True,
    reward_scale="beta",
)
