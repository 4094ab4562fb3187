"""Logits of some rows over some columns of the vocabulary: tiles, their softmax and gradients.

A tile holds exponentials of logits, up to a factor of the row, times the slope of a cap on the
logits: what the gradient of a log-probability is made of. Entries of targets are left out of it and
known exactly beside it, so that nothing cancels and bfloat16 may hold a tile. Everything here is
computed in float32; the fused kernels for CUDA are in `head_triton.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

MIN_COLUMNS = 256

Places = tuple[Tensor, Tensor]
"""Rows and columns of a tile whose entries belong to targets."""


class Limits(NamedTuple):
    """What bounds a tile; the smallest of them does."""

    rows: int
    columns: int
    tile_bytes: int
    block: int
    """Elements of the weight's rows that belong to a tile."""


LIMITS = {
    # A tile stays in the caches of two cores or more between its product and the passes over it.
    "cpu": Limits(rows=1024, columns=2**16, tile_bytes=2**22, block=2**23),
    # A program of a kernel holds a row of a tile in its registers.
    "cuda": Limits(rows=8192, columns=8192, tile_bytes=2**28, block=2**26),
}
"""By type of device."""


@dataclass(frozen=True)
class LogitTransform:
    """What a model does to the product of hidden state and head before the softmax.

    logits = softcap * tanh(scale * product / softcap) / temperature
    """

    scale: float = 1.0
    """Cohere's `logit_scale`, or one over Granite's `logits_scaling`."""

    softcap: float | None = None
    """Gemma's `final_logit_softcapping`."""

    temperature: float = 1.0
    """Sampling temperature that log-probabilities are taken at."""

    @property
    def inner(self) -> float:
        """Factor of the product, before the tanh if there is one."""
        return self.scale / (self.temperature if self.softcap is None else self.softcap)

    @property
    def outer(self) -> float:
        """Factor of the tanh."""
        return 1.0 if self.softcap is None else self.softcap / self.temperature

    @property
    def steepest(self) -> float:
        """Slope of the logit over the product where no cap bends it."""
        return self.inner * self.outer

    def slope(self, logits: Tensor) -> Tensor:
        """Derivative of these logits with respect to their products."""
        if self.softcap is None:
            return torch.full_like(logits, self.steepest)
        return (1 - (logits / self.outer).square()) * self.steepest

    def apply(self, product: Tensor) -> Tensor:
        """Logits from products; the argument may be overwritten."""
        if self.inner != 1.0:
            product = product.mul_(self.inner)
        # The last factor not in place: autograd keeps the result of tanh for its gradient.
        return product if self.softcap is None else product.tanh_().mul(self.outer)


class Tile(NamedTuple):
    """Which rows and columns, and what makes their logits."""

    rows: slice
    columns: slice
    part: int
    """Which part of the vocabulary the columns are."""

    weight: Tensor
    """[columns, D], in what products are computed in."""


