"""Attention over a packed row as one dense masked softmax in float64, written longhand.

And what the documentation of flash kernels says they do, one sequence at a time.
"""

import math

import torch
from torch import Tensor

from veritune.batches.batch import Batch
from veritune.tokens.encode import TokenizedRecord


def dense_mask(groups: list[TokenizedRecord], batch: Batch, window: int | None) -> Tensor:
    """Who sees whom in a shared row: the same group, the prompt or one's own completion, and
    nothing later; with a window, nothing that lies `window` positions back or more."""
    owners: list[tuple[int, int]] = []
    for number, group in enumerate(groups):
        owners += [(number, -1)] * len(group.prompt)
        for place, completion in enumerate(group.completions):
            owners += [(number, place)] * (len(completion.ids) - 1)
    positions = batch.positions[0].tolist()
    mask = torch.zeros(len(owners), len(owners), dtype=torch.bool)
    for i, (group_i, part_i) in enumerate(owners):
        for j, (group_j, part_j) in enumerate(owners):
            distance = positions[i] - positions[j]
            mask[i, j] = (
                group_i == group_j
                and part_j in (-1, part_i)
                and distance >= 0
                and (window is None or distance < window)
            )
    return mask


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Longhand, head by head."""
    outputs = []
    for head in range(query.shape[1]):
        shared = head // (query.shape[1] // key.shape[1])
        scores = query[0, head].double() @ key[0, shared].double().T * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        weights = scores.exp() * mask
        total = weights.sum(-1, keepdim=True)
        if sinks is not None:
            total = total + sinks[head].double().exp()
        outputs.append((weights / total) @ value[0, shared].double())
    return torch.stack(outputs, dim=1)[None]


def flash_semantics(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    max_queries: int,
    max_keys: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    softcap: float = 0.0,
    aligned_at: str = "end",
) -> Tensor:
    """Sequence by sequence: the last query and the last key stand at the same place. A query sees
    `left` keys before that place and `right` behind it; -1 is all."""
    assert query_ends.dtype == key_ends.dtype == torch.int32
    assert query.shape[-1] == key.shape[-1] == value.shape[-1]
    assert query.shape[-1] % 8 == 0, "the kernels have these head sizes only"
    outputs = []
    starts = zip(query_ends.tolist(), key_ends.tolist(), strict=True)
    stops = list(zip(query_ends.tolist(), key_ends.tolist(), strict=True))[1:]
    for (query_start, key_start), (query_stop, key_stop) in zip(starts, stops, strict=False):
        q, k, v = (
            query[query_start:query_stop],
            key[key_start:key_stop],
            value[key_start:key_stop],
        )
        assert 0 < len(q) <= max_queries
        assert 0 < len(k) <= max_keys
        repeats = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        shift = len(k) - len(q) if aligned_at == "end" else 0
        distance = torch.arange(len(k)) - torch.arange(len(q))[:, None] - shift
        left, right = window_size
        is_seen = torch.ones_like(distance, dtype=torch.bool)
        if left >= 0:
            is_seen &= distance >= -left
        if right >= 0:
            is_seen &= distance <= right
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        weights = scores.masked_fill(~is_seen, -math.inf).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, v))
    return torch.cat(outputs)
