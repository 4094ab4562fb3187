"""The aligned model as a plain model folder that every other tool loads."""

import shutil
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
    make_valid(hf_model.generation_config)
    before = load_settings(source).config
    for now, then in (
        (hf_model.config, before),
        (hf_model.config.get_text_config(), before.get_text_config()),
    ):
        for name, rate in dropout_rates(then).items():
            setattr(now, name, rate)
    # How this package attends is no property of the model.
    hf_model.config._attn_implementation = None
    beside = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(beside, ignore_errors=True)
    hf_model.save_pretrained(str(beside))
    tokenizer.save_pretrained(str(beside))
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)


def make_valid(generation_config: Any) -> None:
    """Mend a generation config that loads but may not be saved.

    Older models give a sampling temperature without saying that they sample.
    """
    try:
        generation_config.validate(strict=True)
    except ValueError:
        generation_config.do_sample = True
