"""Tokenizers of every kind, built in memory, and chat templates of the common families."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from veritune.models.tiny import byte_level_tokenizer, character_tokenizer

CORPUS = (
    "hello world, this is a small corpus of text\nwith lines",
    "the quick brown fox jumps over the lazy dog",
    "Answer: yes\nAnswer: no",
    "assistant user system the model speaks",
) * 4
UNK, BOS, EOS = "<unk>", "<s>", "</s>"
BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + (m.content | trim) }}"
    "{{ '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set sys = '<<SYS>>\n' + messages[0].content "
    "+ '\n<</SYS>>\n\n' %}{% set rest = messages[1:] %}{% else %}{% set sys = '' %}"
    "{% set rest = messages %}{% endif %}{% for m in rest %}{% if m.role == 'user' %}"
    "{{ '<s>[INST] ' + (sys if loop.first else '') + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' </s>' }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ '<s>' }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content "
    "+ '[/INST]' }}{% elif m.role == 'assistant' %}{{ ' ' + m.content + '</s>' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}"
)
GEMMA = (
    "{{ '<bos>' }}{% for m in messages %}{{ '<start_of_turn>' + "
    "('model' if m.role == 'assistant' else m.role) + '\n' + (m.content | trim) "
    "+ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


def _sentencepiece_decoder() -> Any:
    return decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )


def _with_byte_fallback(tokenizer: Tokenizer) -> Tokenizer:
    """The trained tokenizer with a piece per byte, as sentencepiece models have them."""
    described = json.loads(tokenizer.to_str())
    model = described["model"]
    model["byte_fallback"] = True
    if model["type"] == "Unigram":
        model["vocab"] += [[piece, -20.0] for piece in BYTE_PIECES]
    else:
        start = len(model["vocab"])
        model["vocab"] |= {piece: start + i for i, piece in enumerate(BYTE_PIECES)}
    return Tokenizer.from_str(json.dumps(described))


def _finish(
    tokenizer: Tokenizer,
    *,
    bos: str | None = BOS,
    eos: str = EOS,
    adds_bos: bool = False,
    adds_eos: bool = False,
    special: Sequence[str | AddedToken] = (),
    chat_template: str | None = None,
) -> Any:
    tokenizer.add_special_tokens(list(special))
    if adds_bos or adds_eos:
        single = " ".join([bos] * adds_bos + ["$A"] + [eos] * adds_eos)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single,
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in {bos, eos}],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        clean_up_tokenization_spaces=False,
        chat_template=chat_template,
    )


def metaspace_bpe(scheme: str, *, split: bool = True, **arguments: Any) -> Any:
    """Byte-pair pieces behind a visible space; without `split` they merge across words."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNK, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", scheme, split)
    tokenizer.decoder = _sentencepiece_decoder()
    trainer = trainers.BpeTrainer(
        vocab_size=160, special_tokens=[UNK, BOS, EOS], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _finish(_with_byte_fallback(tokenizer), **arguments)


def legacy_bpe(**arguments: Any) -> Any:
    """The older form of the same: the space is put by a normalizer, behind special tokens too."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNK, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = _sentencepiece_decoder()
    trainer = trainers.BpeTrainer(
        vocab_size=160, special_tokens=[UNK, BOS, EOS], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _finish(_with_byte_fallback(tokenizer), **arguments)


def unigram(scheme: str, **arguments: Any) -> Any:
    """Unigram pieces, the most likely segmentation of the whole."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", scheme, False)
    tokenizer.decoder = _sentencepiece_decoder()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=[UNK, BOS, EOS], unk_token=UNK, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _finish(_with_byte_fallback(tokenizer), **arguments)


