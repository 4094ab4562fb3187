"""The segment plan carried out for unmodified models, through transformers' attention interface.

A packed row holds many sequences, and completions that share a prompt. Attention over it is a list
of segments (`batches.batch.SegmentPlan`): the queries of a segment see its prefix and, causally,
each other. No mask over the row exists. Which kernel does it depends on device and model; a kernel
for GPUs has to give the plain loop's results, once, before it is used.
"""

import warnings
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface

from veritune.batches.batch import Segment, SegmentPlan
from veritune.errors import VerituneWarning
from veritune.models import attention_kernels as kernels
from veritune.models.attention_kernels import Kernel, ScoreRule

SEGMENTS = "veritune_segments"
"""The name under which models are told to use this attention."""

KernelName = Literal["blocks", "varlen", "flash", "flex", "loop"]


def _outside_graphs(kernel: Kernel) -> Kernel:
    """A kernel that slices by the plan's numbers: a compiled layer would be compiled for these."""
    outside: Kernel = torch.compiler.disable(kernel)  # type: ignore[no-untyped-call]
    return outside


KERNELS: dict[KernelName, Kernel] = {
    "blocks": _outside_graphs(kernels.blocks),
    "varlen": kernels.varlen_attention,
    "flash": kernels.flash_attention,
    "flex": kernels.flexible_attention,
    "loop": _outside_graphs(kernels.loop_attention),
}
"""What each name stands for."""

# Head sizes that kernels are made for; a head takes the next one.
_SIZES = (32, 64, 96, 128, 192, 256, 512)
_MAX_FLASH_SIZE = 256
# Half precision is off by half a percent; a wrong alignment, by as much as there is.
_PROOF_TOLERANCE = 0.03


class Demands(NamedTuple):
    """What a layer asks of a kernel."""

    device: torch.device
    dtype: torch.dtype
    size: int
    """Of heads, rounded up to what kernels are made for."""

    has_softcap: bool = False
    has_sinks: bool = False


class Offers(NamedTuple):
    """What is installed."""

    varlen: bool = kernels.HAS_VARLEN
    flash: bool = kernels.HAS_FLASH


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
    if not getattr(module, "is_causal", True):
        raise NotImplementedError("segments describe causal attention")
    if sliding_window and not torch.compiler.is_compiling():
        plan.windows.add(sliding_window)
    kind = query.device.type
    # Rotations leave queries and keys in float32 where layers compute in half precision.
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    rule = ScoreRule(
        query.shape[-1] ** -0.5 if scaling is None else scaling,
        sliding_window or None,
        softcap,
        s_aux,
        dropout,
    )
    # Only the loop drops weights.
    name: KernelName = "loop"
    if not dropout:
        name = kernel_in_use(
            query.device, query.dtype, _size(query, value), softcap is not None, s_aux is not None
        )
    return KERNELS[name](query, key, value, plan, rule), None


def kernels_for(demands: Demands, offers: Offers) -> tuple[KernelName, ...]:
    """The kernels that can do it, fastest first; the last does everything.

    float32 on a GPU is left to the loop: the others compute in half precision, or round their
    products to less than float32.
    """
    device, dtype, size, has_softcap, has_sinks = demands
    is_plain = not (has_softcap or has_sinks)
    if device.type == "cpu":
        is_wide = dtype in (torch.float32, torch.float64)
        return ("blocks", "loop") if is_plain and is_wide else ("loop",)
    is_half = dtype in (torch.float16, torch.bfloat16)
    if device.type != "cuda" or not is_half:
        return ("loop",)
    names: list[KernelName] = []
    if size <= _MAX_FLASH_SIZE:
        if offers.varlen and is_plain:
            names.append("varlen")
        if offers.flash and not has_sinks:
            names.append("flash")
    return (*names, "flex", "loop")


def _size(query: Tensor, value: Tensor) -> int:
    # Comparisons, because a compiled layer knows sizes by what they compare with.
    for size in _SIZES:
        if query.shape[-1] <= size and value.shape[-1] <= size:
            return size
    return _SIZES[-1]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def kernel_in_use(*demands: Any) -> KernelName:
    """The first kernel that can do it and gives the loop's results; arguments are `Demands`."""
    return _kernel_in_use(Demands(*demands))


@lru_cache
def _kernel_in_use(demands: Demands) -> KernelName:
    for name in kernels_for(demands, Offers()):
        if name in ("blocks", "loop"):
            return name
        error = proof(name, demands)
        if error is None:
            return name
        warnings.warn(
            VerituneWarning(f"the attention kernel {name} is not used: {error}"), stacklevel=2
        )
    raise AssertionError("the last kernel does everything")


@torch.inference_mode(False)
@torch.enable_grad()
def proof(name: KernelName, demands: Demands) -> str | None:
    """Compare a kernel with the loop in float32, forward and backward, on small random rows.

    Versions of a kernel differ in how they lay few queries against many keys, and what is wrong
    there goes wrong without an error.

    Returns:
        None if they agree, and otherwise what is the matter.
    """
    plan = SegmentPlan.of(
        [
            Segment(0, 150, 0, 0),
            Segment(150, 70, 0, 150),
            Segment(220, 5, 0, 150),
            Segment(225, 3, 225, 0),
            Segment(228, 1, 225, 3),
            Segment(229, 27, 225, 3),
        ]
    ).to(demands.device)
    for window in (None, 20):
        try:
            difference = _difference(name, demands, plan, window)
        # A kernel that does not run on this device says so in one of these.
        except (RuntimeError, TypeError, ValueError, ImportError, AttributeError) as error:
            return f"it fails ({str(error).splitlines()[0] if str(error) else repr(error)})"
        if not difference <= _PROOF_TOLERANCE:
            return f"its results are off by {difference:.2g} of their size, window {window}"
    return None


def _difference(name: KernelName, demands: Demands, plan: SegmentPlan, window: int | None) -> float:
    """The largest relative error of a kernel's output and gradients, as norms."""
    draw = torch.Generator().manual_seed(0)
    num_tokens, num_heads, num_key_heads = plan.segments[-1].stop, 4, 2

    def states(*shape: int) -> Tensor:
        numbers = torch.randn(*shape, generator=draw)
        return numbers.to(demands.device, demands.dtype)

    given = [
        states(1, num_heads, num_tokens, demands.size),
        states(1, num_key_heads, num_tokens, demands.size),
        states(1, num_key_heads, num_tokens, demands.size),
    ]
    upstream = states(1, num_tokens, num_heads, demands.size)
    rule = ScoreRule(
        demands.size**-0.5,
        window,
        5.0 if demands.has_softcap else None,
        states(num_heads) if demands.has_sinks else None,
    )

    def results(kernel: Kernel, dtype: torch.dtype) -> list[Tensor]:
        leaves = [tensor.to(dtype).requires_grad_() for tensor in given]
        out = kernel(leaves[0], leaves[1], leaves[2], plan, rule)
        return [out, *torch.autograd.grad(out, leaves, upstream.to(dtype))]

    with torch.autocast(demands.device.type, enabled=False):
        found = results(KERNELS[name], demands.dtype)
        expected = results(kernels.loop_attention, torch.float32)
    errors = [
        (one.float() - other).norm() / other.norm()
        for one, other in zip(found, expected, strict=True)
    ]
    return torch.stack(errors).max().item()


AttentionInterface.register(SEGMENTS, segment_attention)
