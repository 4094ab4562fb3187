"""Segment attention on a processor: blocks of queries, with the gradient written out.

One call handles the whole row. It is cut into blocks of queries that stand behind each other, each
with the keys up to its own end, so that of the half that causality hides only a corner of each
block is computed. Segments share a block where that computes and hides a few scores more and saves
some twenty calls; what is not finite in one segment then reaches its neighbors. Query heads that
share a key head stand below each other as one matrix. The backward pass computes the weights again.
"""

from collections.abc import Iterator, Sequence
from math import log, prod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from veritune.batches.batch import Segment, SegmentPlan

# Rows of a block: enough for matrix products, few enough that causality wastes little. Blocks that
# are joined have up to twice as many.
_ROWS = 128
# Scores of a block before it is joined with others, where sequences are long.
_MAX_SCORES = 2**23
# Scores of all heads that take as long as the calls of one block.
_SCORES_OF_A_BLOCK = 2**15
# 2 ** x is taken in place of e ** x: torch's exp is fifty times slower where it underflows, and
# its softmax twenty times less exact.
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
    """Queries that are handled at once, and every key that one of them sees."""

    start: int
    stop: int
    """The queries are those of the row's places from start to stop."""

    prefix_start: int
    prefix_length: int
    """The first keys: a prefix that stands elsewhere, or the part of it that a window leaves. Where
    the length is 0, the start means nothing.
    """

    first_key: int
    """The other keys, or all of them, are those from here to stop."""

    segments: tuple[Segment, ...]
    """Those that have a query in here. If they are several, the keys of each are in here from the
    beginning of its prefix on.
    """

    @property
    def num_queries(self) -> int:
        return self.stop - self.start

    @property
    def num_keys(self) -> int:
        return self.prefix_length + self.stop - self.first_key

    @property
    def num_scores(self) -> int:
        """Of each head."""
        return self.num_queries * self.num_keys


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
        out = rows.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
        laid = lay_blocks(plan, num_key_heads, repeats, window, rows.dtype)
        buffer = rows.new_empty(most_scores(laid) * num_key_heads * repeats)
        normalizer = rows.new_empty(num_key_heads, rows.shape[1], 1)
        keys, values = _Keys(key[0]), _Keys(value[0])
        for (block, added), (queries, normalizer_part) in zip(
            laid, _parts(laid, repeats, rows, normalizer), strict=True
        ):
            scores = _scores(queries, keys.of(block), added, buffer)
            top = torch.amax(scores, -1, keepdim=True)
            weights = scores.sub_(top).exp2_()
            total = torch.sum(weights, -1, keepdim=True)
            _put(torch.bmm(weights, values.of(block)).div_(total), out, block)
            torch.add(top, total.log2_(), out=normalizer_part)
        ctx.save_for_backward(rows, key, value, normalizer)
        ctx.plan, ctx.scale, ctx.window = plan, scale, window
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        rows, key, value, normalizer = ctx.saved_tensors
        num_key_heads, repeats = key.shape[1], rows.shape[1] // key.shape[2]
        given = _rows_by_key_head(upstream[0], num_key_heads)
        d_query = rows.new_empty(1, upstream.shape[1], upstream.shape[2], key.shape[-1])
        keys, values = _Keys(key[0]), _Keys(value[0])
        laid = lay_blocks(ctx.plan, num_key_heads, repeats, ctx.window, rows.dtype)
        buffers = rows.new_empty(2, most_scores(laid) * num_key_heads * repeats)
        for (block, added), (queries, given_part, normalizer_part) in zip(
            laid, _parts(laid, repeats, rows, given, normalizer), strict=True
        ):
            scores = _scores(queries, keys.of(block), added, buffers[0])
            weights = scores.sub_(normalizer_part).exp2_()
            values.add(block, weights, given_part)
            d_weights = _view(buffers[1], weights.shape)
            torch.bmm(given_part, values.of(block).transpose(1, 2), out=d_weights)
            # weights * (d_weights - sum of weights * d_weights)
            d_scores = torch.ops.aten._softmax_backward_data.out(
                d_weights, weights, -1, weights.dtype, grad_input=d_weights
            )
            keys.add(block, d_scores, queries)
            _put(torch.bmm(d_scores, keys.of(block)), d_query, block, ctx.scale)
        # The rows hold the scale and log2(e); of these the keys' gradient has only the scale.
        d_key = keys.gradient.mul_(1 / _LOG2_E)[None]
        return d_query.transpose(1, 2), d_key, values.gradient[None], None, None, None


