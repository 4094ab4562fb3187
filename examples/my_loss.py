"""An objective of one's own, trained by name of the file:

    veritune train model=DIR data=pairs.jsonl objective=examples/my_loss.py:soft_margin \
        objective.beta=0.2 output=runs/mine
    veritune objectives examples/my_loss.py:soft_margin

It gets what every objective has: checked laws before the first step, a card, packed batches, the
cached reference, exact resume and the report.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from veritune.logprobs import PairedLogProbs
from veritune.ranges import NonNegative, Positive


def soft_margin(
    pairs: PairedLogProbs, *, beta: Positive = 0.1, margin: NonNegative = 1.0
) -> Float[Tensor, " B"]:
    """DPO that asks for a margin.

        loss = softplus(margin - beta * (log_ratio(chosen) - log_ratio(rejected)))

    Args:
        pairs: Log-probabilities of B pairs, in nats, summed over tokens.
        beta: How much of a log-ratio counts as reward.
        margin: Reward by which the chosen completion should be ahead; 0 is DPO.

    Source:
        None; an example. Amini et al. 2024, arXiv:2402.10571, ask for a margin in this way.
    """
    log_ratio_margin = pairs.chosen.log_ratio - pairs.rejected.log_ratio
    return softplus(margin - beta * log_ratio_margin)
