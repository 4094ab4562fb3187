"""SLiC-HF: sequence likelihood calibration with human feedback."""

from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import PairedLogProbs
from veritune.objectives.card import Card
from veritune.ranges import NonNegative


def slic_hf_loss(
    pairs: PairedLogProbs, *, delta: NonNegative = 1.0, sft_weight: NonNegative = 0.1
) -> Float[Tensor, " B"]:
    """Hinge on the log-probability margin, minus the likelihood of the chosen completion.

    The likelihood term takes the place of a reference: it holds the policy to the chosen texts.

        loss = max(0, delta - policy(chosen) + policy(rejected)) - sft_weight * policy(chosen)

    Args:
        pairs: Log-probabilities of B pairs, in nats, summed over tokens; the reference is not read.
        delta: Margin, in nats, at which a pair is left alone.
        sft_weight: Weight of the likelihood, lambda in the paper. A larger one holds the policy
            closer to the law of the chosen completions.

    Returns:
        Loss of each pair, in nats, not reduced.

    Differs from the paper:
        The paper's likelihood term is on the text of the supervised data set, or on the best of
        the model's own samples; here it is on the chosen completion of the pair.

    Source:
        Zhao et al. 2023, arXiv:2305.10425, the SLiC-HF objective.
    """
    hinge = (delta - pairs.chosen.policy + pairs.rejected.policy).clamp(min=0)
    return hinge - sft_weight * pairs.chosen.policy


CARD = Card(
    loss=slic_hf_loss,
    data=PairedLogProbs,
    source="arXiv:2305.10425",
    title="sequence likelihood calibration with human feedback",
    target="none claimed; the law of chosen completions as sft_weight grows",
    needs_reference=False,
)
