"""Write a small model with random weights: a folder to try things on, without a download."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from veritune.commands.display import Display
from veritune.config import Config
from veritune.errors import RunFolderError, SettingsError
from veritune.models.load import quiet_libraries
from veritune.models.tiny import byte_level_tokenizer, tiny_model, write_tiny_model
from veritune.ranges import LengthInTokens, NonNegativeInt, PositiveInt
from veritune.records.kinds import Message, Record, Text
from veritune.records.read import DataConfig, read_records
from veritune.training.run_folder import refuse_blocked_folder


class TinyConfig(Config):
    """Settings of `veritune tiny`."""

    output: str
    """The model folder."""

    data: DataConfig | None = None
    """Records whose text the tokenizer is trained on; null gives one token per byte."""

    family: Literal["qwen2", "qwen3", "llama", "gemma", "mistral", "gpt2", "opt"] = "qwen2"
    """Architecture."""

    vocab_size: int = Field(default=4096, ge=259)
    """Most tokens of the vocabulary, 256 bytes and 3 special tokens included."""

    hidden_size: PositiveInt = 192
    """Width of the hidden states; a multiple of twice the number of heads."""

    num_layers: PositiveInt = 4
    """Transformer blocks."""

    num_heads: PositiveInt = 6
    """Attention heads; an even number, because most families share keys between two heads."""

    max_positions: LengthInTokens = 4096
    """Longest sequence, in tokens."""

    seed: NonNegativeInt = 0
    """Another seed draws other weights."""

    @model_validator(mode="after")
    def _heads_fit(self) -> "TinyConfig":
        if self.num_heads % 2 or self.hidden_size % (2 * self.num_heads):
            raise SettingsError(
                "the heads do not fit into the hidden states",
                got=f"num_heads {self.num_heads}, hidden_size {self.hidden_size}",
                why="heads come in pairs, and each has an even share of the hidden states",
                fix="choose an even num_heads, and a hidden_size that is a multiple of twice that",
            )
        return self


def write_tiny(config: TinyConfig, display: Display) -> Path:
    """Make the tokenizer and the model, and write them.

    Raises:
        RunFolderError: The folder is not empty, or cannot be made.
    """
    quiet_libraries()
    folder = Path(config.output).expanduser()
    refuse_blocked_folder(folder)
    if folder.exists() and any(folder.iterdir()):
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
    tokenizer = byte_level_tokenizer(texts, vocab_size=config.vocab_size)
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
