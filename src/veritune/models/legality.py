"""Shared against unshared on a first batch: what a model bears, found out before training.

Sharing a prompt, or packing sequences into a row, is exact for models whose layers exchange
information through attention alone. In others (linear attention, recurrent state, positions by
index) it goes wrong without an error, so every run compares with the plain way first.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from veritune.batches.batch import Batch
from veritune.errors import ModelError
from veritune.models.forward import CausalModel, Sharing
from veritune.models.plain import plain_logprobs
from veritune.tokens.encode import TokenizedCompletion, TokenizedRecord

SharingSetting = Literal["auto", "shared", "packed", "padded"]
_LEVELS: tuple[Sharing, ...] = ("shared", "packed", "padded")
_TOLERANCE_PER_TOKEN = 2e-4
_MAX_PROMPT, _MAX_COMPLETION = 64, 48
# Every other kind may keep a state along the row (linear attention, recurrence, convolution), or
# say who sees whom in masks alone (chunks, compression), and segments have no masks.
_KNOWN_LAYERS = {
    "full_attention",
    "sliding_attention",
    "attention",
    "moe",
    "mlp",
    "dense",
    "sparse",
}
# What begins to act beyond a length that the probe does not reach, and goes by places in the row.
_LATE_SETTINGS = {
    "attn_temperature_tuning": "scales attention by places in the row",
    "index_topk": "attends to the keys that an index selects",
    "keep_window_size": "attends to the keys that a dynamic mask keeps",
}
_WINDOW_NAMES = ("sliding_window", "sliding_window_size", "attention_window_size")


@dataclass(frozen=True)
class Legality:
    """What the check found."""

    sharing: Sharing
    """The layout that is used from now on."""

    errors: dict[str, float]
    """Largest error of a sequence log-probability against the plain way, nats, by layout tried."""

    reason: str | None = None
    """Why a faster layout is not used."""


@torch.no_grad()
def settle_sharing(
    model: CausalModel, groups: Sequence[TokenizedRecord], setting: SharingSetting = "auto"
) -> Legality:
    """Set the fastest layout of groups that gives the model's own log-probabilities.

    Runs in float32 on shortened groups: the comparison is about which tokens see which, and
    rounding would blur it.

    Args:
        model: The model; its layout is set.
        groups: A few groups of the data, at least one.
        setting: "auto" falls back level by level; a level's name accepts that level or stops.

    Raises:
        ModelError: The asked-for layout, or every layout, gives other log-probabilities.
    """
    _refuse_learned_prompts(model.hf)
    probe = [_shortened(group) for group in groups[:3]]
    probe = probe * 2 if len(probe) == 1 else probe
    precision, model.precision = model.precision, "fp32"
    was_training = model.hf.training
    model.hf.eval()
    try:
        model.use_stock_attention()
        plain = torch.cat(
            [plain_logprobs(model.hf, g, temperature=model.temperature) for g in probe]
        )
        if not torch.isfinite(plain).all():
            raise ModelError(
                "the model's log-probabilities are not finite",
                where="model",
                got=plain[~torch.isfinite(plain)][0].item(),
                why="some of its weights are not numbers, or its activations overflow",
                fix="check the model folder",
            )
        errors: dict[str, float] = {}
        reason = obstacle = obstacle_to_rows(model.hf.config)
        levels = _LEVELS if setting == "auto" else (setting,)
        for level in levels:
            if obstacle and level != "padded":
                errors[level] = float("inf")
                continue
            model.use_sharing(level)
            batch = model.batch(probe, range(len(probe))).to(model.device)
            error = _error(model, batch, plain)
            if batch.plan is not None and hides_window(model.hf.config, batch.plan.windows):
                errors[level] = float("inf")
                reason = "the model does not tell its attention the window of its layers"
                continue
            errors[level] = error
            tolerance = _TOLERANCE_PER_TOKEN * max(
                int(c.bears_loss.sum()) for g in probe for c in g.completions
            )
            if error <= tolerance:
                return Legality(level, errors, reason)
            reason = (
                f"{level} rows change log-probabilities by {error:.2g} nats (tolerance "
                f"{tolerance:.2g})"
                if np.isfinite(error)
                else f"{level} rows do not run through the model"
            )
    finally:
        model.precision = precision
        model.hf.train(was_training)
    raise ModelError(
        "the model does not give its own log-probabilities in "
        + ("any layout of rows" if setting == "auto" else f"{setting} rows"),
        where="train.sharing",
        got=reason,
        why="training would follow the gradient of another model",
        fix="set train.sharing=auto" if setting != "auto" else "report the model's architecture",
    )


def obstacle_to_rows(config: Any) -> str | None:
    """Why sequences in one row would or might disturb each other, by the model's config, if so.

    The check of log-probabilities finds most of it too. This knows besides what begins to act at
    lengths that the probe does not reach, and kinds of layers that nobody has looked at.
    """
    text = config.get_text_config()
    for name in ("layer_types", "layers_block_type", "block_types"):
        for kind in getattr(text, name, None) or ():
            if str(kind) not in _KNOWN_LAYERS:
                return (
                    f"the model has {kind} layers, which may not keep the sequences of a row apart"
                )
    for name, what in _LATE_SETTINGS.items():
        if getattr(text, name, None):
            return f"the model {what} ({name}), which rows of several sequences would change"
    return None


def hides_window(config: Any, windows: Collection[int]) -> bool:
    """Whether layers have a sliding window that none of them told the attention.

    The probe is shorter than a real window, so its log-probabilities would not show it.

    Args:
        config: The model's.
        windows: What the attention was told, in tokens.
    """
    text = config.get_text_config()
    window = next((size for name in _WINDOW_NAMES if (size := getattr(text, name, None))), 0)
    if not 0 < window < (getattr(text, "max_position_embeddings", None) or float("inf")):
        return False
    kinds = getattr(text, "layer_types", None)
    has_window = kinds is None or any("sliding" in str(kind) for kind in kinds)
    return has_window and not windows


def _error(model: CausalModel, batch: Batch, plain: torch.Tensor) -> float:
    try:
        sums, _, _ = model.completion_logprobs(batch)
    # Models that refuse the arguments of packed rows cannot use them; that is an answer.
    except (TypeError, AssertionError, NotImplementedError, RuntimeError, ValueError):
        return float("inf")
    error = (sums - plain).abs().max().item()
    return error if np.isfinite(error) else float("inf")


def _refuse_learned_prompts(hf_model: Any) -> None:
    adapters = getattr(hf_model, "peft_config", None)
    if not isinstance(adapters, Mapping):
        return
    for adapter in adapters.values():
        if getattr(adapter, "is_prompt_learning", False):
            raise ModelError(
                "the adapter learns a prompt",
                where="model",
                got=str(getattr(adapter, "peft_type", type(adapter).__name__)),
                why="tokens of its own would stand before every sequence, and rows have none",
                fix="use an adapter that changes weights (LoRA)",
            )


def _shortened(group: TokenizedRecord) -> TokenizedRecord:
    completions = []
    for completion in group.completions:
        # Keep tokens up to a cut behind the first that bears loss.
        first = int(np.argmax(completion.bears_loss))
        stop = max(_MAX_COMPLETION, first + 1)
        completions.append(TokenizedCompletion(completion.ids[:stop], completion.bears_loss[:stop]))
    return TokenizedRecord(group.prompt[-_MAX_PROMPT:], tuple(completions), group.origin)
