"""Causal language model and tokenizer from a folder or a hub id, with their identity."""

import copy
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from veritune.errors import ModelError, nearest_name
from veritune.provenance import hash_files

_WEIGHTS = ("*.safetensors", "*.bin", "config.json", "adapter_config.json")
ADAPTER_FILE = "adapter_config.json"
_LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError)


@dataclass(frozen=True)
class ModelSource:
    """Where a model lies and what it is, by content."""

    name: str
    """As the user wrote it."""

    folder: Path
    """The folder with config and weights."""

    identity: str
    """A hash of config and weights; for an adapter, of the base model's too."""

    base: "ModelSource | None" = None
    """The base model, where `folder` holds an adapter."""

    @property
    def folders(self) -> tuple[Path, ...]:
        """This folder, and behind an adapter's those of what it was trained on."""
        return (self.folder, *(() if self.base is None else self.base.folders))

    @property
    def is_adapter(self) -> bool:
        """Whether the folder holds a PEFT adapter."""
        return self.base is not None


def quiet_libraries() -> None:
    """Let the libraries below speak in errors only; this package says what matters itself."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


def find_model(name: str, *, setting: str = "model") -> ModelSource:
    """Locate a model and hash it.

    Args:
        name: A folder, or a hub id.
        setting: The setting that names it, for messages.

    Raises:
        ModelError: The folder or id does not exist, or holds no model.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if folder.exists() or _looks_like_path(name):
            raise _no_folder(folder, name, setting)
        folder = _download(name, setting)
    files = [file for pattern in _WEIGHTS for file in folder.glob(pattern)]
    if (folder / ADAPTER_FILE).is_file():
        base = find_model(
            _base_of_adapter(folder, name, setting), setting=f"{setting} (base of the adapter)"
        )
        return ModelSource(name, folder, f"{base.identity}+{hash_files(files)}", base)
    if not (folder / "config.json").is_file():
        raise ModelError(
            "the folder holds no model",
            where=setting,
            got=name,
            why="there is no config.json in it",
            fix=f"did you mean {folder / 'model'}?"
            if (folder / "model" / "config.json").is_file()
            else "give the folder that save_pretrained wrote",
        )
    if not any(file.suffix in (".safetensors", ".bin") for file in files):
        raise ModelError(
            "the folder holds no weights",
            where=setting,
            got=name,
            fix="give a folder with .safetensors files",
        )
    return ModelSource(name, folder, hash_files(files))


def load_hf_model(source: ModelSource, *, device: torch.device, dropout: bool = False) -> Any:
    """The model in float32 on a device; an adapter is merged into its base.

    Args:
        source: From `find_model`.
        device: Where the weights go.
        dropout: Leave the config's dropout rates on. Off by default, because completions of a
            group are compared with each other and with the reference.

    Raises:
        ModelError: The weights do not load, or the model is no causal language model.
    """
    if source.base is not None:
        base = load_hf_model(source.base, device=torch.device("cpu"), dropout=dropout)
        return _with_adapter_merged(base, source).to(device)
    folder = source.folder
    try:
        config = AutoConfig.from_pretrained(str(folder))
        if not dropout:
            _turn_off_dropout(config)
        model, info = AutoModelForCausalLM.from_pretrained(
            str(folder), config=config, dtype=torch.float32, output_loading_info=True
        )
    except _LOAD_ERRORS as error:
        raise ModelError(
            f"the model cannot be loaded ({_first_line(error)})",
            where=source.name,
            fix="check that AutoModelForCausalLM.from_pretrained loads this folder",
        ) from error
    missing = sorted(info.get("missing_keys", ()))
    if missing:
        raise ModelError(
            f"{len(missing)} weights are missing in the model's files",
            where=source.name,
            got=missing[0],
            why="they would be random numbers",
            fix="give the complete folder of the model",
        )
    return model.to(device)


@dataclass(frozen=True)
class ModelSettings:
    """What a model says of itself without its weights."""

    config: Any
    generation_config: Any


def load_settings(source: ModelSource) -> ModelSettings:
    """Config and generation config alone, for whoever needs no weights.

    Raises:
        ModelError: The config cannot be read.
    """
    if source.base is not None:
        return load_settings(source.base)
    folder = source.folder
    try:
        config = AutoConfig.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"the model's config cannot be read ({_first_line(error)})",
            where=source.name,
            fix="mend config.json, or give the complete folder of the model",
        ) from error
    try:
        generation = GenerationConfig.from_pretrained(str(folder))
    except (OSError, ValueError):
        generation = GenerationConfig.from_model_config(config)
    return ModelSettings(config, generation)


def load_tokenizer(source: ModelSource) -> Any:
    """The tokenizer beside the model (an adapter's own, if it has one).

    Raises:
        ModelError: There is none.
    """
    error: Exception | None = None
    for folder in source.folders:
        # Without its files, transformers makes an empty tokenizer from the config alone.
        if not any(folder.glob("*token*")) and not any(folder.glob("vocab*")):
            continue
        try:
            return AutoTokenizer.from_pretrained(str(folder))
        except (OSError, ValueError, TypeError, KeyError, ImportError) as failure:
            error = failure
    raise ModelError(
        "the model has no tokenizer"
        if error is None
        else f"the tokenizer cannot be loaded: {error}",
        where=source.name,
        why="text cannot become tokens",
        fix="put the tokenizer's files (tokenizer.json, tokenizer_config.json) into the folder",
    ) from error


