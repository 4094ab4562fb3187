"""Veritune's functions, fed from the same tables: the control of the whole comparison."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from peers import published, published_samples
from peers.batches import Batch, Rows, mismatched_log_ratio
from peers.hyperparameters import BETA, CLIP, EPSILON, FLIPS
from peers.implementation import Formula, Implementation
from veritune.logprobs import (
    CompletionLogProbs,
    PairedLogProbs,
    SampledLogProbs,
    UnpairedLogProbs,
)
from veritune.objectives.paired.bco_pair import bco_pair_loss
from veritune.objectives.paired.chosen_nll import chosen_nll_loss
from veritune.objectives.paired.dpo import dpo_loss
from veritune.objectives.paired.exo_pref import exo_pref_loss
from veritune.objectives.paired.hinge_norm import hinge_norm_loss
from veritune.objectives.paired.ipo import ipo_loss
from veritune.objectives.paired.ipo_mean import ipo_mean_loss
from veritune.objectives.paired.nca import nca_loss
from veritune.objectives.paired.orpo import orpo_loss
from veritune.objectives.paired.rdpo import rdpo_loss
from veritune.objectives.paired.simpo import simpo_loss
from veritune.objectives.paired.sppo import sppo_loss
from veritune.objectives.sampled.ppo import ppo_loss
from veritune.objectives.unpaired.kto import kto_loss


def _completions(rows: Rows, part: slice, *, with_reference: bool) -> CompletionLogProbs:
    return CompletionLogProbs(
        rows.policy_sums[part],
        rows.lengths[part],
        rows.reference_sums[part].detach() if with_reference else None,
    )


def _pairs(
    batch: Batch, *, with_reference: bool, mean_log_ratio: Tensor | None = None
) -> PairedLogProbs:
    rows, half = batch.rows, batch.num_examples
    return PairedLogProbs(
        _completions(rows, slice(half), with_reference=with_reference),
        _completions(rows, slice(half, None), with_reference=with_reference),
        mean_log_ratio=mean_log_ratio,
    )


def _bco_step(batches: list[Batch]) -> list[Tensor]:
    """Losses of micro-batches; what is known of other examples is of the whole step, as in
    `veritune.training.step`."""
    ratios = [batch.rows.policy_sums - batch.rows.reference_sums for batch in batches]
    mean = torch.cat(ratios).mean().detach()
    return [
        bco_pair_loss(_pairs(batch, with_reference=True, mean_log_ratio=mean), beta=BETA).mean()
        / len(batches)
        for batch in batches
    ]


def _kto_step(batches: list[Batch]) -> list[Tensor]:
    """The same for KTO."""
    point = mismatched_log_ratio(batches)
    num_examples = sum(batch.num_examples for batch in batches)
    losses = []
    for batch in batches:
        assert batch.desirable is not None, "KTO has labels"
        num_desirable = int(batch.desirable.sum())
        labels = UnpairedLogProbs(
            _completions(batch.rows, slice(None), with_reference=True),
            batch.desirable,
            num_desirable=num_desirable,
            num_undesirable=len(batch.desirable) - num_desirable,
            mismatched_log_ratio=point,
        )
        losses.append(kto_loss(labels, beta=BETA).sum() / num_examples)
    return losses


def _token_samples(batch: Batch) -> SampledLogProbs:
    """Each completion a group of its own; its advantage is that of its tokens."""
    assert batch.behavior is not None, "samples have a behavior"
    assert batch.advantages is not None, "samples have advantages"
    rows = batch.rows
    shape = rows.tokens.shape
    return SampledLogProbs(
        policy=rows.token_logprobs(rows.policy)[:, None],
        behavior=batch.behavior[:, None],
        bears_loss=rows.bears_loss[:, None],
        rewards=torch.zeros(shape[0], 1, dtype=rows.policy.dtype),
        advantages=batch.advantages[:, None, None].expand(shape[0], 1, shape[1]),
    )


def _paired(loss: Callable[..., Tensor], formula: Formula, **settings: Any) -> Implementation:
    name = loss.__name__.removesuffix("_loss")
    with_reference = not formula.ignores_reference

    def mean_loss(batch: Batch) -> Tensor:
        return loss(_pairs(batch, with_reference=with_reference), **settings).mean()

    return Implementation("Veritune", name, "", "pairs", mean_loss, formula, settings)


def _step(batches: list[Batch]) -> list[Tensor]:
    """Losses of micro-batches, divided once by what the global batch holds, as the step does."""
    return [
        ppo_loss(_token_samples(batch), epsilon=CLIP).sum() / float(batch.num_tokens or 1)
        for batch in batches
    ]


def _chosen_nll() -> Formula:
    def loss(batch: Batch) -> Tensor:
        return -batch.rows.policy_sums[: batch.num_examples].mean()

    return Formula(loss, "likelihood of the chosen completions, summed", ignores_reference=True)


def implementations() -> list[Implementation]:
    """Those that a formula here belongs to."""
    return [
        _paired(dpo_loss, published.dpo(BETA), beta=BETA),
        _paired(hinge_norm_loss, published.hinge(BETA), gamma=BETA),
        _paired(ipo_loss, published.ipo(BETA), tau=BETA),
        _paired(ipo_mean_loss, published.ipo_mean(BETA), tau=BETA),
        _paired(exo_pref_loss, published.exo_pref(BETA, EPSILON), beta=BETA, epsilon=EPSILON),
        _paired(nca_loss, published.nca(BETA), beta=BETA),
        _paired(rdpo_loss, published.rdpo(BETA, FLIPS), beta=BETA, epsilon=FLIPS),
        Implementation(
            "Veritune",
            "bco_pair",
            "",
            "pairs",
            lambda batch: _bco_step([batch])[0],
            published.bco(BETA),
            {"beta": BETA},
            parts=_bco_step,
        ),
        _paired(sppo_loss, published.sppo(BETA), beta=BETA),
        _paired(chosen_nll_loss, _chosen_nll()),
        _paired(simpo_loss, published.simpo(2.0, 1.0), beta=2.0, gamma=1.0),
        _paired(orpo_loss, published.orpo(0.1), odds_weight=0.1),
        Implementation(
            "Veritune",
            "kto",
            "",
            "labels",
            lambda batch: _kto_step([batch])[0],
            published.kto(BETA),
            {"beta": BETA},
            parts=_kto_step,
        ),
        Implementation(
            "Veritune",
            "ppo",
            "",
            "samples",
            lambda batch: _step([batch])[0],
            published_samples.per_token_of_the_batch(
                CLIP, "arXiv:1707.06347, eq. 7, advantages given"
            ),
            {"epsilon": CLIP},
            parts=_step,
        ),
    ]
