"""Compiled layers of small models on rows of several lengths: programs made, and errors.

Run as a process of its own, because the checks of shapes and types that tests switch on would be
compiled too. Prints one line of JSON.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from dense_attention import flash_semantics
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig

from veritune.batches.pack import pack
from veritune.models import attention, attention_kernels
from veritune.models.adapters import AdapterConfig, attach_adapter
from veritune.models.compiled import compile_layers
from veritune.models.forward import CausalModel
from veritune.models.tiny import tiny_model
from veritune.records.kinds import Origin
from veritune.tokens.encode import TokenizedCompletion, TokenizedRecord

VOCAB = 61
SHAPES = [
    [(11, (9, 4)), (3, (5,))],
    [(20, (30,))],
    [(2, (7, 3, 9)), (30, (4, 4)), (4, (5,))],
    [(40, (20, 6))],
]
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def make_model(family: str) -> Any:
    if family == "gpt2":
        return tiny_model("gpt2", vocab_size=VOCAB)
    if family == "adapted llama":
        adapted = make_model("llama")
        attach_adapter(adapted, AdapterConfig(rank=2), seed=0)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        return adapted
    kinds = ["sliding_attention", "full_attention"]
    config = {
        "llama": lambda: LlamaConfig(**SIZES),
        "gemma3": lambda: Gemma3TextConfig(**SIZES, sliding_window=6, layer_types=kinds),
    }[family]()
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def make_rows() -> list[list[TokenizedRecord]]:
    draw = np.random.default_rng(0)

    def ids(length: int) -> Any:
        return draw.integers(0, VOCAB, length).astype(np.int32)

    return [
        [
            TokenizedRecord(
                ids(num_prompt),
                tuple(TokenizedCompletion(ids(n), np.ones(n, bool)) for n in lengths),
                Origin("made", 1),
            )
            for num_prompt, lengths in shapes
        ]
        for shapes in SHAPES
    ]


def outcome(model: CausalModel, groups: list[TokenizedRecord], multiple_of: int) -> Tensor:
    """Log-probabilities of a row, and the gradient of their sum, as one vector."""
    model.hf.zero_grad()
    batch = pack(groups, range(len(groups)), multiple_of=multiple_of)
    sums, _, _ = model.completion_logprobs(batch)
    sums.sum().backward()
    gradients = [p.grad.flatten() for p in model.hf.parameters() if p.grad is not None]
    return torch.cat([sums.detach().float(), *gradients])


class Programs:
    """Counts the graphs that it is asked to compile, and runs them as they are."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: Any, _inputs: Any) -> Any:
        self.count += 1
        return graph.forward


@torch.library.custom_op("veritune_tests::varlen", mutates_args=())
def varlen_op(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    max_queries: int,
    max_keys: int,
    scale: float,
    left: int,
) -> Tensor:
    """What torch's kernel is to a compiler: a call that it does not look into."""
    ends = (query_ends, key_ends, max_queries, max_keys)
    return flash_semantics(query, key, value, *ends, scale=scale, window_size=(left, 0))


@varlen_op.register_fake
def _(query: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(query)


def keep(ctx: Any, inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.rest = inputs[5:]


def gradient(ctx: Any, upstream: Tensor) -> Any:
    *leaves, query_ends, key_ends = ctx.saved_tensors
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    *sizes, scale, left = ctx.rest
    ends = (query_ends, key_ends, *sizes)
    with torch.enable_grad():
        out = flash_semantics(*leaves, *ends, scale=scale, window_size=(left, 0))
    return (*torch.autograd.grad(out, leaves, upstream), *(None for _ in range(6)))


varlen_op.register_autograd(gradient, setup_context=keep)


def varlen_stand_in(
    *tensors_and_sizes: Any, scale: float, window_size: tuple[int, int], enable_gqa: bool
) -> Tensor:
    assert enable_gqa
    return varlen_op(*tensors_and_sizes, scale, window_size[0])


@contextmanager
def kernel_for_gpus() -> Iterator[None]:
    """Rows go through the kernel for GPUs, or what stands for it here."""
    before = attention_kernels.varlen, attention.kernels_for
    attention_kernels.varlen, attention.kernels_for = varlen_stand_in, lambda *_: ("varlen",)
    attention._kernel_in_use.cache_clear()
    yield
    attention_kernels.varlen, attention.kernels_for = before
    attention._kernel_in_use.cache_clear()


def run(family: str, *, multiple_of: int = 1, dynamic: bool = True, backend: Any = None) -> Any:
    """Programs made until the end of each row, breaks of graphs, and the largest error."""
    model = CausalModel(make_model(family))
    rows = make_rows()
    expected = [outcome(model, groups, 1) for groups in rows]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    programs = Programs()
    if dynamic:
        compile_layers(model.hf, backend=backend or programs)
    else:
        for layer in model.hf.model.layers:
            layer.compile(dynamic=False, backend=programs)
    counts, errors = [], []
    for groups, correct in zip(rows, expected, strict=True):
        found = outcome(model, groups, multiple_of)
        counts.append(programs.count)
        errors.append(((found - correct).norm() / correct.norm()).item())
    breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
    return {"counts": counts, "error": max(errors), "breaks": breaks}


def main() -> None:
    torch.set_num_threads(1)
    found = {family: run(family) for family in ("llama", "gpt2")}
    found["closed lengths"] = run("llama", dynamic=False)
    for family in ("llama", "adapted llama"):
        found[f"{family} taken apart"] = run(family, backend="aot_eager")
    with kernel_for_gpus():
        for family in ("llama", "adapted llama", "gemma3"):
            found[f"{family} for gpus"] = run(family, multiple_of=32)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