def end_tokens(hf_model: Any) -> tuple[int, ...]:
    """The ids at which the model's generation stops, by its generation config."""
    generation = getattr(hf_model, "generation_config", None)
    ids = None if generation is None else generation.eos_token_id
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, list | tuple) else (int(ids),)


def longest_input(hf_model: Any) -> int | None:
    """The most positions that the model was made for; None if its config names no such number.

    Rotary embeddings that stretch with the longest sequence of a batch (`longrope`, `dynamic`)
    count up to where they begin to: beyond it, a record's log-probability would depend on the
    records beside it.
    """
    config = hf_model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("longrope", "dynamic"):
        original = rope.get("original_max_position_embeddings")
        original = original or getattr(config, "original_max_position_embeddings", None)
        if isinstance(original, int) and original > 0:
            return original
    for name in ("max_position_embeddings", "n_positions", "n_ctx"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def empty_hf_model(config: Any, *, dropout: bool = False) -> Any:
    """The modules of a config's model in float32, on no device and without weights."""
    config = copy.deepcopy(config)
    if not dropout:
        _turn_off_dropout(config)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def checkpoint_activations(hf_model: Any, *, every: int = 1) -> None:
    """Let the model compute activations again in the backward pass: less memory, more time.

    Args:
        hf_model: The model.
        every: Only those of each n-th layer; older transformers knows all layers only.
    """
    # Newer transformers has a new name for it.
    if hasattr(hf_model, "activation_checkpointing_enable"):
        hf_model.activation_checkpointing_enable(every_n_layers=every)
    else:
        hf_model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )


def check_vocabulary(hf_model: Any, tokenizer: Any, source: ModelSource) -> None:
    """Refuse a tokenizer with ids beyond the model's embedding."""
    rows = hf_model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            "the tokenizer has more tokens than the model has embeddings",
            where=source.name,
            got=f"{len(tokenizer)} tokens, {rows} embeddings",
            fix="use the tokenizer that belongs to the model",
        )


def _base_of_adapter(folder: Path, name: str, setting: str) -> str:
    """The name of the model that an adapter belongs to; the adapter's files must be there."""
    from peft import PeftConfig

    if not any(folder.glob("adapter_model.*")):
        raise ModelError(
            "the folder holds an adapter without weights",
            where=setting,
            got=name,
            why="there is no adapter_model.safetensors in it",
            fix="give the folder that save_pretrained wrote",
        )
    try:
        base_name = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    except _LOAD_ERRORS as error:
        raise ModelError(
            f"the adapter's settings cannot be read ({_first_line(error)})",
            where=setting,
            got=name,
            fix=f"mend its {ADAPTER_FILE}",
        ) from error
    if not base_name:
        raise ModelError(
            "the adapter does not say which model it belongs to",
            where=setting,
            got=name,
            fix=f"set base_model_name_or_path in its {ADAPTER_FILE}",
        )
    return str(base_name)


def _with_adapter_merged(model: Any, source: ModelSource) -> Any:
    from peft import PeftModel, get_peft_model_state_dict, load_peft_weights

    try:
        with warnings.catch_warnings():
            # PEFT warns of missing weights and goes on with random ones; they are refused below.
            warnings.simplefilter("ignore")
            adapted = PeftModel.from_pretrained(model, str(source.folder))
        given = load_peft_weights(str(source.folder), device="cpu")
    except _LOAD_ERRORS as error:
        raise ModelError(
            f"the adapter cannot be loaded ({_first_line(error)})",
            where=source.name,
            fix="check that it belongs to its base model and that PEFT loads it",
        ) from error
    wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    missing = sorted(set(wanted) - set(given))
    if missing:
        raise ModelError(
            f"{len(missing)} weights are missing in the adapter's files",
            where=source.name,
            got=missing[0],
            why="they would be random numbers",
            fix="give the complete folder of the adapter",
        )
    # PEFT froze the base when it put the adapter in; merged, it is a model like any other.
    return adapted.merge_and_unload().requires_grad_(True)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else repr(error)


def _looks_like_path(name: str) -> bool:
    """A hub id is `name` or `owner/name`; everything else can only be a path."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name


def _no_folder(folder: Path, name: str, setting: str) -> ModelError:
    if folder.exists():
        return ModelError(
            "the model is a file", where=setting, got=name, fix="give the folder that it lies in"
        )
    near = None
    if folder.parent.is_dir():
        near = nearest_name(folder.name, [p.name for p in folder.parent.iterdir() if p.is_dir()])
    return ModelError(
        "there is no such folder",
        where=setting,
        got=name,
        fix="check the path" if near is None else f"did you mean {folder.parent / near}?",
    )


def _download(name: str, setting: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                name, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
            )
        )
    except (
        HFValidationError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OSError,
        ValueError,
    ) as error:
        raise ModelError(
            "there is no such folder, and the hub gives no such model",
            where=setting,
            got=name,
            why=_first_line(error).rstrip("."),
            fix="check the path; a hub id needs network access or a filled cache (HF_HOME)",
        ) from error


def dropout_rates(config: Any) -> dict[str, float]:
    """The dropout rates that a config names, by attribute."""
    return {
        name: value
        for name, value in vars(config).items()
        if ("dropout" in name or "pdrop" in name or name == "layerdrop")
        and isinstance(value, float)
    }


def _turn_off_dropout(config: Any) -> None:
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        for name in dropout_rates(part):
            setattr(part, name, 0.0)
