"""What a model bears is found out before training: planted faults are caught, and told."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    NemotronConfig,
    NemotronForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

from veritune.errors import ModelError
from veritune.models import legality
from veritune.models.forward import CausalModel
from veritune.models.legality import hides_window, obstacle_to_rows, settle_sharing
from veritune.tokens.encode import TokenizedCompletion, TokenizedRecord

Groups = list[TokenizedRecord]
Make = Callable[..., Any]
Exact = Callable[..., Tensor]
VOCAB = 61
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


@torch.no_grad()
def large(model: Any) -> Any:
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            parameter.normal_(std=1.5 / parameter.shape[-1] ** 0.5, generator=draw)
    return model.eval()


def sums_of(model: CausalModel, groups: Groups) -> Tensor:
    with torch.no_grad():
        return model.completion_logprobs(model.batch(groups, range(len(groups))))[0]


class DeafLlama(LlamaForCausalLM):
    """Keeps to transformers' own attention, which tells sequences apart by jumps of position."""

    def set_attn_implementation(self, attn_implementation: Any, *_: Any, **__: Any) -> None:
        pass


class OneSequenceLlama(LlamaForCausalLM):
    """Attends over the whole row, whatever the plan or the positions say."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.self_attn.forward = self._attend(layer.self_attn)

    @staticmethod
    def _attend(attention: Any) -> Callable[..., Any]:
        def forward(hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
            shape = (*hidden_states.shape[:-1], -1, attention.head_dim)
            query, key, value = (
                projection(hidden_states).view(shape).transpose(1, 2)
                for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            out = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
            return attention.o_proj(out.transpose(1, 2).flatten(2)), None

        return forward


class IndexedGPT2(GPT2LMHeadModel):
    """Counts positions along the row itself."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        embed = self.transformer.wpe.forward
        self.transformer.wpe.forward = lambda positions: embed(
            torch.arange(positions.shape[-1], device=positions.device).expand_as(positions)
        )


class IndexedLlama(LlamaForCausalLM):
    """Rotates by places in the row; a distance within one sequence is still right."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        rotate = self.model.rotary_emb.forward
        self.model.rotary_emb.forward = lambda states, position_ids: rotate(
            states, torch.arange(position_ids.shape[-1])[None].expand_as(position_ids)
        )


class StrangeHead(LlamaForCausalLM):
    """Does something to its logits that no setting names."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * torch.linspace(0.5, 1.5, output.logits.shape[-1])
        return output


def gpt2_config() -> Any:
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=VOCAB,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=512,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )


