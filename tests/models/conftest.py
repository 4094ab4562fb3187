"""Small models of many architectures with weights large enough for errors to show."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    CohereConfig,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    Glm4Config,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    Ministral3Config,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Olmo3Config,
    OlmoConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

from veritune.models.attention import SEGMENTS
from veritune.records.kinds import Origin
from veritune.tokens.encode import TokenizedCompletion, TokenizedRecord

VOCAB, HIDDEN, WINDOW = 61, 32, 6
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
GATED = {**COMMON, "intermediate_size": 48, "num_key_value_heads": 2}
HEADED = {**GATED, "head_dim": 8}
# One layer with a window and one without.
MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**GATED),
    "qwen2": lambda: Qwen2Config(**GATED, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**HEADED),
    "gemma": lambda: GemmaConfig(**HEADED),
    "gemma2": lambda: Gemma2Config(
        **HEADED,
        **MIXED,
        query_pre_attn_scalar=8,
        final_logit_softcapping=8.0,
        attn_logit_softcapping=5.0,
    ),
    "gemma3": lambda: Gemma3TextConfig(**HEADED, **MIXED, query_pre_attn_scalar=8),
    "mistral": lambda: MistralConfig(**GATED, sliding_window=WINDOW),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB,
        n_embd=HIDDEN,
        n_layer=2,
        n_head=4,
        n_positions=128,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    ),
    "phi": lambda: PhiConfig(**GATED, partial_rotary_factor=0.5, resid_pdrop=0.0, embd_pdrop=0.0),
    "opt": lambda: OPTConfig(**COMMON, ffn_dim=48, word_embed_proj_dim=24, dropout=0.0),
    "phi3": lambda: Phi3Config(**GATED, sliding_window=WINDOW),
    "cohere": lambda: CohereConfig(**GATED, logit_scale=0.25, use_qk_norm=True),
    "cohere2": lambda: Cohere2Config(**HEADED, **MIXED, logit_scale=0.25),
    "granite": lambda: GraniteConfig(
        **GATED,
        logits_scaling=3.0,
        embedding_multiplier=2.0,
        residual_multiplier=0.5,
        attention_multiplier=0.3,
    ),
    "olmo": lambda: OlmoConfig(**GATED, clip_qkv=3.0),
    "olmo2": lambda: Olmo2Config(**GATED),
    "mixtral": lambda: MixtralConfig(**GATED, **EXPERTS, sliding_window=WINDOW),
    "gpt-neox": lambda: GPTNeoXConfig(**COMMON, intermediate_size=48),
    "olmo3": lambda: Olmo3Config(**GATED, **MIXED),
    "qwen3-moe": lambda: Qwen3MoeConfig(
        **HEADED, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    ),
    "deepseek-v3": lambda: DeepseekV3Config(
        **{**GATED, "num_key_value_heads": 4},
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=4,
        qk_nope_head_dim=8,
        v_head_dim=6,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        moe_intermediate_size=16,
    ),
    "smollm3": lambda: SmolLM3Config(**GATED, no_rope_layers=[1, 0]),
    "glm4": lambda: Glm4Config(**HEADED, partial_rotary_factor=0.5),
    "ministral3": lambda: Ministral3Config(**HEADED),
    "gpt-oss": lambda: GptOssConfig(**HEADED, **MIXED, **EXPERTS),
}


MIXTURES = ["mixtral", "qwen3-moe", "deepseek-v3", "gpt-oss"]
"""Architectures with experts, which transformers loads with "grouped_mm": all in one product."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `family` runs for every architecture, or for those that it names.

    One that takes `experts` too runs for mixtures once more, with their experts in one product;
    one that takes `mixture` runs for these only.
    """
    if "mixture" in metafunc.fixturenames:
        metafunc.parametrize("mixture", MIXTURES)
    named = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "family" not in metafunc.fixturenames or any("family" in names for names in named):
        return
    if "experts" not in metafunc.fixturenames:
        metafunc.parametrize("family", list(CONFIGS))
        return
    cases = [pytest.param(family, "eager", id=family) for family in CONFIGS]
    cases += [pytest.param(family, "grouped_mm", id=f"{family}-grouped") for family in MIXTURES]
    metafunc.parametrize(("family", "experts"), cases)


@torch.no_grad()
def with_large_weights(model: Any, seed: int = 0) -> Any:
    """The model with attention and logits far from uniform, and norms and biases that matter."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.empty_like(parameter).normal_(generator=generator)
        if parameter.dim() >= 2:
            parameter.copy_(noise * 1.5 / parameter.shape[-1] ** 0.5)
        else:
            parameter.add_(0.3 * noise)
    return model.eval()


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """A model of a family, with large weights; `changes` go to its config.

    `experts` is how the experts of a mixture are multiplied: one by one, unless told otherwise.
    """

    def make(family: str, *, seed: int = 0, experts: str = "eager", **changes: Any) -> Any:
        config = CONFIGS[family]()
        for name, value in changes.items():
            assert hasattr(config, name), name
            setattr(config, name, value)
        config._experts_implementation = experts
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        return with_large_weights(model, seed)

    return make


