"""TRL's GRPOTrainer and RLOOTrainer: their own `compute_loss`, given a policy that is a table."""

import functools
from typing import Any

import torch
from torch import Tensor

from peers import published_samples
from peers.batches import Batch
from peers.hyperparameters import CLIP, KL_WEIGHT, LARGEST, LONGEST
from peers.implementation import Formula, Implementation
from peers.table_policy import TablePolicy
from peers.trl_pairs import build, inputs_of

PROMPTS = [{"prompt": "1"}, {"prompt": "2 3"}]


def _no_reward(completions: list[Any], **_: Any) -> list[float]:
    return [0.0] * len(completions)


@functools.cache
def _trainer(name: str, settings: tuple[tuple[str, Any], ...]) -> Any:
    import trl

    return build(
        getattr(trl, name),
        getattr(trl, name.replace("Trainer", "Config")),
        PROMPTS,
        reward_funcs=_no_reward,
        num_generations=2,
        max_completion_length=LONGEST,
        **{name: value for name, value in settings if name != "beta"},
        beta=0.0,
    )


def _inputs(batch: Batch) -> dict[str, Any]:
    assert batch.behavior is not None, "samples have a behavior"
    rows = batch.rows
    padded = inputs_of(rows)
    return {
        "prompt_ids": padded["input_ids"][:, :1],
        "prompt_mask": padded["attention_mask"][:, :1],
        "completion_ids": padded["input_ids"][:, 1:],
        "completion_mask": padded["completion_mask"][:, 1:],
        "advantages": batch.advantages,
        "old_per_token_logps": batch.behavior,
        "ref_per_token_logps": rows.token_logprobs(rows.reference).detach(),
        "old_logps": batch.behavior.sum(dim=1),
        "num_items_in_batch": torch.tensor(batch.num_tokens),
    }


def step_losses(batches: list[Batch], *, trainer: str, **settings: Any) -> list[Tensor]:
    """What the trainer would call `backward` on, for each micro-batch of one step."""
    built = _trainer(trainer, tuple(sorted(settings.items())))
    built.model.train()
    # Set here, because a trainer that is built with a KL weight loads its reference by name.
    built.beta = settings["beta"]
    # transformers' Trainer sets the first when a step begins; the batches of the step were
    # generated together.
    built.current_gradient_accumulation_steps = len(batches)
    built.args.steps_per_generation = len(batches)
    losses = [
        built.compute_loss(TablePolicy(batch.rows.policy), _inputs(batch)) for batch in batches
    ]
    if trainer == "RLOOTrainer":
        # GRPOTrainer divides by the number of micro-batches itself; here transformers does.
        losses = [loss / len(batches) for loss in losses]
    return losses


def _samples(trainer: str, option: str, formula: Formula, **settings: Any) -> Implementation:
    def losses(batches: list[Batch]) -> list[Tensor]:
        return step_losses(batches, trainer=trainer, **settings)

    return Implementation(
        library="TRL",
        where=trainer,
        option=option,
        kind="samples",
        mean_loss=lambda batch: losses([batch])[0],
        formula=formula,
        settings=settings,
        parts=losses,
    )


def _grpo(option: str, formula: Formula, **settings: Any) -> Implementation:
    options = {"loss_type": option.split()[0], "beta": 0.0, **settings}
    return _samples("GRPOTrainer", option, formula, **options)


def implementations() -> list[Implementation]:
    """Every loss on samples that is looked at."""
    tokens = published_samples.per_token_of_the_batch
    sequence = {"importance_sampling_level": "sequence"}
    return [
        _grpo("grpo", published_samples.grpo(CLIP, 0.0)),
        _grpo("grpo with KL", published_samples.grpo(CLIP, KL_WEIGHT), beta=KL_WEIGHT),
        _grpo(
            "grpo with KL, use_bias_correction_kl=False",
            published_samples.grpo(CLIP, KL_WEIGHT),
            beta=KL_WEIGHT,
            use_bias_correction_kl=False,
        ),
        _grpo("grpo sequence", published_samples.gspo(CLIP), **sequence),
        _grpo("dr_grpo", published_samples.dr_grpo(CLIP, LONGEST)),
        _grpo("dapo", tokens(CLIP, "Yu et al. 2025, arXiv:2503.14476, advantages given")),
        _grpo("bnpo", tokens(CLIP, "GRPO per token of the batch, TRL's documentation")),
        _grpo("cispo", published_samples.cispo(LARGEST), epsilon_high=LARGEST),
        _grpo("sapo", published_samples.sapo(1.0, 1.05)),
        _grpo("luspo", published_samples.luspo(CLIP), **sequence),
        _samples("RLOOTrainer", "", published_samples.rloo(CLIP), beta=0.0),
    ]