class _Keys:
    """Keys (or values) of a row, handed out block by block, and the gradient that comes back."""

    def __init__(self, states: Tensor) -> None:
        self._states = states.contiguous()
        self._gradient: Tensor | None = None
        self._place: tuple[int, ...] | None = None
        self._behind_prefix: Tensor | None = None

    @property
    def gradient(self) -> Tensor:
        if self._gradient is None:
            self._gradient = torch.zeros_like(self._states)
        return self._gradient

    def of(self, block: _Block) -> Tensor:
        """Shape (key heads, keys, d): the prefix first."""
        if block.prefix_length == 0:
            return self._states[:, block.first_key : block.stop]
        # Joined once for all blocks of a segment, with as much of the prefix as no window hides.
        last = block.segments[-1]
        stop = last.stop if len(block.segments) == 1 else block.stop
        place = (last.prefix_start, last.prefix_length, block.first_key, stop)
        if self._behind_prefix is None or self._place != place:
            self._behind_prefix = None  # before the next one is made
            prefix = self._states.narrow(1, last.prefix_start, last.prefix_length)
            own = self._states[:, block.first_key : stop]
            self._place, self._behind_prefix = place, torch.cat([prefix, own], dim=1)
        cut = block.prefix_start - last.prefix_start
        return self._behind_prefix.narrow(1, cut, block.num_keys)

    def add(self, block: _Block, weights: Tensor, rows: Tensor) -> None:
        """Add sum_i weights_ij rows_i to the gradient of each key j of a block."""
        gradient, num_prefix = self.gradient, block.prefix_length
        found = torch.bmm(weights.transpose(1, 2), rows)
        gradient[:, block.first_key : block.stop].add_(found[:, num_prefix:])
        if num_prefix:
            gradient.narrow(1, block.prefix_start, num_prefix).add_(found[:, :num_prefix])


LaidBlocks = list[tuple[_Block, Tensor]]
"""Blocks in row order, each with what is added to the scores of its last keys."""


def lay_blocks(
    plan: SegmentPlan, num_key_heads: int, repeats: int, window: int | None, dtype: torch.dtype
) -> LaidBlocks:
    """The blocks of a row, made once for all layers that attend alike.

    Args:
        plan: The segments; the blocks are kept in its memory.
        num_key_heads: Heads of keys.
        repeats: Query heads for each of them.
        window: Keys a query sees, itself included; None is all.
        dtype: Of the scores.
    """
    if window is not None and window >= plan.max_keys:
        window = None
    # Kept with the row and no longer: what is made while tensors have no content has none.
    name = ("blocks", num_key_heads, repeats, window, dtype)
    if name not in plan.masks:
        alike: dict[tuple[tuple[int, int], bool], Tensor] = {}
        laid: LaidBlocks = []
        for block in _blocks(plan, num_key_heads, repeats, window):
            if len(block.segments) > 1:
                laid.append((block, _added(_hidden_between(block), repeats, dtype)))
                continue
            # Where no window reaches, only the block's own tokens can be hidden from a query.
            is_cut = window is not None and block.num_keys > window
            size = block.num_queries, block.num_keys if is_cut else block.num_queries
            if (size, is_cut) not in alike:
                hidden = _hidden_within(*size, window if is_cut else None)
                alike[size, is_cut] = _added(hidden, repeats, dtype)
            laid.append((block, alike[size, is_cut]))
        plan.masks[name] = laid
    found: LaidBlocks = plan.masks[name]
    return found


