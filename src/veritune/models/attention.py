"""The segment plan carried out for unmodified models, through transformers' attention interface.

A packed row holds many sequences, and completions that share a prompt. Attention over it is a list
of segments (`batches.batch.SegmentPlan`), each a small exact call: the queries of a segment see its
prefix and, causally, each other. No mask over the row exists. Segments of one shape go together.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from veritune.batches.batch import SegmentGroup, SegmentPlan

SEGMENTS = "veritune_segments"
"""The name under which models are told to use this attention."""


def segment_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    plan: SegmentPlan | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer over one packed row; the signature is transformers'.

    Args:
        query: Shape (1, heads, T, d).
        key, value: Shape (1, key heads, T, d); key heads divide heads.
        attention_mask: Always None: no mask is built for this attention.
        scaling: Factor on the scores; None is 1/sqrt(d).
        dropout: Rate; 0 unless the model trains with dropout.
        sliding_window: Keys a query sees, itself included; None or 0 is all.
        softcap: Bound of the scores, as in Gemma 2.
        s_aux: Attention sinks, shape (heads,): one more score per head that has no value.
        plan: Segments of the row, handed to the model as a keyword argument.

    Returns:
        Shape (1, T, heads, d).
    """
    assert plan is not None, "the plan reaches every layer through the model's keyword arguments"
    assert attention_mask is None, "packed rows have no mask"
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key = key.repeat_interleave(repeats, dim=1)
        value = value.repeat_interleave(repeats, dim=1)
    if not getattr(module, "is_causal", True):
        raise NotImplementedError("segments describe causal attention")
    if sliding_window:
        plan.windows.add(sliding_window)
    outputs = []
    for group in plan.groups:
        q, k, v = (
            _take(query, group.query_index),
            _take(key, group.key_index),
            _take(value, group.key_index),
        )
        mask = _mask(plan, group, sliding_window, query.device)
        if softcap is None and s_aux is None:
            out = scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, dropout_p=dropout
            )
        else:
            out = _eager(q, k, v, mask, scaling, dropout, softcap, s_aux)
        # (G, heads, q, d) -> (G * q, heads, d)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, plan.order)[None], None


def _take(states: Tensor, index: Tensor) -> Tensor:
    """States of each segment of a group: (1, heads, T, d) and (G, n) to (G, heads, n, d)."""
    num_segments, length = index.shape
    taken = states[0].index_select(1, index.flatten())
    return taken.view(taken.shape[0], num_segments, length, -1).transpose(0, 1)


def _mask(
    plan: SegmentPlan, group: SegmentGroup, sliding_window: int | None, device: torch.device
) -> Tensor | None:
    """Which keys each query sees, shape (q, p+q); None where plain causal attention says it."""
    total = group.num_prefix + group.num_queries
    window = sliding_window if sliding_window and sliding_window < total else None
    if group.num_prefix == 0 and window is None:
        return None
    name = (group.num_queries, group.num_prefix, window, device)
    if name not in plan.masks:
        # Keys stand at positions 0 … p+q-1 of their sequence, queries at p … p+q-1.
        keys = torch.arange(total, device=device)
        queries = keys[group.num_prefix :, None]
        mask = keys <= queries
        if window is not None:
            mask &= keys > queries - window
        plan.masks[name] = mask
    return plan.masks[name]


def _eager(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention written out, for scores that the fused call cannot change."""
    scores = (
        query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    )
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        size = query.shape[-2]
        mask = torch.ones(size, size, dtype=torch.bool, device=query.device).tril()
    scores = scores.masked_fill(~mask, float("-inf")).float()
    if sinks is not None:
        sink = sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        weights = torch.cat([scores, sink], dim=-1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    weights = torch.nn.functional.dropout(weights.to(value.dtype), dropout)
    return weights @ value


AttentionInterface.register(SEGMENTS, segment_attention)