class LeakyLlama(LlamaForCausalLM):
    """Each layer adds the mean of all tokens so far in the row, as a state would."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp.register_forward_hook(self._add_state)

    @staticmethod
    def _add_state(_module: Any, given: Any, output: Tensor) -> Tensor:
        places = torch.arange(1, output.shape[1] + 1)
        return output + given[0].cumsum(1) / places[:, None]


def linear_attention_model() -> Any:
    config = Qwen3NextConfig(
        **SIZES,
        head_dim=8,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    )
    config._experts_implementation = "eager"
    return large(Qwen3NextForCausalLM(config))


CONVERSANT: dict[str, Callable[[], Any]] = {
    "qwen3-next": linear_attention_model,
    "mamba": lambda: large(
        MambaForCausalLM(
            MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=8)
        )
    ),
    "lfm2": lambda: large(
        Lfm2ForCausalLM(Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]))
    ),
    "bloom": lambda: large(
        BloomForCausalLM(BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4))
    ),
    "leaky": lambda: large(LeakyLlama(LlamaConfig(**SIZES))),
}
"""Models in which sequences of a row learn of each other."""

TACITURN: dict[str, Callable[[], Any]] = {
    "stablelm": lambda: large(StableLmForCausalLM(StableLmConfig(**SIZES))),
    "falcon": lambda: large(
        FalconForCausalLM(
            FalconConfig(
                vocab_size=VOCAB,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_kv_heads=2,
                new_decoder_architecture=True,
            )
        )
    ),
    "nemotron": lambda: large(NemotronForCausalLM(NemotronConfig(**SIZES))),
}
"""Models that this transformers gives no way to hand a plan to their attention."""

PLANTED: dict[str, tuple[Callable[[], Any], str]] = {
    "deaf": (lambda: DeafLlama(LlamaConfig(**SIZES)), "packed"),
    "rotations by index": (lambda: IndexedLlama(LlamaConfig(**SIZES)), "packed"),
    "one sequence": (lambda: OneSequenceLlama(LlamaConfig(**SIZES)), "padded"),
    "positions by index": (lambda: IndexedGPT2(gpt2_config()), "padded"),
}
LEVELS = ("shared", "packed", "padded")


def test_an_ordinary_model_shares(family: str, make_model: Make, groups: Groups):
    model = CausalModel(make_model(family))

    found = settle_sharing(model, groups)

    assert (found.sharing, model.sharing, found.reason) == ("shared", "shared", None)
    assert list(found.errors) == ["shared"]
    assert found.errors["shared"] < 3e-5


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_falls_back_to_the_first_level_that_is_right_and_says_so(
    name: str, groups: Groups, exact_logprobs: Exact
):
    make, right = PLANTED[name]
    hf_model = large(make())
    model = CausalModel(hf_model, sharing="padded")
    expected = sums_of(model, groups[:3])

    found = settle_sharing(model, groups)

    assert (found.sharing, model.sharing) == (right, right)
    assert list(found.errors) == list(LEVELS[: LEVELS.index(right) + 1])
    for level in LEVELS[: LEVELS.index(right)]:
        assert found.errors[level] > 0.05
    assert found.errors[right] < 1e-4
    assert found.reason is not None
    last_wrong = LEVELS[LEVELS.index(right) - 1]
    assert f"{last_wrong} rows change log-probabilities by" in found.reason
    torch.testing.assert_close(sums_of(model, groups[:3]), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("level", ["shared", "packed"])
def test_a_level_that_was_asked_for_stops_instead_of_falling_back(level: Any, groups: Groups):
    model = CausalModel(large(OneSequenceLlama(LlamaConfig(**SIZES))))

    with pytest.raises(ModelError, match=f"in {level} rows") as caught:
        settle_sharing(model, groups, level)

    assert "train.sharing=auto" in str(caught.value)
    assert "nats" in str(caught.value)


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_that_was_asked_for_and_is_right_is_taken(
    level: Any, make_model: Make, groups: Groups
):
    model = CausalModel(make_model("llama"))

    assert settle_sharing(model, groups, level).sharing == level
    assert model.sharing == level


def test_a_model_whose_logits_cannot_be_reproduced_is_refused(groups: Groups):
    model = CausalModel(large(StrangeHead(LlamaConfig(**SIZES))))

    with pytest.raises(ModelError, match="any layout of rows"):
        settle_sharing(model, groups)


def test_a_model_with_damaged_weights_is_refused(make_model: Make, groups: Groups):
    hf_model = make_model("llama")
    with torch.no_grad():
        hf_model.model.norm.weight[0] = float("nan")

    with pytest.raises(ModelError, match="not finite"):
        settle_sharing(CausalModel(hf_model), groups)


def test_a_model_with_linear_attention_is_padded_and_its_state_would_leak(groups: Groups):
    """Qwen3-Next: state runs on from one sequence of a row to the next, without an error."""
    model = CausalModel(linear_attention_model(), sharing="shared")
    leaking = sums_of(model, groups)

    found = settle_sharing(model, groups)

    assert found.sharing == "padded"
    assert found.reason is not None
    assert "linear_attention" in found.reason
    assert found.errors["padded"] < 1e-4
    assert (leaking - sums_of(model, groups)).abs().max() > 0.05
    with pytest.raises(ModelError, match="in shared rows") as caught:
        settle_sharing(model, groups, "shared")
    assert "linear_attention" in str(caught.value)


def test_chunked_attention_is_padded_though_the_probe_is_shorter_than_a_chunk(groups: Groups):
    """Llama 4: its chunks are written into masks alone, and packed rows have none."""
    config = Llama4TextConfig(
        **SIZES,
        head_dim=8,
        intermediate_size_mlp=48,
        attention_chunk_size=96,
        layer_types=["chunked_attention", "full_attention"],
        num_local_experts=2,
        no_rope_layers=[1, 0],
        moe_layers=[],
    )
    config._experts_implementation = "eager"
    model = CausalModel(large(Llama4ForCausalLM(config)))

    found = settle_sharing(model, groups)

    assert found.sharing == "padded"
    assert "chunked_attention" in str(found.reason)


def windowed_moe(**changes: Any) -> Any:
    sizes = {**SIZES, "max_position_embeddings": 1024}
    config = Qwen2MoeConfig(
        **sizes,
        use_sliding_window=True,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        **changes,
    )
    config._experts_implementation = "eager"
    return large(Qwen2MoeForCausalLM(config))


@pytest.mark.parametrize("window", [4, 500])
def test_a_window_that_layers_keep_to_themselves_is_caught_at_any_length(
    window: int, make_groups: Make
):
    """Qwen2-MoE windows by masks alone. A window of 500 is longer than the probe."""
    groups = make_groups([(11, (9, 4)), (8, (6,))])
    model = CausalModel(windowed_moe(sliding_window=window, max_window_layers=2))

    found = settle_sharing(model, groups)

    assert found.sharing == "padded"
    assert "window" in str(found.reason)


@pytest.mark.parametrize("family", ["mistral", "gemma3", "phi3", "mixtral", "gpt-oss"])
def test_a_window_longer_than_the_probe_that_layers_do_tell_is_no_hindrance(
    make_model: Make, groups: Groups, family: str
):
    model = CausalModel(make_model(family, sliding_window=100))

    assert settle_sharing(model, groups).sharing == "shared"


def test_windows_are_asked_for_where_the_config_has_windowed_layers():
    def config(**settings: Any) -> Any:
        text = SimpleNamespace(**settings)
        return SimpleNamespace(get_text_config=lambda: text)

    windowed = ["sliding_attention", "full_attention"]
    assert hides_window(config(sliding_window=10), set())
    assert hides_window(config(sliding_window_size=10), set())
    assert hides_window(config(attention_window_size=10), set())
    assert hides_window(config(sliding_window=10, layer_types=windowed), set())
    assert not hides_window(config(sliding_window=10, layer_types=windowed), {10})
    assert not hides_window(config(sliding_window=10, layer_types=["full_attention"]), set())
    assert not hides_window(config(sliding_window=10, max_position_embeddings=10), set())
    assert not hides_window(config(sliding_window=None), set())
    assert not hides_window(config(), set())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"]}, None),
        ({"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
        ({"layer_types": ["conv", "full_attention"]}, "conv"),
        ({"layer_types": ["indexed_attention"]}, "indexed_attention"),
        ({"layer_types": ["invented_tomorrow"]}, "invented_tomorrow"),
        ({"layers_block_type": ["mamba", "attention"]}, "mamba"),
        ({"layers_block_type": ["attention", "moe"]}, None),
        ({"block_types": ["recurrent", "attention"]}, "recurrent"),
        ({"attn_temperature_tuning": True}, "attn_temperature_tuning"),
        ({"attn_temperature_tuning": False}, None),
        ({"index_topk": 2048}, "index_topk"),
        ({"keep_window_size": 2048}, "keep_window_size"),
        ({"layer_types": None}, None),
        ({}, None),
    ],
)
def test_what_the_probe_may_not_show_is_read_off_the_config(
    settings: dict[str, Any], expected: str | None
):
    text = SimpleNamespace(**settings)
    found = obstacle_to_rows(SimpleNamespace(get_text_config=lambda: text))

    assert (found is None) == (expected is None)
    assert expected is None or expected in str(found)


@pytest.mark.parametrize("family", CONVERSANT)
def test_a_model_whose_rows_disturb_each_other_is_caught_though_no_rule_knows_it(
    family: str, groups: Groups, monkeypatch: pytest.MonkeyPatch
):
    """The rules are switched off: the log-probabilities alone show it."""
    monkeypatch.setattr(legality, "obstacle_to_rows", lambda _: None)
    model = CausalModel(CONVERSANT[family]())

    found = settle_sharing(model, groups)

    assert (found.sharing, model.sharing) == ("padded", "padded")
    assert found.errors["shared"] > 0.05
    assert found.errors["packed"] > 0.05
    assert found.errors["padded"] < 1e-4
    assert "packed rows change log-probabilities by" in str(found.reason)


@pytest.mark.parametrize("family", TACITURN)
def test_a_model_that_hands_no_plan_to_its_attention_is_padded_and_right(
    family: str, groups: Groups
):
    model = CausalModel(TACITURN[family](), sharing="padded")
    expected = sums_of(model, groups[:3])

    found = settle_sharing(model, groups)

    assert found.sharing == "padded"
    assert found.reason is not None
    torch.testing.assert_close(sums_of(model, groups[:3]), expected, rtol=0, atol=1e-4)


def test_a_model_that_looks_ahead_is_refused(groups: Groups):
    """Gemma 3 made into an encoder: what it says of a token depends on the token."""
    config = Gemma3TextConfig(**SIZES, head_dim=8, use_bidirectional_attention=True)
    model = CausalModel(large(Gemma3ForCausalLM(config)))

    with pytest.raises(ModelError, match="any layout of rows"):
        settle_sharing(model, groups)


def test_an_adapter_that_learns_a_prompt_is_refused(make_model: Make, groups: Groups):
    from peft import PromptTuningConfig, get_peft_model

    prompted = get_peft_model(
        make_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )

    with pytest.raises(ModelError, match="learns a prompt") as caught:
        settle_sharing(CausalModel(prompted), groups)

    assert "LoRA" in str(caught.value)


def test_the_check_compares_in_float32_and_leaves_precision_and_mode_as_they_were(
    make_model: Make, groups: Groups
):
    model = CausalModel(make_model("llama").train(), precision="bf16")
    seen: list[tuple[str, bool]] = []
    model.hf.register_forward_pre_hook(lambda *_: seen.append((model.precision, model.hf.training)))

    found = settle_sharing(model, groups)

    assert (found.sharing, model.precision, model.hf.training) == ("shared", "bf16", True)
    assert set(seen) == {("fp32", False)}
    assert found.errors["shared"] < 3e-5, "bfloat16 would be off by more"


def test_one_group_alone_is_checked_beside_itself(make_groups: Make):
    """In a row of its own, a group could not see another."""
    (group,) = make_groups([(6, (5,))])
    model = CausalModel(large(OneSequenceLlama(LlamaConfig(**SIZES))))

    assert settle_sharing(model, [group]).sharing == "padded"


def test_long_groups_are_shortened_to_a_probe_that_bears_loss(make_groups: Make):
    groups = make_groups([(300, (200, 3))])
    late = groups[0].completions[0]
    mask = late.bears_loss.copy()
    mask[:] = False
    mask[150:] = True
    group = TokenizedRecord(
        groups[0].prompt,
        (TokenizedCompletion(late.ids, mask), groups[0].completions[1]),
        groups[0].origin,
    )

    short = legality._shortened(group)

    assert short.prompt.tolist() == group.prompt[-64:].tolist()
    assert len(short.completions[0].ids) == 151
    assert short.completions[0].bears_loss.sum() == 1
    assert len(short.completions[1].ids) == 3
