"""One row carried forward and backward to see what it takes; nothing changes by it."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from veritune.models.forward import CausalModel
from veritune.models.rehearsal import Row, carry
from veritune.tokens.dataset import TokenizedDataset
from veritune.tokens.encode import TokenizedRecord
from veritune.training.device_memory import forget_peak, held_memory, is_shortage, peak_memory


def largest_row(
    dataset: TokenizedDataset, sizes: NDArray[np.int64], budget: int, most_groups: int
) -> list[TokenizedRecord]:
    """Groups of a data set that fill a row, the longest first; at least one.

    Args:
        dataset: At least one group.
        sizes: Tokens of each group in a row.
        budget: Tokens of the row.
        most_groups: Groups that a row can hold, because a step has no more.
    """
    taken: list[int] = []
    rest = budget
    for index in np.argsort(-sizes, kind="stable").tolist():
        if sizes[index] <= rest or not taken:
            taken.append(index)
            rest -= int(sizes[index])
        if rest <= 0 or len(taken) == most_groups:
            break
    return [dataset[index] for index in taken]


def dry_run(model: CausalModel, groups: Sequence[TokenizedRecord], reserved: int) -> int | None:
    """Bytes that a row takes beside the weights: gradients, activations and what is reserved.

    No parameter changes, gradients are freed, and random draws go on as if nothing had been.

    Args:
        model: The policy, as it will train.
        groups: The groups of the row.
        reserved: Bytes that will be taken later, of the optimizer.

    Returns:
        None if a GPU had not enough; a CPU is asked for what a plan says it has.
    """
    device = model.device
    is_gpu = device.type == "cuda"
    trained = [p for p in model.hf.parameters() if p.requires_grad]
    before = held_memory(device)
    forget_peak(device)
    with torch.random.fork_rng(devices=[device] if is_gpu else []):
        model.hf.train()
        try:
            held = torch.empty(reserved if is_gpu else 0, dtype=torch.uint8, device=device)
            # Behind the first row of a step, the gradients lie beside the activations.
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
            carry(model, Row.of(model, groups))
            peak = peak_memory(device)
            del held
        except RuntimeError as error:
            if not is_shortage(error):
                raise
            return None
        finally:
            for parameter in trained:
                parameter.grad = None
            if is_gpu:
                torch.cuda.empty_cache()
    return max(0, peak - before) + (0 if is_gpu else reserved)
