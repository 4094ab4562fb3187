"""The operations that a step must cost, and the rate at which the machine multiplies matrices.

Forward and backward of every layer and of the output head, each prompt computed once, the head on
the tokens that bear loss, nothing padded and nothing computed again (arXiv:2410.20305 counts the
saving of a shared prompt). Element-wise work, the optimizer and the reference are not in it.
"""

import statistics
import time
from collections.abc import Sequence

import torch

from step.cases import Shape

Group = tuple[int, list[int]]
"""Tokens of a prompt and of each of its completions."""


def step_operations(shape: Shape, groups: Sequence[Group], *, rank: int | None) -> float:
    """Floating-point operations of one step.

    Frozen weights need no gradient of their own, so with adapters of a rank a matrix costs two
    products and not three, and those of its adapter, which is trained.
    """
    tokens = attended = targets = 0.0
    for prompt, completions in groups:
        inputs = [size - 1 for size in completions]
        tokens += prompt + sum(inputs)
        attended += prompt**2 / 2 + sum(size * prompt + size**2 / 2 for size in inputs)
        targets += sum(completions)
    products = 3 if rank is None else 2
    adapters = 0.0 if rank is None else 2.0 * shape.adapter_parameters(rank) * tokens
    trunk = 2.0 * shape.trunk_parameters * tokens
    head = 2.0 * shape.hidden * shape.vocab * targets
    attention = 4.0 * shape.layers * shape.hidden * attended
    return products * (trunk + head) + 3 * (attention + adapters)


def useful_tokens(groups: Sequence[Group]) -> int:
    """Tokens of prompts, each once, and of completions."""
    return sum(prompt + sum(completions) for prompt, completions in groups)


def matrix_rate(shape: Shape, *, device: torch.device, turns: int = 5) -> float:
    """Operations per second of a feed-forward product of the shape, the median of some turns."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rows = 16_384 if device.type == "cuda" else 2048
    left = torch.randn(rows, shape.hidden, device=device, dtype=dtype)
    right = torch.randn(shape.hidden, shape.intermediate, device=device, dtype=dtype)
    seconds = []
    for _ in range(turns + 1):
        began = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 2 * rows * shape.hidden * shape.intermediate / statistics.median(seconds[1:])
