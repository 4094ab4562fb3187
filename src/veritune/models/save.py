"""The aligned model as a plain model folder that every other tool loads."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch

from veritune.models.load import ModelSource, dropout_rates, load_settings

SaveDtype = Literal["fp32", "bf16"]


def save_model(
    folder: Path,
    hf_model: Any,
    tokenizer: Any,
    source: ModelSource,
    *,
    end_tokens: Iterable[int],
    dtype: SaveDtype,
) -> None:
    """Write weights, config, generation config and tokenizer.

    Args:
        folder: The model folder.
        hf_model: The model, adapters merged; it may be cast and is not to be used afterwards.
        tokenizer: The tokenizer, with the chat template that the run used.
        source: The starting model, whose dropout rates the aligned one keeps in its config.
        end_tokens: Ids at which generation is to stop; the end of a turn among them.
        dtype: Number type of the weights on disk.
    """
    if dtype == "bf16":
        hf_model = hf_model.to(torch.bfloat16)
    hf_model.generation_config.eos_token_id = sorted(end_tokens)
    for name, rate in dropout_rates(load_settings(source).config).items():
        setattr(hf_model.config, name, rate)
    # How this package attends is no property of the model.
    hf_model.config._attn_implementation = None
    hf_model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
