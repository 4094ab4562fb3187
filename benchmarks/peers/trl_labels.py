"""TRL's KTOTrainer: its own `compute_loss`, given a policy that is a table."""

import functools
from typing import Any

import torch
from torch import Tensor

from peers import published
from peers.batches import Batch
from peers.hyperparameters import BETA
from peers.implementation import Formula, Implementation
from peers.table_policy import TablePolicy
from peers.trl_pairs import build, inputs_of, model

LABELLED = [
    {"prompt": "1", "completion": "a b", "label": True},
    {"prompt": "2 3", "completion": "never, never", "label": False},
]


@functools.cache
def _trainer(settings: tuple[tuple[str, Any], ...]) -> Any:
    from trl import KTOConfig, KTOTrainer

    return build(KTOTrainer, KTOConfig, LABELLED, ref_model=model(seed=1), **dict(settings))


def _stacked(first: Tensor, second: Tensor) -> TablePolicy:
    """The tables of the rows, and after them those of the mismatched completions."""
    width = max(first.shape[1], second.shape[1])
    padded = [
        torch.nn.functional.pad(tables, (0, 0, 0, width - tables.shape[1]))
        for tables in (first, second)
    ]
    return TablePolicy(torch.cat(padded))


def kto_loss(batch: Batch, **settings: Any) -> Tensor:
    """What `KTOTrainer` would call `backward` on."""
    assert batch.desirable is not None, "KTO has labels"
    assert batch.mismatched is not None, "KTO has mismatched completions"
    trainer = _trainer(tuple(sorted(settings.items())))
    rows, others = batch.rows, batch.mismatched
    trainer.ref_model = _stacked(rows.reference.detach(), others.reference.detach())
    mismatched = inputs_of(others)
    mismatched["input_ids"][:, 0] += len(rows.lengths)
    given = {
        **inputs_of(rows),
        **{f"KL_{name}": value for name, value in mismatched.items()},
        "label": batch.desirable,
    }
    loss: Tensor = trainer.compute_loss(_stacked(rows.policy, others.policy), given)
    return loss


def _kto(option: str, formula: Formula, **settings: Any) -> Implementation:
    options = {"loss_type": option.split()[0], "beta": BETA, **settings}
    return Implementation(
        library="TRL",
        where="KTOTrainer",
        option=option,
        kind="labels",
        mean_loss=functools.partial(kto_loss, **options),
        formula=formula,
        settings=options,
    )


def implementations() -> list[Implementation]:
    """Every loss on labels that is looked at."""
    return [
        _kto("kto", published.kto(BETA)),
        _kto(
            "kto weighted",
            published.kto(BETA, 1.5, 0.75),
            desirable_weight=1.5,
            undesirable_weight=0.75,
        ),
        _kto("apo_zero_unpaired", published.apo_zero_unpaired(BETA)),
    ]
