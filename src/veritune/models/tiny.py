"""Small models and tokenizers made here and now, for demonstrations, trials and tests.

Nothing is downloaded: the tokenizer is trained on given texts, the weights are random. The folder
that `write_tiny_model` leaves is like any other model folder.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

Family = Literal["qwen2", "qwen3", "llama", "gemma", "mistral", "gpt2", "opt"]

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The chat template of the tiny models: turns between <|im_start|> and <|im_end|>."""


def byte_level_tokenizer(texts: Iterable[str] = (), *, vocab_size: int = 259) -> Any:
    """A byte-level BPE tokenizer with a chat template, trained on texts.

    Args:
        texts: What merges are learned from; none gives one token per byte.
        vocab_size: Most tokens, the 256 bytes and 3 special tokens included.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrap(tokenizer, pad_token=END_OF_TEXT, eos_token=TURN_END, chat_template=CHATML)


def character_tokenizer(alphabet: Sequence[str]) -> Any:
    """One token per character of an alphabet, and an end-of-text token; no chat template.

    Its ids are the alphabet's order; the end-of-text token comes last. It is the tokenizer of the
    finite languages, whose every string is a string of these ids.
    """
    vocabulary = {character: index for index, character in enumerate([*alphabet, END_OF_TEXT])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=END_OF_TEXT))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return _wrap(tokenizer, pad_token=END_OF_TEXT, eos_token=END_OF_TEXT)


def tiny_model(
    family: Family,
    *,
    vocab_size: int,
    hidden_size: int = 32,
    num_layers: int = 2,
    num_heads: int = 4,
    max_positions: int = 512,
    seed: int = 0,
) -> Any:
    """A causal language model of a family with random weights, in float32 and without dropout."""
    common = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "max_position_embeddings": max_positions,
    }
    gated = {**common, "intermediate_size": 3 * hidden_size, "num_key_value_heads": num_heads // 2}
    head_dim = hidden_size // num_heads
    configs: dict[str, Any] = {
        "qwen2": lambda: Qwen2Config(**gated, tie_word_embeddings=True),
        "qwen3": lambda: Qwen3Config(**gated, head_dim=head_dim),
        "llama": lambda: LlamaConfig(**gated),
        "gemma": lambda: GemmaConfig(**gated, head_dim=head_dim),
        "mistral": lambda: MistralConfig(**gated, sliding_window=max(8, max_positions // 16)),
        "gpt2": lambda: GPT2Config(
            vocab_size=vocab_size,
            n_embd=hidden_size,
            n_layer=num_layers,
            n_head=num_heads,
            n_positions=max_positions,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        ),
        "opt": lambda: OPTConfig(
            **common, ffn_dim=4 * hidden_size, word_embed_proj_dim=hidden_size, dropout=0.0
        ),
    }
    config = configs[family]()
    # The default ids of a family's config point beyond a small vocabulary.
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def write_tiny_model(folder: Path, model: Any, tokenizer: Any) -> Path:
    """Write a model and its tokenizer as a folder that `from_pretrained` loads."""
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.config.bos_token_id = model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


def _wrap(tokenizer: Tokenizer, **arguments: Any) -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **arguments
    )
