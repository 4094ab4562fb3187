"""The weight by which a mean over all examples becomes a sum of class means."""

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import UnpairedLogProbs


def class_mean_weight(labels: UnpairedLogProbs) -> Float[Tensor, " B"]:
    """For each example, examples in the global batch over examples of its class in it.

        mean of (weight * loss) over all = mean of loss over desirable + mean over undesirable

    A class that the global batch lacks contributes nothing.
    """
    num_examples = labels.num_desirable + labels.num_undesirable
    like = torch.ones_like(labels.completion.policy)
    # The count of a class that is absent everywhere divides nothing; 1 keeps the division defined.
    return torch.where(
        labels.desirable,
        like * (num_examples / max(labels.num_desirable, 1)),
        like * (num_examples / max(labels.num_undesirable, 1)),
    )
