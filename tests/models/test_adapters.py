"""Low-rank adapters: a policy that begins as its base, and trains nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from veritune.errors import ModelError
from veritune.models.adapters import AdapterConfig, attach_adapter, save_adapter
from veritune.models.forward import CausalModel
from veritune.tokens.encode import TokenizedRecord

Groups = list[TokenizedRecord]
Make = Callable[..., Any]


def sums_of(model: CausalModel, groups: Groups) -> torch.Tensor:
    return model.completion_logprobs(model.batch(groups, range(len(groups))))[0]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "opt", "qwen2"])
def test_the_policy_begins_as_its_base_bit_for_bit(make_model: Make, groups: Groups, family: str):
    hf_model = make_model(family)
    model = CausalModel(hf_model)
    with torch.no_grad():
        before = sums_of(model, groups)

    attach_adapter(hf_model, AdapterConfig(rank=2), seed=0)

    with torch.no_grad():
        assert torch.equal(sums_of(model, groups), before)


def test_only_the_adapters_train(make_model: Make, groups: Groups):
    hf_model = make_model("llama")
    attach_adapter(hf_model, AdapterConfig(rank=2), seed=0)
    before = {name: p.detach().clone() for name, p in hf_model.named_parameters()}

    sums_of(CausalModel(hf_model), groups).sum().backward()
    torch.optim.SGD([p for p in hf_model.parameters() if p.requires_grad], lr=0.1).step()

    for name, parameter in hf_model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        assert (parameter.grad is not None) == ("lora_" in name)
        if "lora_" not in name:
            assert torch.equal(parameter, before[name])
    moved = [n for n, p in hf_model.named_parameters() if not torch.equal(p, before[n])]
    assert len(moved) == 14, "lora_B of seven matrices in two layers; lora_A has no gradient yet"
    assert all("lora_B" in name for name in moved)


def test_all_linear_leaves_the_output_head_alone(make_model: Make):
    hf_model = make_model("llama")

    attach_adapter(hf_model, AdapterConfig(), seed=0)

    adapted = {
        name.split(".lora_")[0] for name, _ in hf_model.named_parameters() if "lora_" in name
    }
    assert not any("lm_head" in name for name in adapted)
    assert type(hf_model.lm_head) is torch.nn.Linear
    assert len(adapted) == 14


def test_the_update_is_scaled_by_alpha_over_rank(make_model: Make, groups: Groups):
    hf_model = make_model("llama")
    name = "model.layers.0.self_attn.q_proj"
    before = hf_model.get_submodule(name).weight.detach().clone()
    config = AdapterConfig(rank=4, alpha=6.0, target_modules=("q_proj",))
    peft_model = attach_adapter(hf_model, config, seed=0)
    layer = hf_model.get_submodule(name)
    with torch.no_grad():
        layer.lora_B["default"].weight.fill_(0.5)
    update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight

    merged = peft_model.merge_and_unload()

    expected = before + 6.0 / 4 * update
    torch.testing.assert_close(merged.get_submodule(name).weight, expected)


def test_initial_values_come_from_the_seed_alone(make_model: Make):
    def initial(seed: int) -> torch.Tensor:
        hf_model = make_model("llama")
        attach_adapter(hf_model, AdapterConfig(rank=2), seed=seed)
        return torch.cat(
            [p.detach().flatten() for n, p in hf_model.named_parameters() if "lora_A" in n]
        )

    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = initial(0)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left as it was"
    torch.manual_seed(2)

    assert torch.equal(initial(0), one)
    assert not torch.equal(initial(1), one)


def test_an_adapter_has_no_dropout(make_model: Make, groups: Groups):
    hf_model = make_model("llama").train()
    attach_adapter(hf_model, AdapterConfig(rank=2), seed=0)
    with torch.no_grad():
        for name, parameter in hf_model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    hf_model.train()
    model = CausalModel(hf_model)

    with torch.no_grad():
        assert torch.equal(sums_of(model, groups), sums_of(model, groups))


def test_names_that_no_layer_has_are_refused(make_model: Make):
    config = AdapterConfig(target_modules=("no_such_layer",))

    with pytest.raises(ModelError, match="does not fit the model") as caught:
        attach_adapter(make_model("llama"), config, seed=0)

    assert "no_such_layer" in str(caught.value)
    assert "all-linear" in str(caught.value)


def test_a_saved_adapter_loads_with_peft_and_names_its_base(
    make_model: Make, groups: Groups, tmp_path: Path
):
    hf_model = make_model("llama")
    peft_model = attach_adapter(hf_model, AdapterConfig(rank=2), seed=0)
    with torch.no_grad():
        for name, parameter in hf_model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
        expected = sums_of(CausalModel(hf_model), groups)

    save_adapter(peft_model, tmp_path, "org/base")
    again = PeftModel.from_pretrained(make_model("llama"), str(tmp_path))

    with torch.no_grad():
        found = sums_of(CausalModel(again.get_base_model()), groups)
    assert torch.equal(found, expected)
    assert again.peft_config["default"].base_model_name_or_path == "org/base"
