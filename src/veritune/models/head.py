"""Hidden states to float32 log-probabilities of the targets; the logits exist tile by tile.

The output head runs on the positions that predict a loss-bearing token. A tile is some rows by some
columns of the vocabulary: what a processor's cache holds, or enough to fill an accelerator. Columns
are the outer loop, so that a part of the weight is read once and gets its gradient in one piece;
normalizers are carried along (Milakov and Gimelshein 2018, arXiv:1805.02867, algorithm 3). What is
kept for the backward pass depends on what trains and on a budget of bytes, see `head_mode`.
"""

from collections import deque
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from veritune.models.head_tiles import LogitTransform as LogitTransform
from veritune.models.head_tiles import Tile, TiledLogits, add_product

BUDGET_BYTES = {"cpu": 2**28, "cuda": 2**32}
"""What the head keeps for its backward pass at most, by type of device, unless told otherwise."""

PART_BYTES = {"cpu": 2**26, "cuda": 2**30}
"""Logits that exist at a time, by type of device, where a step goes through the head in parts."""

HeadMode = Literal["values", "frozen", "kept", "recomputed"]
"""What is kept for the backward pass, see `head_mode`."""

_UNCHANGED = LogitTransform()
_LOWEST = torch.finfo(torch.float32).min


def linear_logprobs(
    hidden: Float[Tensor, "R D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, " R"],
    *,
    bias: Float[Tensor, " V"] | None = None,
    transform: LogitTransform = _UNCHANGED,
    budget_bytes: int | None = None,
) -> Float[Tensor, " R"]:
    """Log-probability of each target under `softmax(transform(hidden @ weight.T + bias))`.

    Products are computed in float32 on a CPU. On CUDA their operands are bfloat16 if an input is or
    autocast asks for it; sums and results are float32 there too, and logits are never rounded.

    Args:
        hidden: States that predict the targets; any float dtype.
        weight: The head's weight, in its own dtype; gradient if it requires one.
        targets: Token ids.
        bias: The head's bias, if it has one.
        transform: What the model does to the logits.
        budget_bytes: Most that is kept for the backward pass, and that a tile takes beside it; a
            tile takes up to 1 MiB in any case. None: `BUDGET_BYTES`.

    Returns:
        Float32, in nats, with gradient to `hidden`, `weight` and `bias`; not a number where the
        target is no token of the vocabulary.
    """
    if budget_bytes is None:
        budget_bytes = BUDGET_BYTES.get(hidden.device.type, BUDGET_BYTES["cpu"])
    operand = _operand(hidden, weight)
    learns = torch.is_grad_enabled()
    mode = head_mode(
        len(targets),
        len(weight),
        trains_hidden=learns and hidden.requires_grad,
        trains_head=learns and any(t is not None and t.requires_grad for t in (weight, bias)),
        budget_bytes=budget_bytes,
        operand=operand,
    )
    result: Tensor = _LinearLogProbs.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, transform, mode, operand, budget_bytes
    )
    return result


def head_mode(
    rows: int,
    vocabulary: int,
    *,
    trains_hidden: bool,
    trains_head: bool,
    budget_bytes: int,
    operand: torch.dtype = torch.float32,
) -> HeadMode:
    """What is kept for the backward pass, and how many matrix products both passes take.

    ============  =============================  ========  ==================================
    mode          when                           products  kept
    ============  =============================  ========  ==================================
    values        nothing trains                 1         nothing
    frozen        only the hidden states do      2         [R, D]: their gradients
    kept          the head does, [R, V] fits     3         [R, V]: exponentials of the logits
    recomputed    the head does, it does not     4         nothing
    ============  =============================  ========  ==================================

    Args:
        rows: R, the number of targets.
        vocabulary: V.
        trains_hidden: Whether the hidden states need a gradient.
        trains_head: Whether weight or bias need one.
        budget_bytes: Most that may be kept.
        operand: What the backward pass multiplies in, and therefore keeps.
    """
    if not trains_head:
        return "frozen" if trains_hidden else "values"
    return "kept" if rows * vocabulary * operand.itemsize <= budget_bytes else "recomputed"


