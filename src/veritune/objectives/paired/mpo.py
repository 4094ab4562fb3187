"""MPO: maximum preference optimization, derived from the paper's abstract."""

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import PairedLogProbs
from veritune.objectives.card import Card
from veritune.ranges import NonNegative


def mpo_loss(pairs: PairedLogProbs, *, reference_weight: NonNegative = 0.1) -> Float[Tensor, " B"]:
    """Minus the probability of a right comparison, minus the likelihood of the chosen completion.

    The reward of a pair is a probability, not its logarithm, so a pair that is already right, or
    hopelessly wrong, has no force. What holds the policy is the likelihood of reference texts,
    which are the chosen completions here: forward KL to their law. There is no reference model.

        loss = -sigmoid(policy(chosen) - policy(rejected)) - reference_weight * policy(chosen)

    Args:
        pairs: Log-probabilities of B pairs, in nats, summed over tokens; the reference is not read.
        reference_weight: Weight of the likelihood. A larger one holds the policy closer to the law
            of the chosen completions; at 0 all mass may go to one completion. No published value
            is known to us.

    Returns:
        Loss of each pair, not reduced; its preference part is between -1 and 0.

    Differs from the paper:
        We derived the terms from the abstract: the scale inside the sigmoid and the weights of the
        paper may differ. The paper draws reference texts from data of their own, and adds
        the likelihood of pretraining text; for either, combine this with `sft` on such data.

    Source:
        Jiang, Huang & Wei 2023, arXiv:2312.16430, abstract.
    """
    preference = torch.sigmoid(pairs.chosen.policy - pairs.rejected.policy)
    return -preference - reference_weight * pairs.chosen.policy


CARD = Card(
    loss=mpo_loss,
    data=PairedLogProbs,
    source="arXiv:2312.16430, derived from the abstract",
    title="maximum preference optimization (derived)",
    target=(
        "none in closed form; the most preferred completion as reference_weight falls to 0, the "
        "law of chosen completions as it grows"
    ),
    needs_reference=False,
)
