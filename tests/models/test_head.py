"""The fused head against a plain log-softmax in float64."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from veritune.models.head import LogitTransform, linear_logprobs

ROWS, HIDDEN, VOCAB = 300, 12, 23
TRANSFORMS = {
    "plain": LogitTransform(),
    "scale": LogitTransform(scale=0.3),
    "softcap": LogitTransform(softcap=4.0),
    "temperature": LogitTransform(temperature=0.6),
    "all": LogitTransform(scale=1.7, softcap=5.0, temperature=1.4),
}


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, HIDDEN, generator=draw).to(dtype)
    weight = torch.randn(VOCAB, HIDDEN, generator=draw).to(dtype)
    bias = torch.randn(VOCAB, generator=draw).to(dtype)
    targets = torch.randint(0, VOCAB, (ROWS,), generator=draw)
    return hidden, weight, bias, targets


def plain(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, how: LogitTransform
) -> Tensor:
    """Longhand, in float64: softcap * tanh(scale * (h W + b) / softcap) / temperature."""
    logits = hidden.double() @ weight.double().T
    if bias is not None:
        logits = logits + bias.double()
    logits = logits * how.scale
    if how.softcap is not None:
        logits = how.softcap * torch.tanh(logits / how.softcap)
    logits = logits / how.temperature
    return (logits - logits.logsumexp(-1, keepdim=True))[torch.arange(len(targets)), targets]


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("chunk_bytes", [1, 2**20])
def test_values_and_gradients_are_those_of_a_plain_log_softmax(
    name: str, has_bias: bool, chunk_bytes: int
):
    """Three chunks of at most 128 rows, or one."""
    hidden, weight, bias, targets = inputs()
    leaves = [hidden, weight, *([bias] if has_bias else [])]
    for leaf in leaves:
        leaf.requires_grad_()
    upstream = torch.linspace(-2, 3, ROWS)
    transform = TRANSFORMS[name]

    expected = plain(hidden, weight, bias if has_bias else None, targets, transform)
    wanted = torch.autograd.grad((expected * upstream.double()).sum(), leaves)
    found = linear_logprobs(
        hidden,
        weight,
        targets,
        bias=bias if has_bias else None,
        transform=transform,
        chunk_bytes=chunk_bytes,
    )
    given = torch.autograd.grad((found * upstream).sum(), leaves)

    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-5)
    for gradient, correct in zip(given, wanted, strict=True):
        assert (gradient - correct).norm() < 1e-5 * correct.norm()


@pytest.mark.parametrize("name", ["scale", "softcap", "temperature"])
def test_what_the_model_does_to_its_logits_matters(name: str):
    """The control: leaving it out is far from right."""
    hidden, weight, bias, targets = inputs()

    without = linear_logprobs(hidden, weight, targets, bias=bias)

    assert (without - plain(hidden, weight, bias, targets, TRANSFORMS[name])).abs().max() > 0.5
    assert (without - plain(hidden, weight, None, targets, LogitTransform())).abs().max() > 0.5


def test_gradients_are_finite_differences():
    hidden, weight, bias, targets = (t[:40] if t.shape[0] == ROWS else t for t in inputs())
    transform = TRANSFORMS["all"]
    leaves = [hidden, weight, bias]
    for leaf in leaves:
        leaf.requires_grad_()
    given = torch.autograd.grad(
        linear_logprobs(hidden, weight, targets, bias=bias, transform=transform).sum(), leaves
    )
    step = 1e-6
    for place, gradient in enumerate(given):
        direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(place))
        values = []
        for sign in (1, -1):
            moved = [leaf.detach().double() for leaf in leaves]
            moved[place] = moved[place] + sign * step * direction.double()
            values.append(plain(moved[0], moved[1], moved[2], targets, transform).sum())
        slope = (values[0] - values[1]) / (2 * step)
        assert abs((gradient * direction).sum() - slope) < 1e-4 * (1 + abs(slope))


def test_a_weight_that_is_used_twice_gets_both_gradients():
    """Tied weights: embedding and head are one parameter."""
    _, weight, _, targets = inputs()
    weight.requires_grad_()
    ids = targets.roll(1)

    expected = plain(weight[ids], weight, None, targets, LogitTransform())
    (wanted,) = torch.autograd.grad(expected.sum(), weight)
    found = linear_logprobs(weight[ids], weight, targets, chunk_bytes=1)
    (given,) = torch.autograd.grad(found.sum(), weight)

    assert (given - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("trained", ["hidden", "weight", "bias"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_is_right(trained: str):
    hidden, weight, bias, targets = inputs()
    leaves = {"hidden": hidden, "weight": weight, "bias": bias}
    leaf = leaves[trained].requires_grad_()

    (wanted,) = torch.autograd.grad(
        plain(hidden, weight, bias, targets, LogitTransform()).sum(), leaf
    )
    linear_logprobs(hidden, weight, targets, bias=bias).sum().backward()

    assert leaf.grad is not None
    assert (leaf.grad - wanted).norm() < 1e-5 * wanted.norm()
    assert all(other.grad is None for name, other in leaves.items() if name != trained)


def test_low_precision_inputs_are_multiplied_and_summed_in_float32():
    """Rounding the logits to bfloat16 would cost 0.1 nats and more."""
    hidden, weight, bias, targets = inputs(torch.bfloat16)
    weight.requires_grad_()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = linear_logprobs(hidden, weight, targets, bias=bias)
        rounded = torch.nn.functional.linear(hidden, weight, bias).float().log_softmax(-1)
    found.sum().backward()

    expected = plain(hidden, weight, bias, targets, LogitTransform())
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-5
    assert (rounded[torch.arange(ROWS), targets] - expected).abs().max() > 1e-2
    assert weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16


def test_extreme_logits_give_finite_values_and_gradients():
    hidden, weight, _, targets = inputs()
    hidden = (hidden * 1e4).requires_grad_()

    found = linear_logprobs(hidden, weight, targets)
    found.sum().backward()

    assert torch.isfinite(found).all()
    assert (found <= 0).all()
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()


def test_no_targets_give_no_logprobs():
    hidden, weight, _, targets = inputs()
    hidden.requires_grad_()

    found = linear_logprobs(hidden[:0], weight, targets[:0])
    found.sum().backward()

    assert found.shape == (0,)


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in self._tensors(result):
            self.numel = max(self.numel, value.numel())
        return result

    def _tensors(self, value: Any) -> Iterator[Tensor]:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            for part in value:
                yield from self._tensors(part)


def test_the_logits_of_all_rows_never_exist():
    draw = torch.Generator().manual_seed(0)
    rows, vocab = 1000, 500
    hidden = torch.randn(rows, HIDDEN, generator=draw, requires_grad=True)
    weight = torch.randn(vocab, HIDDEN, generator=draw, requires_grad=True)
    targets = torch.randint(0, vocab, (rows,), generator=draw)

    with LargestTensor() as fused:
        linear_logprobs(hidden, weight, targets, chunk_bytes=1).sum().backward()
    with LargestTensor() as usual:
        logits = hidden @ weight.T
        logits.log_softmax(-1).gather(1, targets[:, None]).sum().backward()

    assert fused.numel == 128 * vocab
    assert usual.numel == rows * vocab