class _LinearLogProbs(torch.autograd.Function):
    """A log-probability has the gradient slope * (1 - p) with respect to the product of its target.

    With respect to the products of all other tokens, it is -slope * p.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        transform: LogitTransform,
        mode: HeadMode,
        operand: torch.dtype,
        budget_bytes: int,
    ) -> Tensor:
        own = mode == "kept"
        kept: deque[Tensor] = deque()
        # Weight rows of all tokens but the target, times their probability up to a factor.
        others = _zeros(hidden) if mode == "frozen" else None
        with torch.autocast(hidden.device.type, enabled=False):
            logits = TiledLogits(hidden, weight, bias, targets, transform, operand, budget_bytes)
            parts, rows = len(logits.columns), len(targets)
            offsets = hidden.new_full((parts + 1, rows), _LOWEST, dtype=torch.float32)
            sums = hidden.new_empty((parts, rows), dtype=torch.float32)
            # A target outside of the vocabulary gives no number.
            target_logit = hidden.new_full((rows,), torch.nan, dtype=torch.float32)
            for tile in logits:
                out = logits.room(tile, own=own) if own or others is not None else None
                logits.exponentials(tile, offsets, sums, target_logit, out)
                if out is None:
                    continue
                if others is None:
                    kept.append(out)
                    continue
                before, after = offsets[tile.part : tile.part + 2, tile.rows]
                fading = (before - after).exp_()
                add_product(others[tile.rows].mul_(fading[:, None]), out, tile.weight)
            largest = offsets[-1]
            fading = (offsets[1:] - largest).exp_()
            wrong = sums.mul_(fading).sum(0)
            from_largest = target_logit - largest
            total = wrong + from_largest.exp()
            logprobs = from_largest - total.log()
            # 1 - p(target), exact also where p is close to one.
            at_target = transform.slope(target_logit).mul_(wrong / total)
            elsewhere = -transform.steepest / total
            if others is not None:
                targeted = weight.index_select(0, targets).float()
                slopes = others.mul_(elsewhere[:, None]).addcmul_(targeted, at_target[:, None])
                ctx.save_for_backward(slopes.to(hidden.dtype))
        if mode in ("kept", "recomputed"):
            known = (largest, fading if own else None, elsewhere, at_target)
            ctx.save_for_backward(hidden, weight, bias, targets, *known)
        ctx.mode, ctx.kept, ctx.how = mode, kept, (transform, operand, budget_bytes)
        return logprobs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        settings = (None,) * 5
        if ctx.mode == "frozen":
            (slopes,) = ctx.saved_tensors
            return (gradient[:, None] * slopes).to(slopes.dtype), None, None, *settings
        hidden, weight, bias, targets, largest, fading, elsewhere, at_target = ctx.saved_tensors
        trains_hidden, trains_weight, trains_bias = ctx.needs_input_grad[:3]
        transform, operand, budget_bytes = ctx.how
        # Taken out and overwritten below; a second pass through the same graph finds none of it.
        kept = ctx.kept
        at_target, elsewhere = at_target * gradient, elsewhere * gradient
        faded = fading * elsewhere if kept else None
        with torch.autocast(hidden.device.type, enabled=False):
            logits = TiledLogits(hidden, weight, bias, targets, transform, operand, budget_bytes)
            d_hidden = _zeros(hidden) if trains_hidden else None
            d_weight = _WeightGradient(weight, logits) if trains_weight else None
            d_bias = _zeros(bias) if trains_bias else None
            for tile in logits:
                if faded is not None:
                    out = kept.popleft()
                    logits.rescale(tile, out, faded[tile.part], at_target)
                else:
                    out = logits.room(tile, own=False)
                    logits.gradients(tile, largest, elsewhere, at_target, out)
                if d_hidden is not None:
                    add_product(d_hidden[tile.rows], out, tile.weight)
                if d_weight is not None:
                    d_weight.add(tile, out)
                if d_bias is not None:
                    d_bias[tile.columns] += out.sum(0, dtype=torch.float32)
        return (
            None if d_hidden is None else d_hidden.to(hidden.dtype),
            None if d_weight is None else d_weight.result,
            None if d_bias is None else d_bias.to(bias.dtype),
            *settings,
        )


class _WeightGradient:
    """[V, D] in the weight's dtype; float32 sums of more than one tile exist for some columns."""

    def __init__(self, weight: Tensor, logits: TiledLogits) -> None:
        self.result = torch.empty_like(weight, memory_format=torch.contiguous_format)
        self._logits = logits
        direct = weight.dtype is torch.float32 or (
            weight.dtype is logits.operand and len(logits.rows) == 1
        )
        columns = logits.columns[0].stop
        self._sums = (
            None if direct else weight.new_empty(columns, weight.shape[1], dtype=torch.float32)
        )

    def add(self, tile: Tile, gradients: Tensor) -> None:
        """One tile's part; all tiles of some columns follow each other."""
        result = self.result[tile.columns]
        sums = result if self._sums is None else self._sums[: len(result)]
        hidden = self._logits.hidden[tile.rows]
        add_product(sums, gradients.T, hidden, anew=tile.rows == self._logits.rows[0])
        if self._sums is not None and tile.rows == self._logits.rows[-1]:
            result.copy_(sums)


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros_like(like, dtype=torch.float32, memory_format=torch.contiguous_format)


def _operand(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """What matrix products are computed in; bfloat16 only where its sums can be had in float32."""
    device = hidden.device.type
    if device != "cuda":
        return torch.float32
    asked = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
    low = torch.bfloat16 in (hidden.dtype, weight.dtype, asked)
    return torch.bfloat16 if low else torch.float32
