"""One optimizer step of the real trainers on a tiny model, in one piece and in four.

Nothing is stubbed: TRL tokenizes, collates, runs the model with its own output head and steps
with plain gradient descent. Eight examples of different lengths make one step. How far the
parameters move must not depend on how the eight are cut.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peers.trl_pairs import build, model, quietly

_NUM_EXAMPLES = 8
_NUM_PIECES = 4
_TOLERANCE = 1e-4
"""Relative difference of the steps. Float32 rounding gives less than 1e-5."""

_REFERENCE_SEED = 6
"""Of a reference that likes mismatched completions less than the policy does: else KTO's z0 is
0."""

_WORDS = ("one", "two three", "four five six", "seven eight nine ten")


@dataclass(frozen=True)
class Step:
    """A trainer, its data and its settings."""

    name: str
    trainer: Callable[[], tuple[Any, Any]]
    """The trainer's class and that of its settings."""

    data: Callable[[], list[dict[str, Any]]]
    settings: dict[str, Any]
    needs_reference: bool = False


def _pairs() -> list[dict[str, Any]]:
    """Chosen completions of 3 to 40 characters."""
    return [
        {
            "prompt": f"{index}:",
            "chosen": " ".join(_WORDS[: 1 + index % 4]) + "!" * index,
            "rejected": "no" * (1 + (3 * index) % 5),
        }
        for index in range(_NUM_EXAMPLES)
    ]


def _labels() -> list[dict[str, Any]]:
    """Five desirable and three undesirable completions."""
    return [
        {"prompt": pair["prompt"], "completion": pair["chosen"], "label": index % 3 != 1}
        for index, pair in enumerate(_pairs())
    ]


def _demonstrations() -> list[dict[str, Any]]:
    return [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in _pairs()]


def _trl(name: str) -> tuple[Any, Any]:
    import trl

    return getattr(trl, name), getattr(trl, name.replace("Trainer", "Config"))


def _experimental(name: str) -> tuple[Any, Any]:
    if name == "CPOTrainer":
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        return CPOTrainer, CPOConfig
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    return ORPOTrainer, ORPOConfig


def steps() -> list[Step]:
    """Every trainer that is run."""
    dpo = lambda: _trl("DPOTrainer")  # noqa: E731
    return [
        Step("SFTTrainer", lambda: _trl("SFTTrainer"), _demonstrations, {}),
        Step("DPOTrainer sigmoid", dpo, _pairs, {"loss_type": "sigmoid"}, True),
        Step("DPOTrainer sft", dpo, _pairs, {"loss_type": "sft"}, True),
        Step("DPOTrainer sigmoid + sft", dpo, _pairs, {"loss_type": ["sigmoid", "sft"]}, True),
        Step("KTOTrainer kto", lambda: _trl("KTOTrainer"), _labels, {"loss_type": "kto"}, True),
        Step(
            "KTOTrainer apo_zero_unpaired",
            lambda: _trl("KTOTrainer"),
            _labels,
            {"loss_type": "apo_zero_unpaired"},
            True,
        ),
        Step("CPOTrainer sigmoid", lambda: _experimental("CPOTrainer"), _pairs, {}),
        Step(
            "CPOTrainer simpo cpo_alpha=0",
            lambda: _experimental("CPOTrainer"),
            _pairs,
            {"loss_type": "simpo", "cpo_alpha": 0.0},
        ),
        Step("ORPOTrainer", lambda: _experimental("ORPOTrainer"), _pairs, {}),
    ]


def _update(step: Step, num_pieces: int) -> Tensor:
    """How far all parameters move in one step, as one vector."""
    trainer_class, config_class = step.trainer()
    with quietly():
        given = {"ref_model": model(seed=_REFERENCE_SEED)} if step.needs_reference else {}
        trainer = build(
            trainer_class,
            config_class,
            step.data(),
            **{
                "max_steps": 1,
                "per_device_train_batch_size": _NUM_EXAMPLES // num_pieces,
                "gradient_accumulation_steps": num_pieces,
                "learning_rate": 1e-2,
                "lr_scheduler_type": "constant",
                "optim": "sgd",
                "max_grad_norm": 0.0,
                "logging_strategy": "no",
                **step.settings,
            },
            **given,
        )
        before = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
        trainer.train()
        after = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    return after - before


def run(step: Step) -> dict[str, Any]:
    """Name, whether both steps agree, and by how much they do not."""
    whole, pieces = _update(step, 1), _update(step, _NUM_PIECES)
    off = float((pieces - whole).norm() / whole.norm())
    return {
        "library": "TRL",
        "name": step.name,
        "holds": off < _TOLERANCE,
        "measured": f"steps differ by {off:.1e} of their length",
    }
