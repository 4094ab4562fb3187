"""Models and tokenizers from folders, and what is said when a folder is not whole."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from veritune.errors import ModelError
from veritune.models.adapters import AdapterConfig, attach_adapter, save_adapter
from veritune.models.forward import CausalModel
from veritune.models.load import (
    ModelSource,
    check_vocabulary,
    end_tokens,
    find_model,
    load_hf_model,
    load_tokenizer,
    longest_input,
)
from veritune.models.tiny import byte_level_tokenizer, tiny_model, write_tiny_model

CPU = torch.device("cpu")
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = byte_level_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.dim() >= 2 else 1)
    return write_tiny_model(tmp_path_factory.mktemp("base"), model, tokenizer)


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    peft_model = attach_adapter(model, AdapterConfig(rank=3), seed=0)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    save_adapter(peft_model, folder, str(base))
    return folder


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    def copy(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / folder.name))

    return copy


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def load(folder: Path, **arguments: Any) -> Any:
    return load_hf_model(find_model(str(folder)), device=CPU, **arguments)


def test_a_folder_loads_in_float32_with_its_own_weights(base: Path):
    model = load(base)
    given = load_file(base / "model.safetensors")

    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for name, weight in given.items():
        assert torch.equal(model.state_dict()[name], weight)


def test_half_precision_files_become_float32_masters(base: Path, copy_of: Make):
    folder = copy_of(base)
    halves = {name: w.bfloat16() for name, w in load_file(folder / "model.safetensors").items()}
    save_file(halves, folder / "model.safetensors", {"format": "pt"})
    edit_json(folder / "config.json", dtype="bfloat16")

    assert {parameter.dtype for parameter in load(folder).parameters()} == {torch.float32}


def test_the_identity_is_the_content_and_neither_name_nor_tokenizer(base: Path, copy_of: Make):
    folder = copy_of(base)
    source = find_model(str(folder))
    assert source.identity == find_model(str(base)).identity
    assert not source.is_adapter

    (folder / "tokenizer_config.json").unlink()
    (folder / "notes.txt").write_text("mine")
    assert find_model(str(folder)).identity == source.identity

    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert find_model(str(folder)).identity != source.identity


def test_an_adapter_is_identified_with_its_base(base: Path, adapter: Path, copy_of: Make):
    source = find_model(str(adapter))

    assert source.is_adapter
    assert source.base is not None
    assert source.base.identity == find_model(str(base)).identity
    assert source.identity.startswith(source.base.identity)
    other = copy_of(adapter)
    weights = load_file(other / "adapter_model.safetensors")
    weights[sorted(weights)[0]] += 1
    save_file(weights, other / "adapter_model.safetensors", {"format": "pt"})
    assert find_model(str(other)).identity != source.identity


def test_a_merged_adapter_gives_the_log_probabilities_of_pefts_own_forward(
    base: Path, adapter: Path, make_groups: Make, exact_logprobs: Callable[..., Tensor]
):
    groups = make_groups([(6, (5, 3)), (2, (4,))])
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    with torch.no_grad():
        without = exact_logprobs(plain, groups)
        peft_model = PeftModel.from_pretrained(plain, str(adapter)).eval()
        expected = exact_logprobs(peft_model.get_base_model().double(), groups)
        merged = CausalModel(load(adapter))
        found = merged.completion_logprobs(merged.batch(groups, range(2)))[0]

    assert not any("lora" in name for name, _ in merged.hf.named_parameters())
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-5)
    assert (without - expected).abs().max() > 0.1, "the adapter does something"


def remove(*names: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return act


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:5000]) and None


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", **changes)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("config.json"), "holds no model"),
        (remove("model.safetensors"), "holds no weights"),
        (cut("model.safetensors"), "cannot be loaded"),
        (write("model.safetensors", b"x" * 100), "cannot be loaded"),
        (write("config.json", b"{"), "cannot be loaded"),
        (config(model_type="nonsense"), "cannot be loaded"),
        (config(model_type="vit"), "cannot be loaded"),
        (config(hidden_size=64), "cannot be loaded"),
        (config(vocab_size=100), "cannot be loaded"),
        (config(num_hidden_layers=3), "9 weights are missing"),
    ],
)
def test_a_model_that_is_not_whole_is_refused_with_its_folder(
    base: Path, copy_of: Make, damage: Callable[[Path], None], message: str
):
    folder = copy_of(base)
    damage(folder)

    with pytest.raises(ModelError, match=message) as caught:
        load(folder)

    assert str(folder) in str(caught.value)


def drop_a_weight(folder: Path) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    del weights[sorted(weights)[0]]
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})


def adapter_config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "adapter_config.json", **changes)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("adapter_model.safetensors"), "adapter without weights"),
        (write("adapter_model.safetensors", b"x" * 100), "adapter cannot be loaded"),
        (write("adapter_config.json", b"{"), "settings cannot be read"),
        (adapter_config(base_model_name_or_path=None), "does not say which model"),
        (adapter_config(base_model_name_or_path="/no/such/folder"), "no such folder"),
        (adapter_config(r=5), "adapter cannot be loaded"),
        (drop_a_weight, "1 weights are missing"),
    ],
)
def test_an_adapter_that_is_not_whole_is_refused(
    adapter: Path, copy_of: Make, damage: Callable[[Path], None], message: str
):
    folder = copy_of(adapter)
    damage(folder)

    with pytest.raises(ModelError, match=message):
        load(folder)


@pytest.mark.parametrize("name", ["no/such-model", "./no such folder", "/no/such/folder"])
def test_a_name_that_is_neither_folder_nor_hub_id_is_refused_with_its_setting(name: str):
    with pytest.raises(ModelError, match="no such folder") as caught:
        find_model(name, setting="reference")

    assert str(caught.value).startswith("reference: ")
    assert name in str(caught.value)


def test_the_tokenizer_is_the_one_beside_the_model(base: Path):
    tokenizer = load_tokenizer(find_model(str(base)))

    assert tokenizer.get_vocab() == byte_level_tokenizer().get_vocab()
    assert tokenizer.chat_template == byte_level_tokenizer().chat_template


def test_an_adapter_uses_its_own_tokenizer_or_its_bases(base: Path, adapter: Path, copy_of: Make):
    assert len(load_tokenizer(find_model(str(adapter)))) == 259

    folder = copy_of(adapter)
    larger = AutoTokenizer.from_pretrained(base)
    larger.add_tokens(["<extra>"])
    larger.save_pretrained(folder)
    assert len(load_tokenizer(find_model(str(folder)))) == 260


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            remove("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
            "has no tokenizer",
        ),
        (write("tokenizer.json", b"{"), "cannot be loaded"),
        (cut("tokenizer.json"), "cannot be loaded"),
        (remove("tokenizer.json"), "cannot be loaded"),
    ],
)
def test_a_tokenizer_that_is_not_there_or_damaged_is_refused(
    base: Path, copy_of: Make, damage: Callable[[Path], None], message: str
):
    folder = copy_of(base)
    damage(folder)

    with pytest.raises(ModelError, match=message) as caught:
        load_tokenizer(find_model(str(folder)))

    assert str(folder) in str(caught.value)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(base: Path):
    source = find_model(str(base))
    model, tokenizer = load(base), load_tokenizer(source)
    check_vocabulary(model, tokenizer, source)
    check_vocabulary(tiny_model("llama", vocab_size=300), tokenizer, source)

    tokenizer.add_tokens(["<extra>"])

    with pytest.raises(ModelError, match="more tokens than the model") as caught:
        check_vocabulary(model, tokenizer, source)
    assert "260 tokens, 259 embeddings" in str(caught.value)


def dropout_rates(model: Any) -> set[float]:
    rates = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    rates |= {
        float(value)
        for module in model.modules()
        for name, value in vars(module).items()
        if ("dropout" in name or name == "layerdrop") and isinstance(value, float)
    }
    return rates


@pytest.mark.parametrize(
    ("family", "rates"),
    [
        ("gpt2", {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3}),
        ("opt", {"dropout": 0.3, "attention_dropout": 0.3, "layerdrop": 0.3}),
        ("llama", {"attention_dropout": 0.3}),
    ],
)
def test_dropout_is_off_unless_asked_for(tmp_path: Path, family: Any, rates: dict[str, float]):
    tokenizer = byte_level_tokenizer()
    folder = write_tiny_model(tmp_path, tiny_model(family, vocab_size=len(tokenizer)), tokenizer)
    edit_json(folder / "config.json", **rates)
    ids = torch.arange(12)[None]

    without, with_dropout = load(folder).train(), load(folder, dropout=True).train()

    assert dropout_rates(without) <= {0.0}
    assert torch.equal(without(input_ids=ids).logits, without(input_ids=ids).logits)
    assert 0.3 in dropout_rates(with_dropout)
    torch.manual_seed(0)
    outputs = [with_dropout(input_ids=ids).logits for _ in range(2)]
    assert not torch.equal(*outputs)


def test_the_ends_of_generation_are_one_or_several():
    def model(ids: Any) -> Any:
        return SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=ids))

    assert end_tokens(model(5)) == (5,)
    assert end_tokens(model([5, 6])) == (5, 6)
    assert end_tokens(model(None)) == ()
    assert end_tokens(SimpleNamespace(generation_config=None)) == ()


@pytest.mark.parametrize(
    ("family", "expected"), [("llama", 128), ("gpt2", 128), ("opt", 128), ("gemma3", 128)]
)
def test_the_longest_input_is_the_configs(make_model: Make, family: str, expected: int):
    assert longest_input(make_model(family)) == expected


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_the_longest_input_ends_where_rotary_embeddings_begin_to_stretch(kind: str):
    """Beyond it, one long record would change the log-probabilities of the others in its batch."""
    rope = {"rope_type": kind, "original_max_position_embeddings": 4096}
    config = SimpleNamespace(max_position_embeddings=131072, rope_parameters=rope)
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: config))

    assert longest_input(model) == 4096

    config.rope_parameters = {**rope, "rope_type": "yarn"}
    assert longest_input(model) == 131072


def test_a_source_without_a_base_is_no_adapter():
    assert not ModelSource("m", Path("m"), "1").is_adapter


def test_a_model_whose_config_names_no_longest_input_has_none():
    config = SimpleNamespace(rope_parameters=None)
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: config))

    assert longest_input(model) is None
