"""Kernels for CUDA: the passes over a tile of logits in one reading and one writing each.

A program takes one row of a tile, all of its columns at once in registers. The functions do what
those of the same names in `head_tiles.py` do, which their tests compare them with; here bias and
inner factor are applied on the way, because a product in mixed precision takes neither.
"""

from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, no_type_check

from torch import Tensor

triton: Any = SimpleNamespace(jit=lambda kernel: kernel)
tl: Any = SimpleNamespace(constexpr=int)
# Without the compiler the module can be read, and `head_tiles.fused_kernels` does not offer it.
if find_spec("triton") is not None:
    triton, tl = import_module("triton"), import_module("triton.language")


def exponentials(
    product: Tensor,
    factors: tuple[float, float | None],
    bias: Tensor | None,
    targets: Tensor,
    first: int,
    before: Tensor,
    offset: Tensor,
    sums: Tensor,
    target_logit: Tensor,
    out: Tensor | None,
) -> None:
    """Sums of exp(logit - offset) without targets, and the exponentials if `out` is given.

    Args:
        product: [rows, columns], hidden states times weight, float32.
        factors: Of products with bias, and of the tanh of that if there is one.
        bias: [columns].
        targets: [rows], token ids.
        first: The token id of the first column.
        before: [rows], the largest logit so far.
        offset: [rows], overwritten by the largest logit including this tile.
        sums: [rows], overwritten.
        target_logit: [rows], overwritten where the target is in the tile.
        out: [rows, columns], overwritten; `product` itself will do.
    """
    _exponentials[_grid(product)](
        product,
        product if bias is None else bias,
        targets,
        before,
        offset,
        sums,
        target_logit,
        product if out is None else out,
        product.shape[1],
        first,
        factors[0],
        factors[1] or 1.0,
        HAS_BIAS=bias is not None,
        CAPPED=factors[1] is not None,
        STORES=out is not None,
        **_launch(product),
    )


def gradients(
    product: Tensor,
    factors: tuple[float, float | None],
    bias: Tensor | None,
    targets: Tensor,
    first: int,
    offset: Tensor,
    elsewhere: Tensor,
    at_target: Tensor,
    out: Tensor,
) -> None:
    """`elsewhere` times the exponentials relative to `offset`, and `at_target` at targets."""
    _gradients[_grid(product)](
        product,
        product if bias is None else bias,
        targets,
        offset,
        elsewhere,
        at_target,
        out,
        product.shape[1],
        first,
        factors[0],
        factors[1] or 1.0,
        HAS_BIAS=bias is not None,
        CAPPED=factors[1] is not None,
        KEPT=False,
        **_launch(product),
    )


def rescale(
    tile: Tensor, targets: Tensor, first: int, elsewhere: Tensor, at_target: Tensor
) -> None:
    """Multiply each row of kept exponentials, and put `at_target` at targets."""
    _gradients[_grid(tile)](
        tile,
        tile,
        targets,
        elsewhere,
        elsewhere,
        at_target,
        tile,
        tile.shape[1],
        first,
        1.0,
        1.0,
        HAS_BIAS=False,
        CAPPED=False,
        KEPT=True,
        **_launch(tile),
    )


def _grid(tile: Tensor) -> tuple[int]:
    return (tile.shape[0],)


def _launch(tile: Tensor) -> dict[str, Any]:
    block = triton.next_power_of_2(tile.shape[1])
    # Sixteen numbers for each thread leave room for what is computed from them.
    return {"BLOCK": block, "num_warps": min(max(block // 512, 1), 16)}


@triton.jit
@no_type_check
def _logits(
    product,
    bias,
    start,
    columns,
    inside,
    inner,
    outer,
    HAS_BIAS: tl.constexpr,
    CAPPED: tl.constexpr,
):
    logits = tl.load(product + start + columns, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        logits += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    logits *= inner
    bend = 1.0
    if CAPPED:
        # tanh by the one exponential that the language has everywhere.
        tanh = 2.0 * tl.sigmoid(2.0 * logits) - 1.0
        bend = 1.0 - tanh * tanh
        logits = tanh * outer
    return tl.where(inside, logits, float("-inf")), bend


@triton.jit
@no_type_check
def _exponentials(
    product,
    bias,
    targets,
    before,
    offset,
    sums,
    target_logit,
    out,
    width,
    first,
    inner,
    outer,
    HAS_BIAS: tl.constexpr,
    CAPPED: tl.constexpr,
    STORES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    start = row * width
    logits, bend = _logits(product, bias, start, columns, inside, inner, outer, HAS_BIAS, CAPPED)
    target = tl.load(targets + row) - first
    hit = columns == target
    if (target >= 0) & (target < width):
        tl.store(target_logit + row, tl.sum(tl.where(hit, logits, 0.0), axis=0))
    largest = tl.maximum(tl.max(logits, axis=0), tl.load(before + row))
    exponentials = tl.where(hit, 0.0, tl.exp(logits - largest))
    tl.store(offset + row, largest)
    tl.store(sums + row, tl.sum(exponentials, axis=0))
    if STORES:
        exponentials *= bend
        tl.store(out + start + columns, exponentials.to(out.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def _gradients(
    product,
    bias,
    targets,
    offset,
    elsewhere,
    at_target,
    out,
    width,
    first,
    inner,
    outer,
    HAS_BIAS: tl.constexpr,
    CAPPED: tl.constexpr,
    KEPT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    start = row * width
    if KEPT:
        part = tl.load(product + start + columns, mask=inside, other=0.0).to(tl.float32)
    else:
        logits, bend = _logits(
            product, bias, start, columns, inside, inner, outer, HAS_BIAS, CAPPED
        )
        part = tl.exp(logits - tl.load(offset + row)) * bend
    hit = columns == tl.load(targets + row) - first
    gradient = tl.where(hit, tl.load(at_target + row), part * tl.load(elsewhere + row))
    tl.store(out + start + columns, gradient.to(out.dtype.element_ty), mask=inside)