@pytest.fixture(scope="session")
def make_groups() -> Callable[..., list[TokenizedRecord]]:
    """Groups of random ids, from their lengths: (prompt, completions)."""

    def make(
        shapes: Sequence[tuple[int, Sequence[int]]], *, seed: int = 0, silent: float = 0.0
    ) -> list[TokenizedRecord]:
        draw = np.random.default_rng(seed)
        groups = []
        for line, (num_prompt, lengths) in enumerate(shapes):
            completions = []
            for length in lengths:
                bears_loss = draw.random(length) >= silent
                bears_loss[-1] = True
                ids = draw.integers(0, VOCAB, length).astype(np.int32)
                completions.append(TokenizedCompletion(ids, bears_loss))
            prompt = draw.integers(0, VOCAB, num_prompt).astype(np.int32)
            groups.append(TokenizedRecord(prompt, tuple(completions), Origin("a.jsonl", line)))
        return groups

    return make


@pytest.fixture(scope="session")
def groups(make_groups: Callable[..., list[TokenizedRecord]]) -> list[TokenizedRecord]:
    """Prompts longer and shorter than the window; completions of one token and of many."""
    return make_groups(
        [(11, (9, 4)), (3, (1, 12, 7)), (1, (5,)), (8, (1,)), (11, (9, 4)), (9, (3, 8, 1, 5))],
        silent=0.2,
    )


@pytest.fixture(scope="session")
def exact_logprobs() -> Callable[[Any, Sequence[TokenizedRecord]], Tensor]:
    """Sequence log-probabilities in float64, one sequence at a time, without padding, with grad.

    Longhand: the model's own logits of one whole sequence, and a log-softmax.
    """

    def exact(model: Any, groups: Sequence[TokenizedRecord], temperature: float = 1.0) -> Tensor:
        own = model.config._attn_implementation
        if own == SEGMENTS:
            model.set_attn_implementation("eager")
        sums = []
        for group in groups:
            for completion in group.completions:
                ids = torch.from_numpy(np.concatenate([group.prompt, completion.ids])).long()
                logits = model(input_ids=ids[None], use_cache=False).logits[0] / temperature
                logprobs = logits.double().log_softmax(-1)
                total = torch.zeros((), dtype=torch.float64)
                for place, bears_loss in enumerate(completion.bears_loss):
                    if bears_loss:
                        token = len(group.prompt) + place
                        total = total + logprobs[token - 1, ids[token]]
                sums.append(total)
        model.set_attn_implementation(own)
        return torch.stack(sums)

    return exact


@pytest.fixture(scope="session")
def in_float64() -> Callable[[Any], Any]:
    """A copy of a model in float64, with its experts one by one."""

    def wide(model: Any) -> Any:
        copy = deepcopy(model).double()
        copy.set_experts_implementation("eager")
        return copy

    return wide
