"""A frozen linear layer with a low-rank update, as one operation with a backward pass of its own.

PEFT makes the update, multiplies it by its scale and adds it to the layer's output: three tensors
as large as that output, and more in the backward pass. Here the update is added within a product,
and so are gradients.
"""

from types import MethodType
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn


def fuse_adapted_layers(hf_model: nn.Module) -> None:
    """Let every linear layer that PEFT has adapted compute itself in one operation, in place.

    Layers of other kinds (GPT-2's transposed ones, say) are left to PEFT, and so is every layer
    while its adapter is switched off or merged. Names, weights and saved files stay as they are.
    """
    for module in hf_model.modules():
        if type(module) is Linear and type(module.base_layer) is nn.Linear:
            module.forward = MethodType(_forward, module)


def _forward(layer: Any, inputs: Tensor) -> Tensor:
    """What the layer computes; shape (..., in) to (..., out)."""
    base = layer.base_layer
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    by_peft = layer.disable_adapters or layer.merged or base.weight.requires_grad
    if by_peft or len(names) != 1:
        outputs: Tensor = Linear.forward(layer, inputs)
        return outputs
    down, up = layer.lora_A[names[0]].weight, layer.lora_B[names[0]].weight
    kind = inputs.device.type
    in_half = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if in_half else base.weight.dtype
    operands = (inputs.flatten(0, -2), base.weight, base.bias, down, up)
    of_one_type = (None if one is None else one.to(dtype) for one in operands)
    rows: Tensor = _AdaptedLinear.apply(*of_one_type, layer.scaling[names[0]])  # type: ignore[no-untyped-call]
    return rows.view(*inputs.shape[:-1], base.out_features)


class _AdaptedLinear(torch.autograd.Function):
    """x W' + b + s (x A') B' for rows x; no gradient of W and b."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
    ) -> Tensor:
        inner = (rows @ down.T).mul_(scale)
        ctx.save_for_backward(rows, weight, down, up, inner)
        ctx.scale = scale
        outputs = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
        return outputs.addmm_(inner, up.T)

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, None, None, Tensor | None, Tensor | None, None]:
        rows, weight, down, up, inner = ctx.saved_tensors
        grad_inner = (grad @ up).mul_(ctx.scale)
        grad_rows = (grad @ weight).addmm_(grad_inner, down) if ctx.needs_input_grad[0] else None
        # With the narrow matrix on the left a product takes half the time on a CPU.
        return grad_rows, None, None, grad_inner.T @ rows, (inner.T @ grad).T, None
