"""What is measured: model shapes made at random, and records with the lengths of known data sets.

Everything is written as files that any toolkit reads: a model folder and JSON Lines.
"""

import argparse
import itertools
import json
import math
import random
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from veritune.models.load import load_tokenizer, quiet_libraries
from veritune.models.tiny import byte_level_tokenizer, write_tiny_model
from veritune.records.read import DataConfig, read_records

END = "<|endoftext|>"
SPACE = "\u0120"
"""How byte-level vocabularies write a space."""
NUM_PIECES = 257
"""Tokens that are no words: the bytes and the end of a text."""
SEED = 0
LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class Shape:
    """A decoder by its published sizes."""

    name: str
    family: str
    hidden: int
    layers: int
    heads: int
    key_heads: int
    intermediate: int
    vocab: int
    tied: bool = True

    @property
    def layer_matrices(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the matrices of a layer."""
        keys = self.key_heads * (self.hidden // self.heads)
        attention = [(self.hidden, self.hidden)] * 2 + [(self.hidden, keys)] * 2
        gates = [(self.hidden, self.intermediate)] * 2
        return [*attention, *gates, (self.intermediate, self.hidden)]

    @property
    def trunk_parameters(self) -> int:
        """Weights of the matrix products of all layers; no embedding, no head."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.layer_matrices)

    def adapter_parameters(self, rank: int) -> int:
        """Weights of adapters of a rank on all those matrices."""
        return self.layers * rank * sum(sum(sizes) for sizes in self.layer_matrices)

    @property
    def parameters(self) -> int:
        """All weights of matrices."""
        return self.trunk_parameters + self.vocab * self.hidden * (1 if self.tied else 2)


SMALL = Shape("Qwen2, 8.6 M", "qwen2", 256, 6, 4, 2, 704, 16_384)
SHAPES = {
    "tiny": Shape("Qwen2, 0.4 M", "qwen2", 64, 2, 4, 2, 192, 4096),
    "small": SMALL,
    "small-32k": replace(SMALL, name="Qwen2, 12.8 M, 32k tokens", vocab=32_000),
    "small-152k": replace(SMALL, name="Qwen2, 43 M, 152k tokens", vocab=151_936),
    "qwen2.5-0.5b": Shape("Qwen2.5-0.5B", "qwen2", 896, 24, 14, 2, 4864, 151_936),
    "qwen2.5-1.5b": Shape("Qwen2.5-1.5B", "qwen2", 1536, 28, 12, 2, 8960, 151_936),
    "llama-3.1-8b": Shape("Llama-3.1-8B", "llama", 4096, 32, 32, 8, 14_336, 128_256, tied=False),
}


@dataclass(frozen=True)
class Lengths:
    """Log-normal lengths in tokens: the median, and the deviation of the logarithm."""

    prompt: float
    prompt_deviation: float
    completion: float
    completion_deviation: float
    longest: int
    """No prompt with its completion is longer."""

    def draw(self, rng: random.Random, completions: int) -> tuple[int, list[int]]:
        """Tokens of one prompt and of each of its completions."""
        prompt = _log_normal(rng, self.prompt, self.prompt_deviation, self.longest // 2)
        return prompt, [
            _log_normal(rng, self.completion, self.completion_deviation, self.longest - prompt)
            for _ in range(completions)
        ]


def _log_normal(rng: random.Random, median: float, deviation: float, most: int) -> int:
    return min(most, max(1, round(median * math.exp(rng.gauss(0, deviation)))))


ULTRAFEEDBACK = Lengths(120, 0.95, 250, 0.75, 2048)
TLDR = Lengths(350, 0.3, 35, 0.35, 1024)
HH = Lengths(110, 0.85, 60, 0.8, 1024)
SHORT = Lengths(60, 0.3, 60, 0.3, 256)


@dataclass(frozen=True)
class Case:
    """Records, groups per step, model, and how it is trained."""

    name: str
    title: str
    lengths: Lengths | None
    """None reads real pairs from a file."""

    shape: str = "small"
    completions: int = 2
    groups: int = 4
    """Groups of completions per optimizer step."""

    steps: int = 8
    """Measured steps; one more before them is not counted."""

    adapter: bool = False
    long_prompts: int = 0
    """Prompts of ten thousand tokens in every measured step."""

    peer_accumulation: int = 1
    """Portions in which the peer works through a step's rows, where they would not fit at once."""

    peer_recomputes: bool = False
    """Whether the peer computes activations twice when tuned too, where they would not fit."""

    @property
    def records(self) -> int:
        """Records that the case needs, the uncounted step included."""
        return self.groups * (self.steps + 1)


_CPU = (
    Case("real", "real pairs", None),
    Case("ultrafeedback", "like UltraFeedback", ULTRAFEEDBACK),
    Case("tldr", "like TL;DR", TLDR),
    Case("hh", "like HH", HH),
    Case("k4", "like TL;DR, 4 completions", TLDR, completions=4, groups=4, steps=5),
    Case("k8", "like TL;DR, 8 completions", TLDR, completions=8, groups=2, steps=5),
    Case("lora", "real pairs, adapters of rank 16", None, adapter=True),
    Case("v32k", "like UltraFeedback, 32k tokens", ULTRAFEEDBACK, shape="small-32k", steps=5),
    Case("v152k", "like UltraFeedback, 152k tokens", ULTRAFEEDBACK, shape="small-152k", steps=3),
    Case(
        "long",
        "16 short pairs, 2 of their prompts with 10,000 tokens",
        SHORT,
        groups=16,
        steps=2,
        long_prompts=2,
        peer_accumulation=4,
        peer_recomputes=True,
    ),
)
_CUDA = tuple(
    Case(
        f"{shape}-{name}" + ("-lora" if adapter else ""),
        f"{SHAPES[shape].name}, {title}" + (", adapters of rank 16" if adapter else ""),
        lengths,
        shape=shape,
        completions=completions,
        groups=groups,
        adapter=adapter,
        peer_accumulation=accumulation,
    )
    for shape, groups, accumulation, adapter in (
        ("qwen2.5-0.5b", 32, 1, False),
        ("qwen2.5-1.5b", 32, 2, False),
        ("qwen2.5-1.5b", 32, 2, True),
        ("llama-3.1-8b", 16, 4, True),
    )
    for name, title, lengths, completions in (
        ("ultrafeedback", "like UltraFeedback", ULTRAFEEDBACK, 2),
        ("tldr", "like TL;DR", TLDR, 2),
        ("k8", "like TL;DR, 8 completions", TLDR, 8),
    )
)
CASES = {"cpu": _CPU, "cuda": _CUDA}
LONG_PROMPT = 10_000


def case_words(text: str) -> argparse.ArgumentParser:
    """The words of a benchmark on cases: which, and where real pairs are; `text` is its help."""
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="CASE", help="measure these; keep nothing")
    parser.add_argument("--pairs", type=Path, help="JSON Lines of real pairs, for their cases")
    return parser


def cpu_cases(names: Sequence[str], pairs: Path | None) -> list[Case]:
    """The cases of these names; those of real pairs only if there is a file of them."""
    wanted = [case for case in CASES["cpu"] if case.name in names]
    return [case for case in wanted if case.lengths is not None or pairs is not None]


def write_task(case: Case, folder: Path, pairs: Path | None) -> dict[str, Any]:
    """Write the model and the records of a case, and say what is to be done with them.

    Args:
        case: The case.
        folder: Where everything goes.
        pairs: A file of real pairs, for a case without lengths.
    """
    return {
        "folder": str(folder),
        "records": str(write_records(case, folder, pairs)),
        "model": str(write_model(case, folder, pairs)),
        "cache": str(folder / "cache"),
        "objective": "dpo" if case.completions == 2 else "plackett_luce",
        "groups": case.groups,
        "adapter": case.adapter,
        "learning_rate": LEARNING_RATE,
        "seed": SEED,
    }


def write_records(case: Case, folder: Path, pairs: Path | None) -> Path:
    """The records of a case as JSON Lines: pairs, or groups with scores.

    Args:
        case: Which lengths, and how many.
        folder: Where the file goes.
        pairs: A file of real pairs, for a case without lengths.
    """
    file = folder / "records.jsonl"
    if case.lengths is None:
        assert pairs is not None, "the caller has looked"
        every = pairs.read_text(encoding="utf-8").splitlines()
        rows = random.Random(SEED).sample(every, min(case.records, len(every)))
        file.write_text("\n".join(rows) + "\n", encoding="utf-8")
        return file
    with file.open("w", encoding="utf-8") as stream:
        for row in _synthetic(case, case.lengths, SHAPES[case.shape].vocab):
            stream.write(json.dumps(row) + "\n")
    return file


def _synthetic(case: Case, lengths: Lengths, vocab: int) -> Iterator[dict[str, Any]]:
    rng = random.Random(f"{SEED} {case.name}")
    words = list(itertools.islice(_letters(), vocab - NUM_PIECES))
    for index in range(case.records):
        prompt, completions = lengths.draw(rng, case.completions)
        step, place = divmod(index, case.groups)
        if step > 0 and place < case.long_prompts:
            prompt = LONG_PROMPT
        texts = [_words(rng, size, words) for size in completions]
        row: dict[str, Any] = {"prompt": _words(rng, prompt, words)}
        if case.completions == 2:
            yield row | {"chosen": texts[0], "rejected": texts[1]}
        else:
            scores = sorted((rng.gauss(0, 1) for _ in texts), reverse=True)
            yield row | {"completions": texts, "scores": scores}


def _words(rng: random.Random, size: int, words: Sequence[str]) -> str:
    """Text of a number of tokens of `_word_tokenizer`."""
    return "".join(f" {word}" for word in rng.choices(words, k=size))


_TURNS = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Nothing behind the end of a turn: TRL would learn it too, and Veritune learns up to the end."""


def write_model(case: Case, folder: Path, pairs: Path | None) -> Path:
    """A model folder of the case's shape with random weights, and a tokenizer for its records.

    Args:
        case: Which shape, and what its records consist of.
        folder: Where the model's folder goes.
        pairs: The file of real pairs, all of which a tokenizer learns from; for a case without
            lengths.
    """
    shape = SHAPES[case.shape]
    sizes = {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_heads,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    config = (Qwen2Config if shape.family == "qwen2" else LlamaConfig)(**sizes)
    torch.manual_seed(SEED)
    dtype = torch.bfloat16 if shape.parameters > 1e9 else torch.float32
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if case.lengths is None:
        assert pairs is not None, "the caller has looked"
        tokenizer = byte_level_tokenizer(_texts_of_pairs(pairs), vocab_size=shape.vocab)
        tokenizer.chat_template = _TURNS
    else:
        tokenizer = _word_tokenizer(shape.vocab)
    return write_tiny_model(folder / "model", model, tokenizer)


def _word_tokenizer(vocab: int) -> Any:
    """One token per word, so that lengths in tokens are what was drawn.

    Words are grown letter by letter: every beginning of a word is a word, so each needs one merge.
    """
    pieces = [END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words = [f"{SPACE}{word}" for word in itertools.islice(_letters(), vocab - NUM_PIECES)]
    vocabulary = {piece: index for index, piece in enumerate([*pieces, *words])}
    merges = [(word[:-1], word[-1]) for word in words]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        clean_up_tokenization_spaces=False,
    )


def _letters() -> Iterator[str]:
    """a, b, …, z, aa, ab, …: shorter words first."""
    for length in itertools.count(1):
        for letters in itertools.product(string.ascii_lowercase, repeat=length):
            yield "".join(letters)


def _texts_of_pairs(pairs: Path) -> list[str]:
    texts = []
    for line in pairs.read_text(encoding="utf-8").splitlines():
        for turns in json.loads(line).values():
            texts += [turn["content"] for turn in turns]
    return texts


def peer_pairs(records: Path, order: list[int]) -> list[dict[str, Any]]:
    """The same records as pairs, in a given order; a group of K completions is K / 2 pairs."""
    rows = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]
    pairs: list[dict[str, Any]] = []
    for index in order:
        row = rows[index]
        if "chosen" in row:
            pairs.append(row)
            continue
        texts = row["completions"]
        pairs += [
            {"prompt": row["prompt"], "chosen": texts[i], "rejected": texts[i + 1]}
            for i in range(0, len(texts), 2)
        ]
    return pairs


def record_tokens(model: Path, records: Path) -> list[tuple[int, list[int]]]:
    """Tokens of each record's prompt and completions, as Veritune counts them."""
    from veritune.models.load import find_model
    from veritune.tokens.dataset import tokenize
    from veritune.tokens.encode import TextEncoder

    quiet_libraries()
    encoder = TextEncoder(load_tokenizer(find_model(str(model))))
    found = read_records(DataConfig(files=(str(records),)))
    dataset = tokenize(found.records, encoder, max_length=32_768)
    groups = (dataset[index] for index in range(len(dataset)))
    return [(len(group.prompt), [len(c.ids) for c in group.completions]) for group in groups]
