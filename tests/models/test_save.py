from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

from veritune.models.adapters import AdapterConfig, attach_adapter, save_adapter
from veritune.models.load import find_model, load_hf_model, load_settings, load_tokenizer
from veritune.models.save import save_model
from veritune.models.tiny import byte_level_tokenizer, tiny_model, write_tiny_model

CPU = torch.device("cpu")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tokenizer = byte_level_tokenizer()
    model = tiny_model("gpt2", vocab_size=len(tokenizer))
    model.config.resid_pdrop = 0.1
    return write_tiny_model(tmp_path / "source", model, tokenizer)


def save(source: Path, folder: Path, dtype: str = "fp32", change=lambda model: None) -> Path:
    found = find_model(str(source))
    model = load_hf_model(found, device=CPU)
    change(model)
    save_model(folder, model, load_tokenizer(found), found, end_tokens=(5, 2), dtype=dtype)
    return folder


def test_a_saved_model_loads_with_plain_transformers_and_has_the_same_weights(source, tmp_path):
    folder = save(source, tmp_path / "model")
    before = AutoModelForCausalLM.from_pretrained(source).state_dict()
    after = AutoModelForCausalLM.from_pretrained(folder).state_dict()

    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(AutoTokenizer.from_pretrained(folder)) == len(AutoTokenizer.from_pretrained(source))
    assert not [file for file in tmp_path.iterdir() if file.name.endswith(".writing")]


def test_generation_stops_at_every_end_token(source, tmp_path):
    folder = save(source, tmp_path / "model")

    assert load_settings(find_model(str(folder))).generation_config.eos_token_id == [2, 5]


def test_a_generation_config_that_may_not_be_saved_is_mended(source, tmp_path):
    """Older models have a temperature and no do_sample; that loads, but may not be saved."""

    def sampled(model):
        model.generation_config.temperature, model.generation_config.do_sample = 0.6, False

    folder = save(source, tmp_path / "model", change=sampled)
    settings = load_settings(find_model(str(folder))).generation_config

    assert settings.do_sample
    assert settings.temperature == 0.6


def test_dropout_rates_of_the_starting_model_stay_in_the_config(source, tmp_path):
    folder = save(source, tmp_path / "model")

    assert GPT2Config.from_pretrained(source).resid_pdrop == 0.1
    assert GPT2Config.from_pretrained(folder).resid_pdrop == 0.1


def test_a_model_is_replaced_as_a_whole(source, tmp_path):
    folder = save(source, tmp_path / "model")
    (folder / "left-over.txt").write_text("from a run that died")

    save(source, folder)

    assert not (folder / "left-over.txt").exists()


def test_bf16_halves_the_weights(source, tmp_path):
    sizes = [
        (save(source, tmp_path / dtype, dtype) / "model.safetensors").stat().st_size
        for dtype in ("fp32", "bf16")
    ]

    assert sizes[1] < 0.6 * sizes[0]


def test_an_adapter_trained_on_an_adapter_is_loaded_through_both(source, tmp_path):
    """SFT by adapter, then alignment by adapter: the second's base is the first's folder."""
    folder = source
    for number in (1, 2):
        found = find_model(str(folder))
        model = load_hf_model(found, device=CPU)
        adapted = attach_adapter(model, AdapterConfig(rank=2), seed=number)
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if "lora_B" in name:
                    weight.fill_(0.05 * number)
        folder = tmp_path / f"adapter-{number}"
        ids = torch.tensor([[3, 4, 5, 6]])
        expected = adapted(ids).logits
        save_adapter(adapted, folder, found.name)
    found = find_model(str(folder))
    merged = load_hf_model(found, device=CPU)

    torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-4, atol=1e-5)
    # Control: without the first adapter the logits are others.
    once = load_hf_model(find_model(str(tmp_path / "adapter-1")), device=CPU)
    assert (once(ids).logits - expected).abs().max() > 1e-3
    assert len(load_tokenizer(found)) == 259
