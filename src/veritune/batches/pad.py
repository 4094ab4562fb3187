"""Plain padded rows: one sequence a row, padded on the right to the longest.

For models that can neither share nor pack, and as the tests' reference for the packed form.
"""

from collections.abc import Sequence

import numpy as np
import torch

from veritune.batches.batch import Batch
from veritune.tokens.encode import TokenizedRecord


def pad(groups: Sequence[TokenizedRecord], indices: Sequence[int], *, pad_id: int = 0) -> Batch:
    """One padded row per completion, each holding its prompt.

    Args:
        groups: The groups of this batch, in order.
        indices: Which record each of them is.
        pad_id: The id that fills rows; it is masked and never read.
    """
    rows = [
        (np.concatenate([group.prompt, c.ids[:-1]]), len(group.prompt), c)
        for group in groups
        for c in group.completions
    ]
    width = max(len(row) for row, _, _ in rows)
    ids = np.full((len(rows), width), pad_id, np.int64)
    mask = np.zeros((len(rows), width), bool)
    source, targets, owners = [], [], []
    for number, (row, num_prompt, completion) in enumerate(rows):
        ids[number, : len(row)] = row
        mask[number, : len(row)] = True
        before = number * width + np.arange(num_prompt - 1, num_prompt - 1 + len(completion.ids))
        source.append(before[completion.bears_loss])
        targets.append(completion.ids[completion.bears_loss].astype(np.int64))
        owners.append(int(completion.bears_loss.sum()))
    return Batch(
        input_ids=torch.from_numpy(ids),
        positions=torch.arange(width).repeat(len(rows), 1),
        attention_mask=torch.from_numpy(mask),
        plan=None,
        source=torch.from_numpy(np.concatenate(source)),
        targets=torch.from_numpy(np.concatenate(targets)),
        completion=torch.repeat_interleave(torch.arange(len(owners)), torch.tensor(owners)),
        group_sizes=tuple(len(group.completions) for group in groups),
        groups=tuple(indices),
    )
