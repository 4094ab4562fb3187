"""SLiC: sequence likelihood calibration, as the hinge loss on log-probabilities."""

from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import PairedLogProbs
from veritune.objectives.card import Card
from veritune.ranges import Positive


def slic_loss(pairs: PairedLogProbs, *, gamma: Positive = 0.05) -> Float[Tensor, " B"]:
    """Hinge on the log-probability margin, without a reference.

    A pair is pushed with a constant force until its margin is `1 / gamma` nats, and then left
    alone.

        loss = max(0, 1 - gamma * (policy(chosen) - policy(rejected)))

    Args:
        pairs: Log-probabilities of B pairs, in nats, summed over tokens; the reference is not read.
        gamma: Inverse of the margin at which a pair is left alone. A small one asks for larger
            margins.

    Returns:
        Loss of each pair, not reduced.

    Differs from the paper:
        Zhao et al. 2023 have a margin delta, which is `1 / gamma`, and add a likelihood term:
        `slic_hf`.

    Source:
        Liu et al. 2023, arXiv:2309.06657, the hinge loss; after Zhao et al. 2023, arXiv:2305.10425.
    """
    return (1 - gamma * (pairs.chosen.policy - pairs.rejected.policy)).clamp(min=0)


CARD = Card(
    loss=slic_loss,
    data=PairedLogProbs,
    source="arXiv:2309.06657, hinge",
    title="sequence likelihood calibration",
    target=(
        "none claimed over many completions; a single comparison ends at the margin 1 / gamma in "
        "favor of whichever wins more often, however small the majority"
    ),
    needs_reference=False,
    reward_scale="gamma",
)
