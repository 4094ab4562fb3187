"""Segment attention on a processor: blocks of queries, with the gradient written out.

One call handles the whole row. Queries of a block see the keys up to the block's end, so that of
the half that causality hides only a corner of each block is computed. Query heads that share a key
head stand below each other as one matrix. The backward pass computes the scores again.
"""

from collections.abc import Iterator, Sequence
from math import log, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from veritune.batches.batch import Segment, SegmentPlan

# Rows of a block: enough for matrix products, few enough that causality wastes little.
_ROWS = 128
_MAX_SCORES = 2**23
# 2 ** x is taken in place of e ** x: torch's exp is fifty times slower where it underflows.
_LOG2_E = 1 / log(2)


def block_attention(
    query: Tensor, key: Tensor, value: Tensor, plan: SegmentPlan, scale: float, window: int | None
) -> Tensor:
    """Attention over the segments of one row, float32 or float64.

        out_i = sum_j softmax_j(scale * query_i . key_j) value_j     over the keys that i sees

    Args:
        query: Shape (1, heads, T, d).
        key, value: Shape (1, key heads, T, d) and (1, key heads, T, e); key heads divide heads.
        plan: The segments.
        scale: Factor on the scores.
        window: Keys a query sees, itself included; None is all.

    Returns:
        Shape (1, T, heads, e).
    """
    out: Tensor = _BlockAttention.apply(  # type: ignore[no-untyped-call]
        query, key, value, plan, scale, window
    )
    return out


class _Block(NamedTuple):
    """Queries that are handled at once, and the keys from the first to the last that they see."""

    num_queries: int
    first_key: int
    last_key: int
    """Behind the last; keys are counted from the beginning of the segment's prefix."""


