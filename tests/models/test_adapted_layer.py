"""Adapted layers in one operation: what PEFT computes, and its gradients."""

from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear
from torch import Tensor, nn

from veritune.models.adapted_layer import fuse_adapted_layers
from veritune.models.adapters import AdapterConfig, attach_adapter

Make = Callable[..., Any]


def layer_of(*, bias: bool, inputs: int = 24, outputs: int = 40) -> Any:
    """An adapted layer whose update is not zero."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["0"], init_lora_weights=False)
    model = nn.Sequential(nn.Linear(inputs, outputs, bias=bias))
    return inject_adapter_in_model(config, model)[0]


def values_and_gradients(layer: Any, inputs: Tensor) -> list[Tensor]:
    """Outputs, and gradients of a sum of squares for the inputs and the adapter."""
    inputs = inputs.clone().requires_grad_()
    layer.zero_grad()
    outputs = layer(inputs)
    outputs.float().square().sum().backward()
    gradients = [p.grad for p in layer.parameters() if p.requires_grad]
    assert all(p.grad is None for p in layer.base_layer.parameters())
    return [outputs.detach(), inputs.grad, *gradients]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 24), (1, 7, 24), (2, 3, 1, 24), (0, 24)])
def test_values_and_gradients_are_those_of_peft(bias: bool, shape: tuple[int, ...]):
    layer = layer_of(bias=bias).double()
    inputs = torch.randn(shape, dtype=torch.float64)
    expected = values_and_gradients(layer, inputs)

    fuse_adapted_layers(nn.Sequential(layer))

    found = values_and_gradients(layer, inputs)
    assert "forward" in vars(layer)
    assert len(found) == len(expected) == 4
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_finite_differences():
    layer = layer_of(bias=True, inputs=5, outputs=6).double()
    fuse_adapted_layers(nn.Sequential(layer))
    names = ("lora_A.default.weight", "lora_B.default.weight")

    def outputs(inputs: Tensor, *weights: Tensor) -> Tensor:
        named = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(layer, named, (inputs,))

    operands = [torch.randn(3, 5).double(), *map(layer.get_parameter, names)]
    operands = [one.detach().clone().requires_grad_() for one in operands]
    assert torch.autograd.gradcheck(outputs, operands)


def test_under_autocast_it_computes_in_half_precision_as_peft_does():
    layer = layer_of(bias=True)
    inputs = torch.randn(9, 24)
    exact = values_and_gradients(layer, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        by_peft = values_and_gradients(layer, inputs)
    fuse_adapted_layers(nn.Sequential(layer))

    with torch.autocast("cpu", torch.bfloat16):
        found = values_and_gradients(layer, inputs)

    for one, peft, right in zip(found, by_peft, exact, strict=True):
        assert one.dtype == peft.dtype
        error = (one - right).norm() / right.norm()
        assert error < 1e-2
        assert error < 1.5 * (peft - right).norm() / right.norm()


def test_switched_off_and_merged_it_is_left_to_peft():
    layer = layer_of(bias=True)
    fuse_adapted_layers(nn.Sequential(layer))
    inputs = torch.randn(3, 24)
    adapted, base = layer(inputs), layer.base_layer(inputs)
    assert not torch.allclose(adapted, base)

    layer.enable_adapters(False)
    assert torch.equal(layer(inputs), base)
    layer.enable_adapters(True)
    assert torch.equal(layer(inputs), adapted)

    layer.merge()
    torch.testing.assert_close(layer(inputs), adapted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "is_fused"), [("llama", True), ("qwen2", True), ("gpt2", False)]
)
def test_a_models_layers_are_fused_where_they_are_linear(
    make_model: Make, family: str, is_fused: bool
):
    hf_model = make_model(family)
    attach_adapter(hf_model, AdapterConfig(rank=2), seed=0)

    adapted = [module for module in hf_model.modules() if type(module) is Linear]

    assert adapted
    assert all(("forward" in vars(module)) == is_fused for module in adapted)


def test_a_compiled_layer_computes_the_same(monkeypatch: pytest.MonkeyPatch):
    # The check of shapes that tests put around every function cannot be compiled.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    layer = layer_of(bias=True)
    fuse_adapted_layers(nn.Sequential(layer))
    inputs = torch.randn(6, 24)
    expected = values_and_gradients(layer, inputs)

    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    outputs = compiled(inputs)
    layer.zero_grad()
    outputs.square().sum().backward()

    torch.testing.assert_close(outputs.detach(), expected[0])
    found = [p.grad for p in layer.parameters() if p.requires_grad]
    for one, other in zip(found, expected[2:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_it_keeps_no_second_tensor_as_large_as_its_outputs():
    layer = layer_of(bias=False, inputs=8, outputs=64)
    inputs = torch.randn(100, 8)

    def kept() -> int:
        sizes: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            layer(inputs)
        return max(sizes.values())

    fuse_adapted_layers(nn.Sequential(layer))
    assert kept() == inputs.numel()
