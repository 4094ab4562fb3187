"""Kernels that carry out a segment plan, all with one meaning and one signature.

- `loop`: one exact call per segment, anywhere and for any rule of scores. The others must equal it.
- `blocks`: for processors, small products over blocks of queries (`attention_blocks.py`).
- `varlen`: torch's flash kernel for sequences of any length, over gathered keys.
- `flash`: the same from the package flash-attn, which also bounds scores.
- `flex`: a compiled kernel that reads who sees whom from a block mask.

The flash kernels lay queries and keys of a sequence against each other at their last tokens. A
completion's keys are its prompt's and its own, so causality, windows and bounds are those of the
whole sequence.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention.flex_attention import (
    AuxRequest,
    BlockMask,
    flex_attention,
)
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import dropout, pad, scaled_dot_product_attention

from veritune.batches.batch import Segment, SegmentPlan
from veritune.models.attention_blocks import block_attention

# Its arguments differ by version of torch.
varlen: Any = varlen_attn
_TILE = 128
_VARLEN_ARGUMENTS = frozenset(inspect.signature(varlen).parameters)

HAS_VARLEN = {"scale", "window_size"} <= _VARLEN_ARGUMENTS
"""Whether torch has the kernel with a scale and windows."""

HAS_FLASH = find_spec("flash_attn") is not None
"""Whether the package flash-attn is installed."""

States = Float[Tensor, "1 heads T size"]
Output = Float[Tensor, "1 T heads size"]


@dataclass(frozen=True)
class ScoreRule:
    """How scores become weights, beside causality."""

    scale: float
    """Factor on the scores."""

    window: int | None = None
    """Keys a query sees, itself included; None is all."""

    softcap: float | None = None
    """Bound of the scores, as in Gemma 2."""

    sinks: Float[Tensor, " heads"] | None = None
    """One more score per head that has no value, as in gpt-oss."""

    dropout: float = 0.0
    """Share of weights that is set to zero."""


Kernel = Callable[[Tensor, Tensor, Tensor, SegmentPlan, ScoreRule], Tensor]


def loop_attention(
    query: Tensor, key: Tensor, value: Tensor, plan: SegmentPlan, rule: ScoreRule
) -> Tensor:
    """One exact call per segment.

    Args:
        query: Shape (1, heads, T, d).
        key, value: Shape (1, key heads, T, d) and (1, key heads, T, e); key heads divide heads.
        plan: The segments of the row.
        rule: What becomes of scores.

    Returns:
        Shape (1, T, heads, e).
    """
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = (states.repeat_interleave(repeats, dim=1) for states in (key, value))
    outputs = []
    for segment in plan.segments:
        queries = query.narrow(2, segment.start, segment.length)
        keys, values = (_keys_of(states, segment) for states in (key, value))
        mask = _mask(plan, segment, rule.window, query.device)
        if rule.softcap is None and rule.sinks is None:
            out = scaled_dot_product_attention(
                queries,
                keys,
                values,
                attn_mask=mask,
                is_causal=mask is None,
                scale=rule.scale,
                dropout_p=rule.dropout,
            )
        else:
            out = _written_out(queries, keys, values, mask, rule)
        outputs.append(out.transpose(1, 2))
    return torch.cat(outputs, dim=1)


def blocks(query: Tensor, key: Tensor, value: Tensor, plan: SegmentPlan, rule: ScoreRule) -> Tensor:
    """Blocks of queries, on a processor; see `attention_blocks.py`."""
    return block_attention(query, key, value, plan, rule.scale, rule.window)


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, plan: SegmentPlan, rule: ScoreRule
) -> Tensor:
    """torch's flash kernel for sequences of any length; arguments as for `loop_attention`.

    Half precision on a GPU. Head sizes that the kernel lacks are filled up with zeros, which
    change no score and no value.
    """
    arguments: dict[str, Any] = {}
    if "enable_gqa" in _VARLEN_ARGUMENTS:
        arguments["enable_gqa"] = key.shape[1] != query.shape[1]
    else:
        # torch 2.11 takes as many key heads as heads.
        key, value = (s.repeat_interleave(query.shape[1] // s.shape[1], 1) for s in (key, value))
    out: Tensor = varlen(
        *_laid_out(query, key, value, plan),
        plan.query_ends,
        plan.key_ends,
        plan.max_queries,
        plan.max_keys,
        scale=rule.scale,
        window_size=_window_size(rule.window),
        **arguments,
    )
    return out[None, ..., : value.shape[-1]]


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, plan: SegmentPlan, rule: ScoreRule
) -> Tensor:
    """The flash kernel of the package flash-attn; arguments as for `loop_attention`."""
    flash: Callable[..., Tensor] = import_module("flash_attn").flash_attn_varlen_func
    out = flash(
        *_laid_out(query, key, value, plan),
        plan.query_ends,
        plan.key_ends,
        plan.max_queries,
        plan.max_keys,
        softmax_scale=rule.scale,
        causal=True,
        window_size=_window_size(rule.window),
        softcap=rule.softcap or 0.0,
    )
    return out[None, ..., : value.shape[-1]]


def flexible_attention(
    query: Tensor, key: Tensor, value: Tensor, plan: SegmentPlan, rule: ScoreRule
) -> Tensor:
    """A kernel compiled from a block mask and a rule of scores; arguments as for
    `loop_attention`. On a processor it is not compiled and has no gradient.
    """
    softcap = rule.softcap
    bound = None
    if softcap is not None:
        # A lambda, because the library counts a function's arguments and traces it.
        bound = lambda score, b, h, q, k: softcap * torch.tanh(score / softcap)  # noqa: E731
    attend: Any = _compiled_flex() if query.is_cuda else flex_attention
    found = attend(
        query,
        key,
        value,
        score_mod=bound,
        block_mask=_block_mask(plan, rule.window, query.device),
        scale=rule.scale,
        enable_gqa=key.shape[1] != query.shape[1],
        return_aux=AuxRequest(lse=True) if rule.sinks is not None else None,
    )
    if rule.sinks is not None:
        out, beside = found
        # A sink adds exp(sink) to the sum of exponents that weights are divided by.
        share = torch.sigmoid(beside.lse - rule.sinks.float().view(1, -1, 1))
        found = (out * share[..., None]).to(out.dtype)
    out_by_token: Tensor = found.transpose(1, 2)
    return out_by_token


def _laid_out(
    query: Tensor, key: Tensor, value: Tensor, plan: SegmentPlan
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, and keys and values for each segment: (1, heads, T, d) to (T or n, heads, size)."""
    size = -(-max(query.shape[-1], value.shape[-1]) // 8) * 8
    laid = []
    for states in (query, key, value):
        by_token = states[0].transpose(0, 1)
        if states is not query and plan.key_index is not None:
            by_token = by_token.index_select(0, plan.key_index)
        if by_token.shape[-1] < size:
            by_token = pad(by_token, (0, size - by_token.shape[-1]))
        laid.append(by_token)
    return laid[0], laid[1], laid[2]


def _window_size(window: int | None) -> tuple[int, int]:
    """Keys before a query and behind it, which flash kernels count without the query itself."""
    return (-1 if window is None else window - 1, 0)


def _keys_of(states: Tensor, segment: Segment) -> Tensor:
    """Keys (or values) of a segment, its prefix first."""
    own = states.narrow(2, segment.start, segment.length)
    if segment.prefix_length == 0:
        return own
    return torch.cat([states.narrow(2, segment.prefix_start, segment.prefix_length), own], dim=2)


def _mask(
    plan: SegmentPlan, segment: Segment, window: int | None, device: torch.device
) -> Tensor | None:
    """Which keys each query sees, shape (q, p+q); None where plain causal attention says it."""
    num_prefix, num_keys = segment.prefix_length, segment.prefix_length + segment.length
    window = window if window is not None and window < num_keys else None
    if num_prefix == 0 and window is None:
        return None
    name = (segment.length, num_prefix, window, device)
    if name not in plan.masks:
        # Keys stand at positions 0 … p+q-1 of their sequence, queries at p … p+q-1.
        keys = torch.arange(num_keys, device=device)
        queries = keys[num_prefix:, None]
        mask = keys <= queries
        if window is not None:
            mask &= keys > queries - window
        plan.masks[name] = mask
    found: Tensor = plan.masks[name]
    return found


def _written_out(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rule: ScoreRule
) -> Tensor:
    """Attention written out, for scores that the fused call cannot change."""
    scores = query @ key.transpose(-1, -2) * rule.scale
    if rule.softcap is not None:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    if mask is None:
        size = query.shape[-2]
        mask = torch.ones(size, size, dtype=torch.bool, device=query.device).tril()
    scores = scores.masked_fill(~mask, float("-inf")).float()
    if rule.sinks is not None:
        sink = rule.sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        weights = torch.cat([scores, sink], dim=-1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    return dropout(weights.to(value.dtype), rule.dropout) @ value


@lru_cache
def _compiled_flex() -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=True)
    return compiled


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _block_mask(plan: SegmentPlan, window: int | None, device: torch.device) -> BlockMask:
    """Who sees whom, tile by tile of the row; no layer makes it a second time."""
    name = ("flex", window, device)
    if name not in plan.masks:
        plan.masks[name] = _make_block_mask(plan, window, device)
    found: BlockMask = plan.masks[name]
    return found


def _make_block_mask(plan: SegmentPlan, window: int | None, device: torch.device) -> BlockMask:
    """Tiles that hold a key that is seen; the library's own way looks at tokens x tokens."""
    lengths = torch.tensor([segment.length for segment in plan.segments])

    def of_each_token(values: list[int]) -> Tensor:
        return torch.tensor(values).repeat_interleave(lengths).to(device)

    start = of_each_token([s.start for s in plan.segments])
    prefix_start = of_each_token([s.prefix_start for s in plan.segments])
    prefix_stop = of_each_token([s.prefix_start + s.prefix_length for s in plan.segments])

    num_tokens = int(lengths.sum())
    widest = num_tokens if window is None else window
    # A key of the prefix lies further back in the row than in the sequence.
    gap = start - prefix_stop
    # Rows: tiles of queries; columns: tiles of keys.
    partly, fully = torch.zeros(2, *[-(-num_tokens // _TILE)] * 2, dtype=torch.bool)
    for segment in plan.segments:
        _mark_tiles(segment, widest, partly, fully, sees_all=window is None)
    partly &= ~fully

    def places(tiles: Tensor) -> tuple[Tensor, Tensor]:
        counts = tiles.sum(-1, dtype=torch.int32)
        first = tiles.int().argsort(dim=-1, descending=True, stable=True).int()
        return counts[None, None].to(device), first[None, None].to(device)

    return BlockMask.from_kv_blocks(
        *places(partly),
        *places(fully),
        BLOCK_SIZE=_TILE,
        # A lambda, because the library counts a function's arguments and traces it.
        mask_mod=lambda batch, head, query, key: (
            ((key >= start[query]) & (key <= query) & (query - key < widest))
            | (
                (key >= prefix_start[query])
                & (key < prefix_stop[query])
                & (query - key - gap[query] < widest)
            )
        ),
        seq_lengths=(num_tokens, num_tokens),
    )


def _mark_tiles(
    segment: Segment, widest: int, partly: Tensor, fully: Tensor, *, sees_all: bool
) -> None:
    """Mark the tiles in which a segment's queries see some key, and those in which all see all."""
    stop = segment.stop
    prefix_stop = segment.prefix_start + segment.prefix_length
    for tile in range(segment.start // _TILE, -(-stop // _TILE)):
        first, last = max(segment.start, tile * _TILE), min(stop, (tile + 1) * _TILE) - 1
        own = max(segment.start, first - widest + 1)
        partly[tile, own // _TILE : last // _TILE + 1] = True
        before = max(segment.prefix_start, prefix_stop - (widest - 1 - (first - segment.start)))
        if before < prefix_stop:
            partly[tile, before // _TILE : -(-prefix_stop // _TILE)] = True
        if sees_all and last - first == _TILE - 1:
            fully[tile, -(-segment.start // _TILE) : tile] = True
            fully[tile, -(-segment.prefix_start // _TILE) : prefix_stop // _TILE] = True
