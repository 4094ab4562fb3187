"""TRL's trainers on pairs: their own `compute_loss`, given a policy that is a table."""

import contextlib
import functools
import io
import logging
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from peers import published
from peers.batches import Batch, Rows
from peers.hyperparameters import BETA, EPSILON, FLIPS
from peers.implementation import Formula, Implementation
from peers.table_policy import IGNORED, TablePolicy
from veritune.models.tiny import byte_level_tokenizer, tiny_model

COMMON = {
    "report_to": "none",
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "per_device_train_batch_size": 2,
    "max_steps": 1,
}
"""What every trainer is set to here: float32, on the CPU, silent."""

PAIRS = [
    {"prompt": "1", "chosen": "a b", "rejected": "no"},
    {"prompt": "2 3", "chosen": "c", "rejected": "never, never"},
]


@contextlib.contextmanager
def quietly() -> Any:
    """Without the progress bars and the advice that trainers print when they are built."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


@functools.cache
def tokenizer() -> Any:
    """One token per byte."""
    return byte_level_tokenizer()


def model(seed: int = 0) -> Any:
    """A Llama of two small layers."""
    return tiny_model("llama", vocab_size=len(tokenizer()), hidden_size=32, seed=seed)


def build(trainer: Any, config: Any, data: list[dict[str, Any]], **settings: Any) -> Any:
    """A trainer of TRL around a tiny model."""
    given = {name: settings.pop(name) for name in ("ref_model", "reward_funcs") if name in settings}
    with quietly():
        arguments = config(output_dir=tempfile.gettempdir(), **{**COMMON, **settings})
        return trainer(
            model=model(),
            args=arguments,
            train_dataset=Dataset.from_list(data),
            processing_class=tokenizer(),
            **given,
        )


def inputs_of(rows: Rows) -> dict[str, Tensor]:
    """The rows as a collator would give them: row k begins with token k, its prompt."""
    prompts = torch.arange(len(rows.lengths))[:, None]
    counts = rows.bears_loss
    completion_mask = torch.cat([torch.zeros_like(prompts, dtype=torch.bool), counts], dim=1)
    return {
        "input_ids": torch.cat([prompts, rows.tokens.masked_fill(~counts, 0)], dim=1),
        "attention_mask": torch.cat([torch.ones_like(prompts), counts.long()], dim=1),
        "completion_mask": completion_mask.long(),
    }


@functools.cache
def _dpo_trainer(settings: tuple[tuple[str, Any], ...]) -> Any:
    from trl import DPOConfig, DPOTrainer

    return build(DPOTrainer, DPOConfig, PAIRS, ref_model=model(seed=1), **dict(settings))


def dpo_loss(batch: Batch, **settings: Any) -> Tensor:
    """What `DPOTrainer` would call `backward` on."""
    trainer = _dpo_trainer(tuple(sorted(settings.items())))
    trainer.ref_model = TablePolicy(batch.rows.reference.detach())
    loss: Tensor = trainer.compute_loss(TablePolicy(batch.rows.policy), inputs_of(batch.rows))
    return loss


def _padded(rows: Rows, side: str) -> dict[str, Tensor]:
    """One side of pairs as CPO's and ORPO's collator gives it."""
    inputs = inputs_of(rows)
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, IGNORED)
    return {
        f"{side}_input_ids": inputs["input_ids"],
        f"{side}_attention_mask": inputs["attention_mask"],
        f"{side}_labels": labels,
    }


@functools.cache
def reference_free_trainer(name: str, settings: tuple[tuple[str, Any], ...]) -> Any:
    with quietly():
        if name == "CPOTrainer":
            from trl.experimental.cpo import CPOConfig, CPOTrainer

            return build(CPOTrainer, CPOConfig, PAIRS, **dict(settings))
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        return build(ORPOTrainer, ORPOConfig, PAIRS, **dict(settings))


def reference_free_loss(batch: Batch, *, trainer: str, **settings: Any) -> Tensor:
    """What `CPOTrainer` or `ORPOTrainer` would call `backward` on."""
    built = reference_free_trainer(trainer, tuple(sorted(settings.items())))
    rows, half = batch.rows, batch.num_examples
    inputs = inputs_of(rows)
    both = _padded(rows, "row")
    given = {
        f"{side}_{what}": both[f"row_{what}"][part]
        for side, part in (("chosen", slice(half)), ("rejected", slice(half, None)))
        for what in ("input_ids", "attention_mask", "labels")
    }
    given["prompt_input_ids"] = inputs["input_ids"][:half, :1]
    with quietly():
        loss: Tensor = built.compute_loss(TablePolicy(rows.policy), given)
    return loss


def _dpo(option: str, formula: Formula, **settings: Any) -> Implementation:
    options = {"loss_type": option.split()[0], "beta": BETA, **settings}
    in_single_precision = settings.get("f_divergence_type") == "alpha_divergence"
    return Implementation(
        library="TRL",
        where="DPOTrainer",
        option=option,
        kind="pairs",
        mean_loss=functools.partial(dpo_loss, **options),
        formula=formula,
        settings=options,
        # The alpha-divergence goes through float32, and refuses float64.
        in_single_precision=in_single_precision,
        accepts_double=not in_single_precision,
    )


def _free(trainer: str, option: str, formula: Formula, **settings: Any) -> Implementation:
    return Implementation(
        library="TRL",
        where=trainer,
        option=option,
        kind="pairs",
        mean_loss=functools.partial(reference_free_loss, trainer=trainer, **settings),
        formula=formula,
        settings=settings,
        # ORPOTrainer casts log-probabilities to float32.
        in_single_precision=trainer == "ORPOTrainer",
    )


def _f_divergence(
    option: str, derivative: Callable[[Tensor], Tensor], **more: Any
) -> Implementation:
    name = str(more["f_divergence_type"]).replace("_", " ")
    return _dpo(f"sigmoid {option}", published.f_dpo(BETA, derivative, name), **more)


def implementations() -> list[Implementation]:
    """Every loss on pairs that is looked at."""
    return [
        _dpo("sigmoid", published.dpo(BETA)),
        _dpo("hinge", published.hinge(BETA)),
        _dpo("ipo", published.ipo(BETA)),
        _dpo("exo_pair", published.exo_pref(BETA, EPSILON), label_smoothing=EPSILON),
        _dpo("nca_pair", published.nca(BETA)),
        _dpo("robust", published.rdpo(BETA, FLIPS), label_smoothing=FLIPS),
        _dpo("bco_pair", published.bco(BETA)),
        _dpo("sppo_hard", published.sppo(BETA)),
        _dpo("aot", published.aot_paired(BETA)),
        _dpo("aot_unpaired", published.aot_unpaired(BETA)),
        _dpo("apo_zero", published.apo_zero(BETA)),
        _dpo("apo_down", published.apo_down(BETA)),
        _dpo("discopop", published.discopop(BETA, 0.05)),
        _dpo("sft", published.sft()),
        _dpo("sigmoid_norm", published.sigmoid_norm(BETA)),
        _f_divergence("forward_kl", lambda u: -1 / u, f_divergence_type="forward_kl"),
        _f_divergence(
            "js_divergence",
            lambda u: torch.log(2 * u / (1 + u)),
            f_divergence_type="js_divergence",
        ),
        _f_divergence(
            "alpha_divergence 0.5",
            lambda u: (1 - u**-0.5) / 0.5,
            f_divergence_type="alpha_divergence",
            f_alpha_divergence_coef=0.5,
        ),
        _f_divergence(
            "alpha_divergence 0.3",
            lambda u: (1 - u**-0.3) / 0.3,
            f_divergence_type="alpha_divergence",
            f_alpha_divergence_coef=0.3,
        ),
        _f_divergence(
            "alpha_divergence 0.7 (the paper's 0.3)",
            lambda u: (1 - u**-0.3) / 0.3,
            f_divergence_type="alpha_divergence",
            f_alpha_divergence_coef=0.7,
        ),
        _free("CPOTrainer", "sigmoid", published.cpo(BETA), loss_type="sigmoid", beta=BETA),
        _free(
            "CPOTrainer",
            "simpo",
            published.simpo(2.0, 1.0),
            loss_type="simpo",
            beta=2.0,
            simpo_gamma=1.0,
        ),
        _free(
            "CPOTrainer",
            "simpo cpo_alpha=0",
            published.simpo(2.0, 1.0),
            loss_type="simpo",
            beta=2.0,
            simpo_gamma=1.0,
            cpo_alpha=0.0,
        ),
        _free("ORPOTrainer", "", published.orpo(0.1), beta=0.1),
    ]