@dataclass
class TiledLogits:
    """The logits of an output head, which exist one tile at a time.

    Args:
        hidden: [R, D], any float dtype.
        weight: [V, D], any float dtype.
        bias: [V], if there is one.
        targets: [R], token ids.
        transform: What the model does to the logits.
        operand: In what products are computed; their sums are float32.
        tile_bytes: Size of the largest tile in float32, if the device does not want it smaller.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    transform: LogitTransform
    operand: torch.dtype
    tile_bytes: int

    def __post_init__(self) -> None:
        device = self.hidden.device.type
        limits = LIMITS.get(device, LIMITS["cuda"])
        vocabulary, width = self.weight.shape
        self.rows = _parts(len(self.targets), limits.rows)
        rows = max(1, self.rows[0].stop)
        tile_bytes = min(limits.tile_bytes, self.tile_bytes)
        columns = min(limits.columns, limits.block // width, tile_bytes // (4 * rows))
        self.columns = _parts(vocabulary, max(MIN_COLUMNS, columns))
        self.hidden = self.hidden.to(self.operand)
        self.targets = self.targets.contiguous()
        self._memory: dict[torch.dtype, Tensor] = {}
        self._kernels = fused_kernels(device)
        self._found = [self._find(rows) for rows in self.rows] if self._kernels is None else []

    def __iter__(self) -> Iterator[Tile]:
        for part, columns in enumerate(self.columns):
            weight = self.weight[columns].to(self.operand)
            for rows in self.rows:
                yield Tile(rows, columns, part, weight)

    def room(self, tile: Tile, *, own: bool) -> Tensor:
        """Memory for a tile in the operands' dtype: its own, or what the next one overwrites."""
        return self._room(tile, self.operand, own=own)

    def _room(self, tile: Tile, dtype: torch.dtype, *, own: bool = False) -> Tensor:
        shape = (tile.rows.stop - tile.rows.start, tile.columns.stop - tile.columns.start)
        if own:
            return self.hidden.new_empty(shape, dtype=dtype)
        if dtype not in self._memory:
            size = self.rows[0].stop * self.columns[0].stop
            self._memory[dtype] = self.hidden.new_empty(size, dtype=dtype)
        return self._memory[dtype][: shape[0] * shape[1]].view(shape)

    def exponentials(
        self,
        tile: Tile,
        offsets: Tensor,
        sums: Tensor,
        target_logit: Tensor,
        out: Tensor | None,
    ) -> None:
        """Take in the softmax of a tile, as far as the tile knows.

        Args:
            tile: Which.
            offsets: [parts + 1, R], the largest logit of each row up to a part of the vocabulary;
                that of the tile's part is known, the next is overwritten.
            sums: [parts, R], overwritten by sums of exp(logit - offset) with the new offset over
                all tokens but the target.
            target_logit: [R], overwritten where the target is in the tile.
            out: Receives exp(logit - offset) times the slope of the cap, zero at targets.
        """
        product = self._product(tile, out)
        rows, part = tile.rows, tile.part
        known = offsets[part, rows], offsets[part + 1, rows], sums[part, rows], target_logit[rows]
        if self._kernels is None:
            exponentials(product, self.transform, self._places(tile), *known, out)
        else:
            self._kernels.exponentials(product, *self._raw(tile), *known, out)

    def gradients(
        self, tile: Tile, offset: Tensor, elsewhere: Tensor, at_target: Tensor, out: Tensor
    ) -> None:
        """Write `elsewhere` times the exponentials, and `at_target` at targets; all of them [R]."""
        product = self._product(tile, out)
        known = offset[tile.rows], elsewhere[tile.rows], at_target[tile.rows]
        if self._kernels is None:
            gradients(product, self.transform, self._places(tile), *known, out)
        else:
            self._kernels.gradients(product, *self._raw(tile), *known, out)

    def rescale(self, tile: Tile, kept: Tensor, elsewhere: Tensor, at_target: Tensor) -> None:
        """The same from kept exponentials, in place."""
        known = elsewhere[tile.rows], at_target[tile.rows]
        if self._kernels is None:
            rescale(kept, self._places(tile), *known)
        else:
            self._kernels.rescale(kept, *self._raw(tile)[2:], *known)

    def _product(self, tile: Tile, out: Tensor | None) -> Tensor:
        """Float32 products; the plain way has bias and inner factor in them, mostly for nothing."""
        exact = self.operand is torch.float32
        product = out if exact and out is not None else self._room(tile, torch.float32)
        hidden, inner = self.hidden[tile.rows], self.transform.inner
        if self._kernels is not None or not exact:
            add_product(product, hidden, tile.weight.T, anew=True)
            if self._kernels is None:
                product = product if self.bias is None else product.add_(self.bias[tile.columns])
                product = product if inner == 1.0 else product.mul_(inner)
            return product
        if self.bias is None:
            return torch.addmm(product, hidden, tile.weight.T, beta=0, alpha=inner, out=product)
        bias = self.bias[tile.columns].float()
        return torch.addmm(bias, hidden, tile.weight.T, beta=inner, alpha=inner, out=product)

    def _raw(self, tile: Tile) -> tuple[tuple[float, float | None], Tensor | None, Tensor, int]:
        """What a fused kernel needs besides: factors, bias, token ids, and the first column's."""
        factors = self.transform.inner, self.transform.outer if self.transform.softcap else None
        bias = None if self.bias is None else self.bias[tile.columns]
        return factors, bias, self.targets[tile.rows], tile.columns.start

    def _find(self, rows: slice) -> tuple[Tensor, Tensor, list[int]]:
        """Rows in the order of their targets, places in parts, and where each part begins."""
        targets, order = self.targets[rows].sort()
        edges = [part.start for part in self.columns] + [len(self.weight)]
        begins = torch.searchsorted(targets, targets.new_tensor(edges)).tolist()
        return order, targets % max(1, self.columns[0].stop), begins

    def _places(self, tile: Tile) -> Places:
        order, columns, begins = self._found[self.rows.index(tile.rows)]
        found = slice(begins[tile.part], begins[tile.part + 1])
        return order[found], columns[found]