class _BlockAttention(torch.autograd.Function):
    """Scores are kept in units of log 2: softmax(s) = 2 ** (s log2(e) - top) / total."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        plan: SegmentPlan,
        scale: float,
        window: int | None,
    ) -> Tensor:
        num_key_heads, repeats = key.shape[1], query.shape[1] // key.shape[1]
        rows = _rows_by_key_head(query[0].transpose(0, 1), num_key_heads, scale * _LOG2_E)
        out = rows.new_empty(num_key_heads, rows.shape[1], value.shape[-1])
        top, total = (rows.new_empty(num_key_heads, rows.shape[1], 1) for _ in range(2))
        laid = _lay_blocks(plan, num_key_heads, repeats, window)
        buffer = rows.new_empty(_largest(laid, num_key_heads, repeats))
        parts = _parts(laid, repeats, rows, out, top, total)
        for segment, blocks in laid:
            keys = _keys_of(key[0], segment).transpose(1, 2)
            values = _keys_of(value[0], segment)
            for block in blocks:
                queries, out_part, top_part, total_part = next(parts)
                seen = slice(block.first_key, block.last_key)
                scores = _scores(queries, keys[:, :, seen], block, plan, window, buffer)
                torch.amax(scores, -1, keepdim=True, out=top_part)
                scores.sub_(top_part).exp2_()
                torch.sum(scores, -1, keepdim=True, out=total_part)
                torch.bmm(scores, values[:, seen], out=out_part)
        result = _rows_by_token(out.div_(total), repeats)
        ctx.save_for_backward(rows, key, value, result, top.add_(total.log2_()))
        ctx.plan, ctx.scale, ctx.window = plan, scale, window
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        rows, key, value, result, normalizer = ctx.saved_tensors
        num_key_heads, repeats = key.shape[1], rows.shape[1] // key.shape[2]
        given = _rows_by_key_head(upstream[0], num_key_heads)
        # The gradient of a softmax takes sum_j weight_ij d_weight_ij off each row.
        offset = _rows_by_key_head((upstream[0] * result[0]).sum(-1, keepdim=True), num_key_heads)
        d_rows = torch.empty_like(rows)
        d_key, d_value = torch.empty_like(key[0]), torch.empty_like(value[0])
        laid = _lay_blocks(ctx.plan, num_key_heads, repeats, ctx.window)
        buffers = rows.new_empty(2, _largest(laid, num_key_heads, repeats))
        parts = _parts(laid, repeats, rows, given, normalizer, offset, d_rows)
        for segment, blocks in laid:
            keys, values = _keys_of(key[0], segment), _keys_of(value[0], segment)
            keys_across, values_across = keys.transpose(1, 2), values.transpose(1, 2)
            d_keys, d_values = torch.zeros_like(keys), torch.zeros_like(values)
            for block in blocks:
                queries, given_part, normalizer_part, offset_part, d_queries = next(parts)
                seen = slice(block.first_key, block.last_key)
                weights = _scores(
                    queries, keys_across[:, :, seen], block, ctx.plan, ctx.window, buffers[0]
                )
                weights.sub_(normalizer_part).exp2_()
                d_values[:, seen].baddbmm_(weights.transpose(1, 2), given_part)
                d_scores = _view(buffers[1], weights.shape)
                torch.bmm(given_part, values_across[:, :, seen], out=d_scores)
                d_scores.sub_(offset_part).mul_(weights)
                d_keys[:, seen].baddbmm_(d_scores.transpose(1, 2), queries)
                torch.bmm(d_scores, keys[:, seen], out=d_queries)
            _give_back(d_keys, d_key, segment)
            _give_back(d_values, d_value, segment)
        # The rows hold the scale and log2(e); of these the keys' gradient has only the scale.
        d_query = _rows_by_token(d_rows.mul_(ctx.scale), repeats).transpose(1, 2)
        return d_query, d_key.mul_(1 / _LOG2_E)[None], d_value[None], None, None, None


def _rows_by_key_head(states: Tensor, num_key_heads: int, factor: float = 1.0) -> Tensor:
    """(T, heads, d) to (key heads, T * repeats, d): heads that share keys below each other."""
    num_tokens, num_heads, size = states.shape
    shape = (num_key_heads, num_tokens, num_heads // num_key_heads, size)
    rows = states.new_empty(shape)
    torch.mul(states.view(num_tokens, *shape[::2], size).transpose(0, 1), factor, out=rows)
    return rows.view(num_key_heads, -1, size)


def _rows_by_token(rows: Tensor, repeats: int) -> Tensor:
    """The way back, to (1, T, heads, d)."""
    num_key_heads, _, size = rows.shape
    by_token = rows.view(num_key_heads, -1, repeats, size).transpose(0, 1)
    return by_token.reshape(1, -1, num_key_heads * repeats, size)


def _lay_blocks(
    plan: SegmentPlan, num_key_heads: int, repeats: int, window: int | None
) -> list[tuple[Segment, list[_Block]]]:
    """The blocks of each segment, in row order."""
    most = min(_ROWS, _MAX_SCORES // (num_key_heads * plan.max_keys))
    step = max(1, most // repeats)
    laid = []
    for segment in plan.segments:
        blocks = []
        for start in range(0, segment.length, step):
            stop = min(start + step, segment.length)
            first = 0
            if window is not None:
                first = max(0, segment.prefix_length + start - window + 1)
            blocks.append(_Block(stop - start, first, segment.prefix_length + stop))
        laid.append((segment, blocks))
    return laid


def _largest(laid: list[tuple[Segment, list[_Block]]], num_key_heads: int, repeats: int) -> int:
    """Scores of the largest block."""
    pairs = max(b.num_queries * (b.last_key - b.first_key) for _, blocks in laid for b in blocks)
    return num_key_heads * repeats * pairs


def _parts(
    laid: list[tuple[Segment, list[_Block]]], repeats: int, *rows: Tensor
) -> Iterator[tuple[Tensor, ...]]:
    """What belongs to each block, of tensors of shape (key heads, T * repeats, ...)."""
    sizes = [block.num_queries * repeats for _, blocks in laid for block in blocks]
    return zip(*(torch.split(tensor, sizes, dim=1) for tensor in rows), strict=True)


def _scores(
    queries: Tensor,
    keys: Tensor,
    block: _Block,
    plan: SegmentPlan,
    window: int | None,
    buffer: Tensor,
) -> Tensor:
    """Scores of a block, in the buffer; -inf where a query does not see a key."""
    shape = (*queries.shape[:2], keys.shape[2])
    scores = torch.bmm(queries, keys, out=_view(buffer, shape))
    # Without a window, only the block's own tokens can be hidden from a query.
    width = block.num_queries if window is None else shape[2]
    repeats = queries.shape[1] // block.num_queries
    # Kept with the row and no longer: what is made while tensors have no content has none.
    name = ("blocks", block.num_queries, repeats, width, window, scores.dtype)
    if name not in plan.masks:
        plan.masks[name] = _hidden(block.num_queries, repeats, width, window, scores.dtype)
    scores[:, :, -width:].add_(plan.masks[name])
    return scores


def _view(buffer: Tensor, shape: Sequence[int]) -> Tensor:
    return buffer[: prod(shape)].view(*shape)


def _hidden(
    num_queries: int, repeats: int, num_keys: int, window: int | None, dtype: torch.dtype
) -> Tensor:
    """-inf on the keys that the queries of a block do not see; the last stand at one place."""
    keys = torch.arange(num_keys)
    queries = keys[num_keys - num_queries :, None]
    is_seen = keys <= queries
    if window is not None:
        is_seen &= keys > queries - window
    hidden = torch.zeros(num_queries, num_keys, dtype=dtype).masked_fill_(~is_seen, float("-inf"))
    return hidden.repeat_interleave(repeats, dim=0)


def _keys_of(states: Tensor, segment: Segment) -> Tensor:
    """Keys (or values) of a segment, its prefix first: (heads, T, d) to (heads, n, d)."""
    own = states.narrow(1, segment.start, segment.length)
    if segment.prefix_length == 0:
        return own
    prefix = states.narrow(1, segment.prefix_start, segment.prefix_length)
    return torch.cat([prefix, own], dim=1)


def _give_back(gradient: Tensor, whole: Tensor, segment: Segment) -> None:
    """Add a segment's gradient to its keys; its own tokens come here first, its prefix before."""
    num_prefix = segment.prefix_length
    whole.narrow(1, segment.start, segment.length).copy_(gradient[:, num_prefix:])
    whole.narrow(1, segment.prefix_start, num_prefix).add_(gradient[:, :num_prefix])
