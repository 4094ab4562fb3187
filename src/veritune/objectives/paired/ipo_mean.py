"""IPO on log-ratios per token, which some toolkits call IPO."""

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import PairedLogProbs
from veritune.objectives.card import Card
from veritune.ranges import Positive


def ipo_mean_loss(pairs: PairedLogProbs, *, tau: Positive = 0.1) -> Float[Tensor, " B"]:
    """Squared distance of the margin of log-ratios per token from a fixed target.

    TRL and others divide by the length; TRL's source says that the authors of IPO confirmed it, and
    that the paper's results were obtained so. A given tau then asks for log-ratio margins that are
    larger by the length of the completions.

        margin = log_ratio(chosen) / length(chosen) - log_ratio(rejected) / length(rejected)
        loss   = (margin - 1 / (2 * tau))^2

    Args:
        pairs: Log-probabilities of B pairs, in nats, summed over tokens, and lengths in tokens.
        tau: Weight of the KL penalty. A small tau asks for large margins. Many toolkits call it
            beta.

    Returns:
        Loss of each pair, in squared nats per token, not reduced.

    Differs from the paper:
        The paper's equation has log-ratios of whole completions: `ipo`.

    Source:
        Azar et al. 2023, arXiv:2310.12036, eq. 17, per token as in TRL.
    """
    chosen = pairs.chosen.log_ratio / pairs.chosen.length
    rejected = pairs.rejected.log_ratio / pairs.rejected.length
    return (chosen - rejected - 1 / (2 * tau)) ** 2


def ipo_mean_initial_loss(pairs: PairedLogProbs, *, tau: Positive = 0.1) -> Float[Tensor, " B"]:
    """`1 / (4 tau^2)`: the margin is zero, the target is not."""
    return torch.full_like(pairs.chosen.policy, 1 / (4 * tau**2))


CARD = Card(
    loss=ipo_mean_loss,
    data=PairedLogProbs,
    source="arXiv:2310.12036, eq. 17, per token as in TRL",
    title="identity preference optimization, per token",
    target=(
        "derived here: the reference tilted by exp(length * (win probability / tau + c)), with c "
        "such that it sums to one, if the two of a pair are drawn independently from one law"
    ),
    elsewhere="loss_type='ipo', beta=tau of TRL; LLaMA-Factory divides by the length, too",
    initial_loss=ipo_mean_initial_loss,
)
