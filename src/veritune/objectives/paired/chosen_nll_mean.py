"""Likelihood per token of the chosen completions."""

from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import PairedLogProbs
from veritune.objectives.card import Card


def chosen_nll_mean_loss(pairs: PairedLogProbs) -> Float[Tensor, " B"]:
    """Negative log-likelihood per token of the chosen completions; the rejected are not read.

    As `chosen_nll`, but a long completion counts no more than a short one.

        loss = -policy(chosen) / length(chosen)

    Args:
        pairs: Log-probabilities of B pairs, in nats, summed over tokens, and lengths in tokens;
            neither the reference nor the rejected completion is read.

    Returns:
        Loss of each pair, in nats per token, not reduced.

    Source:
        Hong, Lee & Thorne 2024, arXiv:2403.07691, the supervised term of ORPO.
    """
    return -pairs.chosen.policy / pairs.chosen.length


CARD = Card(
    loss=chosen_nll_mean_loss,
    data=PairedLogProbs,
    source="arXiv:2403.07691, the supervised term",
    title="likelihood per token of chosen completions",
    target="the law of chosen completions, each weighted by 1 / length",
    elsewhere=("loss_type='sft' of TRL, except that its mean is over all tokens of a micro-batch"),
    needs_reference=False,
)