def byte_level(*, across_words: bool = False, prefix_space: bool = False, **arguments: Any) -> Any:
    """Byte-level BPE; `across_words` learns merges that pay no heed to words or spaces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=prefix_space, use_regex=not across_words
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _finish(tokenizer, **arguments)


def _gpt2_like() -> Any:
    return byte_level(bos="<|endoftext|>", eos="<|endoftext|>", special=["<|endoftext|>"])


PLAIN: dict[str, Callable[[], Any]] = {
    "bytes": byte_level_tokenizer,
    "byte-level": lambda: byte_level(),
    "byte-level across words": lambda: byte_level(across_words=True),
    "byte-level prefix space": lambda: byte_level(prefix_space=True, adds_bos=True),
    "gpt2": _gpt2_like,
    "bpe first": lambda: metaspace_bpe("first"),
    "bpe first bos": lambda: metaspace_bpe("first", adds_bos=True),
    "bpe first bos eos": lambda: metaspace_bpe("first", adds_bos=True, adds_eos=True),
    "bpe always bos": lambda: metaspace_bpe("always", adds_bos=True),
    "bpe never": lambda: metaspace_bpe("never"),
    "bpe across words": lambda: metaspace_bpe("first", split=False, adds_bos=True),
    "legacy bos": lambda: legacy_bpe(adds_bos=True),
    "legacy eos": lambda: legacy_bpe(adds_eos=True),
    "unigram first": lambda: unigram("first"),
    "unigram always bos": lambda: unigram("always", adds_bos=True),
    "characters": lambda: character_tokenizer("ab"),
}

_HEADERS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
_PHI_TURNS = [
    AddedToken(name, rstrip=True, normalized=False, special=True)
    for name in ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
]

CHAT: dict[str, tuple[Callable[[], Any], str]] = {
    "chatml": (lambda: byte_level_tokenizer(CORPUS, vocab_size=320), "<|im_end|>"),
    "chatml base": (
        # A base model: its end of sequence is not the end of the template's turns.
        lambda: byte_level(
            bos=None,
            eos="<|endoftext|>",
            special=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            chat_template=CHATML,
        ),
        "<|im_end|>",
    ),
    "llama3": (
        lambda: byte_level(
            bos="<|begin_of_text|>",
            eos="<|eot_id|>",
            adds_bos=True,
            special=["<|begin_of_text|>", *_HEADERS],
            chat_template=LLAMA3,
        ),
        "<|eot_id|>",
    ),
    "llama2": (lambda: legacy_bpe(adds_bos=True, chat_template=LLAMA2), "</s>"),
    "llama2 first": (
        lambda: metaspace_bpe("first", adds_bos=True, chat_template=LLAMA2),
        "</s>",
    ),
    "mistral": (
        lambda: metaspace_bpe(
            "first", adds_bos=True, special=["[INST]", "[/INST]"], chat_template=MISTRAL
        ),
        "</s>",
    ),
    "mistral always": (
        lambda: metaspace_bpe(
            "always", adds_bos=True, special=["[INST]", "[/INST]"], chat_template=MISTRAL
        ),
        "</s>",
    ),
    "gemma": (
        lambda: unigram(
            "never",
            bos="<bos>",
            eos="<eos>",
            adds_bos=True,
            special=["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"],
            chat_template=GEMMA,
        ),
        "<end_of_turn>",
    ),
    "phi3": (
        lambda: legacy_bpe(
            bos=None,
            eos="<|endoftext|>",
            special=["<|endoftext|>", *_PHI_TURNS],
            chat_template=PHI3,
        ),
        "<|end|>",
    ),
}


@pytest.fixture(scope="session")
def plain_tokenizer() -> Callable[[str], Any]:
    """The tokenizer of a name in `PLAIN`."""
    return cache(lambda name: PLAIN[name]())


@pytest.fixture(scope="session")
def chat_tokenizer() -> Callable[[str], tuple[Any, str]]:
    """The tokenizer of a name in `CHAT`, and the text that ends a turn of the assistant in it."""

    @cache
    def make(name: str) -> tuple[Any, str]:
        tokenizer, end = CHAT[name]
        return tokenizer(), end

    return make


@pytest.fixture
def chatml_tokenizer() -> Callable[..., Any]:
    """A fresh byte tokenizer with a chat template of one's own."""

    def make(chat_template: str | None = CHATML, **arguments: Any) -> Any:
        if not arguments:
            tokenizer = byte_level_tokenizer()
            tokenizer.chat_template = chat_template
            return tokenizer
        return byte_level(chat_template=chat_template, **arguments)

    return make


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `plain_name` or `chat_name` runs for every tokenizer of the kind."""
    for argument, names in (("plain_name", PLAIN), ("chat_name", CHAT)):
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, list(names))
