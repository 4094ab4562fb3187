"""Small models and tokenizers are like any others."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from veritune.models.tiny import (
    Family,
    byte_level_tokenizer,
    character_tokenizer,
    tiny_model,
    write_tiny_model,
)

TEXT = "Grüße, 世界 😀\n\ttabs  and   spaces"


@pytest.mark.parametrize("family", get_args(Family))
def test_a_folder_of_every_family_loads_with_plain_transformers(tmp_path: Path, family: Any):
    tokenizer = byte_level_tokenizer()
    model = tiny_model(family, vocab_size=len(tokenizer))

    write_tiny_model(tmp_path, model, tokenizer)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    read = AutoTokenizer.from_pretrained(tmp_path)

    ids = torch.tensor(read(TEXT)["input_ids"])[None]
    assert read.decode(ids[0]) == TEXT
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
    assert again.generation_config.eos_token_id == tokenizer.eos_token_id
    assert read.chat_template == tokenizer.chat_template


def test_weights_come_from_the_seed_alone():
    def weights(seed: int) -> torch.Tensor:
        return tiny_model("llama", vocab_size=50, seed=seed).lm_head.weight.detach()

    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = weights(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)

    assert torch.equal(weights(0), first)
    assert not torch.equal(weights(1), first)


def test_training_merges_bytes_and_any_text_still_comes_back():
    plain = byte_level_tokenizer()
    trained = byte_level_tokenizer([TEXT, "the theory of the thing"] * 5, vocab_size=300)

    assert len(plain) == 259
    assert 259 < len(trained) <= 300
    for tokenizer in (plain, trained):
        assert tokenizer.decode(tokenizer(TEXT)["input_ids"]) == TEXT
    assert len(trained("the theory")["input_ids"]) < len(plain("the theory")["input_ids"])


def test_ids_of_a_character_tokenizer_are_the_order_of_its_alphabet():
    tokenizer = character_tokenizer("xyz")

    assert tokenizer("zxy")["input_ids"] == [2, 0, 1]
    assert tokenizer.eos_token_id == 3
    assert tokenizer.decode([2, 0, 1]) == "zxy"
