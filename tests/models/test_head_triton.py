"""The kernels against the plain passes, interpreted where there is no GPU to compile them for."""

import os
from importlib.util import find_spec

import pytest
import torch

from veritune.models import head, head_tiles, head_triton
from veritune.models.head import LogitTransform, linear_logprobs

TRANSFORMS = {
    "plain": LogitTransform(scale=0.7),
    "softcap": LogitTransform(scale=1.7, softcap=5.0, temperature=1.4),
}


INTERPRETS = find_spec("triton") is not None and os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.skipif(not INTERPRETS, reason="needs Triton, and TRITON_INTERPRET=1 from the start")
@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("operand", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("trains_head", "budget"), [(False, 1), (True, 1), (True, 2**28)])
def test_the_kernels_give_what_the_plain_passes_give(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    has_bias: bool,
    operand: torch.dtype,
    trains_head: bool,
    budget: int,
):
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 12, generator=draw).to(operand).requires_grad_()
    weight = torch.randn(53, 12, generator=draw).to(operand).requires_grad_(trains_head)
    bias = torch.randn(53, generator=draw).to(operand).requires_grad_(trains_head)
    targets = torch.randint(0, 53, (50,), generator=draw)
    leaves = [hidden] + ([weight] if trains_head else []) + ([bias] * (trains_head and has_bias))
    # Two parts of rows and four of the vocabulary.
    limits = head_tiles.LIMITS["cpu"]._replace(rows=40)
    monkeypatch.setitem(head_tiles.LIMITS, "cpu", limits)
    monkeypatch.setattr(head_tiles, "MIN_COLUMNS", 16)
    monkeypatch.setattr(head, "_operand", lambda hidden, weight: operand)

    results = []
    for module in (None, head_triton):
        monkeypatch.setattr(head_tiles, "fused_kernels", lambda device, found=module: found)
        values = linear_logprobs(
            hidden,
            weight,
            targets,
            bias=bias if has_bias else None,
            transform=TRANSFORMS[name],
            budget_bytes=budget,
        )
        upstream = torch.linspace(-2, 3, 50)
        results.append((values, *torch.autograd.grad((values * upstream).sum(), leaves)))

    # The interpreter cuts numbers off on their way to bfloat16, where a GPU rounds them.
    tolerance = 1e-5 if operand is torch.float32 else 1e-2
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-6, atol=1e-5)
    for found, expected in zip(results[1][1:], results[0][1:], strict=True):
        assert (found - expected).norm() <= tolerance * expected.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("trains_head", "budget"), [(False, 1), (True, 1), (True, 2**30)])
def test_a_gpu_gives_what_the_cpu_gives(
    name: str, dtype: torch.dtype, trains_head: bool, budget: int
):
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 128, generator=draw).to(dtype)
    weight = (torch.randn(20_011, 128, generator=draw) / 4).to(dtype)
    bias = torch.randn(20_011, generator=draw).to(dtype)
    targets = torch.randint(0, 20_011, (300,), generator=draw)

    results = []
    for device in ("cpu", "cuda"):
        leaves = [hidden.detach().to(device).requires_grad_()]
        leaves += [t.detach().to(device).requires_grad_(trains_head) for t in (weight, bias)]
        values = linear_logprobs(
            leaves[0],
            leaves[1],
            targets.to(device),
            bias=leaves[2],
            transform=TRANSFORMS[name],
            budget_bytes=budget,
        )
        trained = [leaf for leaf in leaves if leaf.requires_grad]
        gradients = torch.autograd.grad(values.square().sum(), trained)
        results.append([tensor.cpu().float() for tensor in (values, *gradients)])

    tolerance = 1e-4 if dtype is torch.float32 else 1e-2
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-4)
    for found, expected in zip(results[1][1:], results[0][1:], strict=True):
        assert (found - expected).norm() <= tolerance * expected.norm()
