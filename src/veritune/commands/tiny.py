"""Write a small model with random weights: a folder to try things on, without a download."""

from pathlib import Path
from typing import Literal

from veritune.commands.display import Display
from veritune.config import Config
from veritune.errors import RunFolderError
from veritune.models.load import quiet_libraries
from veritune.models.tiny import byte_level_tokenizer, tiny_model, write_tiny_model
from veritune.ranges import NonNegativeInt, PositiveInt
from veritune.records.kinds import Message, Record, Text
from veritune.records.read import DataConfig, read_records


class TinyConfig(Config):
    """Settings of `veritune tiny`."""

    output: str
    """The model folder."""

    data: DataConfig | None = None
    """Records whose text the tokenizer is trained on; null gives one token per byte."""

    family: Literal["qwen2", "qwen3", "llama", "gemma", "mistral", "gpt2", "opt"] = "qwen2"
    """Architecture."""

    vocab_size: PositiveInt = 4096
    """Most tokens of the vocabulary, 256 bytes and 3 special tokens included."""

    hidden_size: PositiveInt = 192
    num_layers: PositiveInt = 4
    num_heads: PositiveInt = 6
    max_positions: PositiveInt = 4096
    """Longest sequence."""

    seed: NonNegativeInt = 0


def write_tiny(config: TinyConfig, display: Display) -> Path:
    """Make the tokenizer and the model, and write them.

    Raises:
        RunFolderError: The folder is not empty.
    """
    quiet_libraries()
    folder = Path(config.output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunFolderError(
            "the output folder is not empty",
            where="output",
            got=str(folder),
            fix="choose another folder, or remove this one",
        )
    texts: list[str] = []
    if config.data is not None:
        for record in read_records(config.data).records:
            texts.extend(_texts(record))
    tokenizer = byte_level_tokenizer(texts, vocab_size=max(259, config.vocab_size))
    model = tiny_model(
        config.family,
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        max_positions=config.max_positions,
        seed=config.seed,
    )
    write_tiny_model(folder, model, tokenizer)
    size = sum(parameter.numel() for parameter in model.parameters())
    display.note(
        f"{config.family} model with random weights: {size / 1e6:.2f} million parameters, "
        f"{len(tokenizer)} tokens, in {folder}"
    )
    return folder


def _texts(record: Record) -> list[str]:
    return [text for part in (record.prompt, *record.completions) for text in _strings(part)]


def _strings(text: Text) -> list[str]:
    if isinstance(text, str):
        return [text]
    if isinstance(text, tuple):
        return [message.content for message in text if isinstance(message, Message)]
    return []
