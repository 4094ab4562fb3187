"""LD-DPO with the policy's log-probabilities discounted and those of the reference not."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from veritune.logprobs import CompletionLogProbs, PairedLogProbs
from veritune.objectives.card import Card
from veritune.ranges import Fraction, Positive


def ld_dpo_policy_loss(
    pairs: PairedLogProbs, *, beta: Positive = 0.1, alpha: Fraction = 0.5
) -> Float[Tensor, " B"]:
    """LD-DPO as LLaMA-Factory and ms-swift compute it.

    The reference's log-probabilities of tokens beyond the common length count in full, so the
    margin is not zero where policy and reference are one model.

        sum(y) = common(y) + alpha * (whole(y) - common(y)), of the policy alone
        margin = (policy sum - reference)(chosen) - (policy sum - reference)(rejected)
        loss   = -log sigmoid(beta * margin)

    Args:
        pairs: Log-probabilities of B pairs, in nats, summed over tokens, `whole`, and over as many
            tokens as the shorter completion has, `common`.
        beta: Weight of the KL penalty.
        alpha: Weight of a token beyond the common length. 1 is DPO.

    Returns:
        Loss of each pair, in nats, not reduced.

    Differs from the paper:
        `ld_dpo` discounts policy and reference alike.

    Source:
        Liu et al. 2024, arXiv:2409.06411, as in LLaMA-Factory and ms-swift.
    """
    margin = _log_ratio(pairs.chosen, alpha) - _log_ratio(pairs.rejected, alpha)
    return -logsigmoid(beta * margin)


def _log_ratio(completion: CompletionLogProbs, alpha: float) -> Float[Tensor, " B"]:
    assert completion.policy_common is not None, "the card asks for the common length"
    beyond = completion.policy - completion.policy_common
    return completion.log_ratio - (1 - alpha) * beyond


def ld_dpo_policy_initial_loss(
    pairs: PairedLogProbs, *, beta: Positive = 0.1, alpha: Fraction = 0.5
) -> Float[Tensor, " B"]:
    """`softplus(beta * (1 - alpha) * t)`, t the reference's log-probability of the chosen tokens
    beyond the common length less that of the rejected ones."""
    beyond = [_reference_beyond(side) for side in (pairs.chosen, pairs.rejected)]
    return softplus(beta * (1 - alpha) * (beyond[0] - beyond[1]))


def _reference_beyond(completion: CompletionLogProbs) -> Tensor:
    assert completion.reference is not None, "the card asks for a reference"
    assert completion.reference_common is not None, "the card asks for the common length"
    return completion.reference - completion.reference_common


CARD = Card(
    loss=ld_dpo_policy_loss,
    data=PairedLogProbs,
    source="arXiv:2409.06411, as in LLaMA-Factory and ms-swift",
    title="length-desensitized direct preference optimization, policy alone",
    target="none claimed where lengths differ; that of direct preference optimization where not",
    elsewhere="what LLaMA-Factory and ms-swift compute where their discount is set",
    initial_loss=ld_dpo_policy_initial_loss,
    needs_common_length=True,
    reward_scale="beta",
)