def exponentials(
    product: Tensor,
    transform: LogitTransform,
    places: Places,
    before: Tensor,
    offset: Tensor,
    sums: Tensor,
    target_logit: Tensor,
    out: Tensor | None,
) -> None:
    """`TiledLogits.exponentials` of one tile, from products with bias and inner factor."""
    bend = _cap(product, transform)
    torch.amax(product, 1, out=offset)
    torch.maximum(offset, before, out=offset)
    target_logit[places[0]] = product[places]
    product.sub_(offset[:, None]).exp_()
    product[places] = 0
    torch.sum(product, 1, out=sums)
    if out is not None:
        if bend is not None:
            product.mul_(bend)
        if out is not product:
            out.copy_(product)


def gradients(
    product: Tensor,
    transform: LogitTransform,
    places: Places,
    offset: Tensor,
    elsewhere: Tensor,
    at_target: Tensor,
    out: Tensor,
) -> None:
    """`TiledLogits.gradients` of one tile, from products with bias and inner factor."""
    bend = _cap(product, transform)
    product.sub_(offset[:, None]).exp_()
    if bend is not None:
        product.mul_(bend)
    rescale(product, places, elsewhere, at_target)
    if out is not product:
        out.copy_(product)


def rescale(tile: Tensor, places: Places, elsewhere: Tensor, at_target: Tensor) -> None:
    """Multiply each row, and put the gradients of targets where they belong."""
    tile.mul_(elsewhere[:, None])
    tile[places] = at_target[places[0]].to(tile.dtype)


def add_product(into: Tensor, left: Tensor, right: Tensor, *, anew: bool = False) -> None:
    """into += left @ right, or its beginning; summed in float32 whatever the operands are."""
    beta = 0 if anew else 1
    if left.dtype is into.dtype:
        torch.addmm(into, left, right, beta=beta, out=into)
    elif mixed_products(left.device.type):
        torch.addmm(into, left, right, out_dtype=into.dtype, beta=beta, out=into)
    else:
        torch.addmm(into, left.float(), right.float(), beta=beta, out=into)


@cache
def mixed_products(device: str) -> bool:
    """Whether products of bfloat16 can be had in float32, tried out once.

    Documented for CUDA (torch.addmm, `out_dtype`); other devices have it or not.
    """
    one = torch.ones(16, 16, dtype=torch.bfloat16, device=device)
    result = torch.zeros(16, 16, device=device)
    try:
        torch.addmm(result, one, one, out_dtype=torch.float32, out=result)
    except (TypeError, RuntimeError):
        return False
    return bool((result == 16).all())


@cache
def fused_kernels(device: str) -> ModuleType | None:
    """The kernels of one pass over a tile, where there is a compiler for them."""
    if device != "cuda" or find_spec("triton") is None:
        return None
    from veritune.models import head_triton

    return head_triton


def _cap(product: Tensor, transform: LogitTransform) -> Tensor | None:
    """Turn products into logits in place; the derivative of the tanh, if there is one."""
    if transform.softcap is None:
        return None
    product.tanh_()
    bend = product.square().neg_().add_(1)
    product.mul_(transform.outer)
    return bend


def _parts(total: int, largest: int) -> list[slice]:
    """Slices of even length, of whole cache lines; one of length zero for a total of zero."""
    count = max(1, -(-total // largest))
    size = -(-total // count)
    if count > 1:
        size = -(-size // 16) * 16
    return [
        slice(start, min(start + size, total)) for start in range(0, max(total, 1), max(size, 1))
    ]
