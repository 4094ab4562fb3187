"""Low-rank adapters: attach and save. PEFT does the work."""

from pathlib import Path
from typing import Any

from veritune.config import Config
from veritune.errors import ModelError
from veritune.ranges import Positive, PositiveInt


class AdapterConfig(Config):
    """Low-rank adapters (LoRA) in place of training every weight."""

    rank: PositiveInt = 16
    """Rank of the update of each adapted matrix."""

    alpha: Positive = 32.0
    """The update is multiplied by alpha / rank."""

    target_modules: str | tuple[str, ...] = "all-linear"
    """Names of the adapted layers; "all-linear" is every linear layer but the output head."""


def attach_adapter(hf_model: Any, config: AdapterConfig, *, seed: int) -> Any:
    """A PEFT model around the given one, whose linear layers now carry adapters.

    The update starts at zero, so the policy begins as the model itself; every other weight is
    frozen. Initial values come from `seed` alone.

    Raises:
        ModelError: No layer of the model has one of the names.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    from veritune.models.adapted_layer import fuse_adapted_layers

    targets = config.target_modules
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=0.0,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            peft_model = get_peft_model(hf_model, lora)
        except ValueError as error:
            raise ModelError(
                f"the adapter does not fit the model ({error})",
                where="adapter.target_modules",
                got=targets,
                fix='use "all-linear", or names of linear layers of this model',
            ) from error
    fuse_adapted_layers(peft_model)
    return peft_model


def save_adapter(peft_model: Any, folder: Path, base_name: str) -> None:
    """The adapter in PEFT's format, with the name of the model that it belongs to."""
    for config in peft_model.peft_config.values():
        # A folder is named in full, so that the adapter finds its base from anywhere.
        folder_of_base = Path(base_name).expanduser()
        config.base_model_name_or_path = (
            str(folder_of_base.resolve()) if folder_of_base.is_dir() else base_name
        )
    peft_model.save_pretrained(str(folder), save_embedding_layers=False)
