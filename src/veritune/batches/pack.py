"""Groups to packed rows by token budget: a prompt once, its completions after it, no padding."""

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from veritune.batches.batch import Batch, Segment, SegmentPlan
from veritune.tokens.encode import TokenizedRecord


def row_tokens(group: TokenizedRecord, *, shares_prefix: bool) -> int:
    """Tokens that a group takes in a packed row.

    Shared: `P + sum(C_k - 1)`, because the last token of a completion is no input. Unshared, the
    prompt stands before each completion: `sum(P + C_k - 1)`.
    """
    inputs = sum(len(c.ids) - 1 for c in group.completions)
    repeats = 1 if shares_prefix else max(1, len(group.completions))
    return len(group.prompt) * repeats + inputs


def rows_by_budget(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of items laid into rows of at most `budget` tokens, best fit first.

    Longest first, each into the fullest row that still has room. An item longer than the budget
    gets a row of its own. The result depends on the sizes alone.
    """
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    rows: list[list[int]] = []
    # (room left, row), in ascending order: the first that fits is the fullest.
    rooms: list[tuple[int, int]] = []
    for item in order:
        place = bisect_left(rooms, (sizes[item], -1))
        if place < len(rooms):
            room, row = rooms.pop(place)
        else:
            room, row = budget, len(rows)
            rows.append([])
        rows[row].append(item)
        insort(rooms, (room - sizes[item], row))
    return [sorted(row) for row in rows]


def pack(
    groups: Sequence[TokenizedRecord],
    indices: Sequence[int],
    *,
    shares_prefix: bool = True,
    multiple_of: int = 1,
) -> Batch:
    """One packed row of groups.

    Args:
        groups: The groups of this row, in order.
        indices: Which record each of them is.
        shares_prefix: Lay each prompt once. False repeats it before every completion, for models
            in which sharing would change the result.
        multiple_of: The row is filled up to a multiple of this many tokens, for compiled layers
            and GPU kernels that work in tiles. The filling is a segment of its own: no token
            sees it, and nothing in it is predicted.
    """
    ids: list[NDArray[np.int32]] = []
    positions: list[NDArray[np.int64]] = []
    segments: list[Segment] = []
    source: list[NDArray[np.int64]] = []
    targets: list[NDArray[np.int32]] = []
    owners: list[int] = []
    cursor = 0
    for group in groups:
        num_prompt = len(group.prompt)
        prompt_start = cursor
        # With one completion there is nothing to share, and one segment costs less than two.
        shares = shares_prefix and len(group.completions) > 1
        if shares:
            ids.append(group.prompt)
            positions.append(np.arange(num_prompt))
            segments.append(Segment(cursor, num_prompt, cursor, 0))
            cursor += num_prompt
        for completion in group.completions:
            inputs = completion.ids[:-1]
            if shares:
                # A completion of one token is predicted by the prompt and is no input.
                if len(inputs):
                    segments.append(Segment(cursor, len(inputs), prompt_start, num_prompt))
                start = cursor
                ids.append(inputs)
                positions.append(np.arange(num_prompt, num_prompt + len(inputs)))
            else:
                prompt_start, start = cursor, cursor + num_prompt
                ids.extend([group.prompt, inputs])
                positions.append(np.arange(num_prompt + len(inputs)))
                segments.append(Segment(cursor, num_prompt + len(inputs), cursor, 0))
            cursor = start + len(inputs)
            # The first token of a completion is predicted by the last token of its prompt.
            before = np.concatenate([[prompt_start + num_prompt - 1], np.arange(start, cursor)])
            source.append(before[completion.bears_loss])
            targets.append(completion.ids[completion.bears_loss])
            owners.append(int(completion.bears_loss.sum()))
    filling = -cursor % multiple_of
    if filling:
        ids.append(np.zeros(filling, np.int32))
        positions.append(np.arange(filling))
        segments.append(Segment(cursor, filling, cursor, 0))
    return Batch(
        input_ids=torch.from_numpy(np.concatenate(ids).astype(np.int64))[None],
        positions=torch.from_numpy(np.concatenate(positions))[None],
        attention_mask=None,
        plan=SegmentPlan.of(segments, num_filling=filling),
        source=torch.from_numpy(np.concatenate(source)),
        targets=torch.from_numpy(np.concatenate(targets).astype(np.int64)),
        completion=torch.repeat_interleave(torch.arange(len(owners)), torch.tensor(owners)),
        group_sizes=tuple(len(group.completions) for group in groups),
        groups=tuple(indices),
    )
