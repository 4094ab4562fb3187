"""Compiled decoder layers: one program for all rows, whatever their length.

Each layer is compiled by itself and in place, with sizes left open; layers of one kind share their
program. What depends on the numbers of a row's plan stays outside (`attention.py`).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from veritune.errors import ModelError

# Beyond torch's own limit (8), layers would run uncompiled. Kinds of layers, with and without
# gradient, padded or packed, stay far below this one.
_MOST_PROGRAMS = 256


def compile_layers(
    hf_model: nn.Module,
    *,
    backend: str | Callable[..., Any] = "inductor",
    is_optional: bool = False,
) -> int:
    """Compile every decoder layer of a model, in place, at its first call.

    The first row then takes a minute or so. Later rows may differ in length: pack them to a
    multiple of 128 tokens, in which kernels work. Weights, names and saved files stay as they are.

    Args:
        hf_model: A model of transformers.
        backend: torch's name of what makes programs out of graphs.
        is_optional: Let a layer that cannot be compiled run as it is; torch says so in its log.

    Returns:
        The number of layers; none may be found if it is optional.

    Raises:
        ModelError: The model has none that transformers marks as such.
    """
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, _MOST_PROGRAMS)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, _MOST_PROGRAMS)
    limits.suppress_errors = is_optional
    layers = [m for m in hf_model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        if is_optional:
            return 0
        raise ModelError(
            "the model has no decoder layers that could be compiled one by one",
            where="model",
            got=type(hf_model).__name__,
            fix="train without compiled layers (train.compile=false)",
        )
    for layer in layers:
        layer.compile(dynamic=True, backend=backend)
    return len(layers)