def _blocks(
    plan: SegmentPlan, num_key_heads: int, repeats: int, window: int | None
) -> list[_Block]:
    """The blocks of a row, in order; where a segment begins, joined with the last if cheaper."""
    most = max(1, min(_ROWS, _MAX_SCORES // (num_key_heads * plan.max_keys)) // repeats)
    worth = _SCORES_OF_A_BLOCK // (num_key_heads * repeats)
    blocks: list[_Block] = []
    for segment in plan.segments:
        for start in range(segment.start, segment.stop, most):
            block = _cut(segment, start, min(start + most, segment.stop), window)
            if blocks and start == segment.start:
                joined = _join(blocks[-1], block)
                more = joined.num_scores - blocks[-1].num_scores - block.num_scores
                # Between segments nothing counts how far a window reaches. (With as many keys as
                # the window has, the block of one query may have lost some.)
                is_near = window is None or max(blocks[-1].num_keys, block.num_keys) < window
                if more <= worth and joined.num_queries <= 2 * most and is_near:
                    blocks[-1] = joined
                    continue
            blocks.append(block)
    return blocks


def _cut(segment: Segment, start: int, stop: int, window: int | None) -> _Block:
    """The block of a segment's queries from start to stop."""
    # Of the prefix and the segment behind it, so much no query sees.
    unseen = 0
    if window is not None:
        unseen = max(0, segment.prefix_length + start - segment.start - window + 1)
    of_prefix = min(unseen, segment.prefix_length)
    prefix_start = segment.prefix_start + of_prefix
    num_prefix = segment.prefix_length - of_prefix
    first = segment.start + unseen - of_prefix
    if prefix_start + num_prefix == first:
        return _Block(start, stop, prefix_start, 0, prefix_start, (segment,))
    return _Block(start, stop, prefix_start, num_prefix, first, (segment,))


def _join(one: _Block, other: _Block) -> _Block:
    """The block of both, which stand behind each other."""
    segments = one.segments + other.segments
    prefix = one.prefix_start, one.prefix_length
    if one.prefix_length and prefix == (other.prefix_start, other.prefix_length):
        return one._replace(stop=other.stop, segments=segments)
    first = min(b.prefix_start if b.prefix_length else b.first_key for b in (one, other))
    return _Block(one.start, other.stop, first, 0, first, segments)


def _hidden_within(num_queries: int, num_keys: int, window: int | None) -> NDArray[np.bool_]:
    """Which keys a query does not see, (queries, keys); the last of both stand at one place."""
    keys = np.arange(num_keys)
    queries = keys[num_keys - num_queries :, None]
    return keys > queries if window is None else (keys > queries) | (keys <= queries - window)


def _hidden_between(block: _Block) -> NDArray[np.bool_]:
    """The same for several segments, without the leading keys that every query sees."""
    hidden = np.ones((block.num_queries, block.num_keys), np.bool_)
    for segment in block.segments:
        start, stop = max(segment.start, block.start), min(segment.stop, block.stop)
        queries = hidden[start - block.start : stop - block.start]
        own = block.prefix_length + segment.start - block.first_key
        queries[:, own : own + stop - segment.start] = ~np.tri(
            stop - start, stop - segment.start, start - segment.start, dtype=np.bool_
        )
        prefix = 0 if block.prefix_length else segment.prefix_start - block.first_key
        queries[:, prefix : prefix + segment.prefix_length] = False
    return hidden[:, hidden.any(axis=0).argmax() :]


def _added(hidden: NDArray[np.bool_], repeats: int, dtype: torch.dtype) -> Tensor:
    """-inf on what is hidden and 0 on the rest, for the rows of all heads that share keys."""
    scores = torch.zeros(hidden.shape, dtype=dtype)
    scores.masked_fill_(torch.from_numpy(hidden), float("-inf"))
    return scores.repeat_interleave(repeats, dim=0)


def most_scores(laid: LaidBlocks) -> int:
    """Of each head, in the largest block."""
    return max(block.num_scores for block, _ in laid)


def _parts(laid: LaidBlocks, repeats: int, *rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """What belongs to each block, of tensors of shape (key heads, T * repeats, ...)."""
    sizes = [block.num_queries * repeats for block, _ in laid]
    return zip(*(torch.split(tensor, sizes, dim=1) for tensor in rows), strict=True)


def _scores(queries: Tensor, keys: Tensor, added: Tensor, buffer: Tensor) -> Tensor:
    """A block's scores, in the buffer; -inf where a query does not see a key."""
    scores = _view(buffer, (*queries.shape[:2], keys.shape[1]))
    torch.bmm(queries, keys.transpose(1, 2), out=scores)
    scores[:, :, -added.shape[1] :].add_(added)
    return scores


def _view(buffer: Tensor, shape: Sequence[int]) -> Tensor:
    return buffer[: prod(shape)].view(*shape)


def _rows_by_key_head(states: Tensor, num_key_heads: int, factor: float = 1.0) -> Tensor:
    """(T, heads, d) to (key heads, T * repeats, d): heads that share keys below each other."""
    num_tokens, num_heads, size = states.shape
    shape = (num_key_heads, num_tokens, num_heads // num_key_heads, size)
    rows = states.new_empty(shape)
    torch.mul(states.view(num_tokens, *shape[::2], size).transpose(0, 1), factor, out=rows)
    return rows.view(num_key_heads, -1, size)


def _put(rows: Tensor, whole: Tensor, block: _Block, factor: float = 1.0) -> None:
    """Put a block's (key heads, queries * repeats, d) to its place in (1, T, heads, d)."""
    shape = (rows.shape[0], block.num_queries, -1, rows.shape[2])
    by_token = rows.view(shape).transpose(0, 1)
    torch.mul(by_token, factor, out=whole[0, block.start : block.stop].view(by_token.shape))
