"""Models and tokenized data made from a seed, small enough to check against arithmetic."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from veritune.batches.loader import GlobalBatch, Loader
from veritune.batches.order import RecordOrder
from veritune.models.cache import ReferenceCache
from veritune.models.forward import CausalModel, Sharing
from veritune.models.reference import ReferenceLogProbs, score_reference
from veritune.models.tiny import tiny_model
from veritune.objectives.catalog import CATALOG, find_card, settings_of
from veritune.records.kinds import Origin
from veritune.tokens.dataset import TokenizedDataset
from veritune.tokens.encode import TokenizedRecord
from veritune.training.objective_pass import Objective, ObjectivePass, mismatched_group

FROM_RECORDS = [name for name, card in CATALOG.items() if not card.takes_samples]
"""Objectives that train from a file of records."""

VOCAB_SIZE = 40
ONE_ROW = 10_000
"""A token budget under which every batch of these worlds is one row."""

OWN_ROWS = 1
"""A token budget under which every group is a row of its own."""

_MADE_UP = {"pmle_kl": {"kl_weight": 0.3}}
"""Hyper-parameters that have no default."""


def lively_model(seed: int = 0, *, vocab_size: int = VOCAB_SIZE) -> Any:
    """A two-layer Qwen2 in float32 whose weights are large, so that its predictions differ.

    As initialized by transformers it would be nearly uniform, and mistakes would hide.
    """
    model = tiny_model("qwen2", vocab_size=vocab_size, hidden_size=16, max_positions=64, seed=seed)
    return perturbed(model, 0.25, seed=seed)


def perturbed(model: Any, size: float, *, seed: int) -> Any:
    """A copy of the model with Gaussian noise of this standard deviation on every parameter."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return other


def random_dataset(kind: str, num_records: int, *, seed: int = 0) -> TokenizedDataset:
    """Random groups of one kind, with everything that real ones have.

    Prompts and completions are of different lengths, one token included; each third record has the
    prompt of the one before; some completions hold tokens without loss; scored groups have one to
    four completions, and equal scores among them; two in five labels are desirable.
    """
    draw = np.random.default_rng(seed)
    ids: list[int] = []
    bears_loss: list[bool] = []
    pieces, groups, scores = [0], [0], []
    prompt: list[int] = []
    for number in range(num_records):
        if number % 3 != 2:
            prompt = draw.integers(0, VOCAB_SIZE, draw.integers(1, 9)).tolist()
        size = {"paired": 2, "scored": int(draw.integers(1, 5))}.get(kind, 1)
        ids += prompt
        bears_loss += [False] * len(prompt)
        pieces.append(len(ids))
        for _ in range(size):
            length = int(draw.integers(1, 8))
            mask = [True] * length
            if draw.random() < 0.3:
                mask[int(draw.integers(0, length))] = length == 1
            ids += draw.integers(0, VOCAB_SIZE, length).tolist()
            bears_loss += mask
            pieces.append(len(ids))
        groups.append(len(pieces) - 1)
        scores.append(tuple(float(s) for s in draw.integers(0, 3, size)))
    labels = np.array([number % 5 in (1, 4) for number in range(num_records)])
    return TokenizedDataset(
        kind=kind,
        ids=np.array(ids, np.int32),
        bears_loss=np.array(bears_loss, np.bool_),
        piece_starts=np.array(pieces, np.int64),
        group_starts=np.array(groups, np.int64),
        desirable=labels if kind == "unpaired" else np.zeros(0, np.bool_),
        scores=tuple(scores) if kind == "scored" else (),
        origins=tuple(Origin("made-up.jsonl", n + 1) for n in range(num_records)),
        max_length=64,
    )


def objective_named(name: str, dataset: TokenizedDataset, **given: float) -> Objective:
    """An objective with its defaults, as a run on this data would have it."""
    card = find_card(name)
    values = {**_MADE_UP.get(name, {}), **given}
    return Objective(card, settings_of(card, values, data_fraction=dataset.desirable_fraction))


def prompt_keys(dataset: TokenizedDataset) -> list[bytes]:
    """What two records share exactly if their prompts are the same."""
    return [dataset[index].prompt.tobytes() for index in range(len(dataset))]


def batch_of(dataset: TokenizedDataset, size: int, *, seed: int = 0) -> GlobalBatch:
    """The first batch of a run on this data, mismatched partners included."""
    order = RecordOrder(len(dataset), seed, dataset.desirable)
    batch, _ = next(Loader(order, size, size, prompt_keys(dataset)).batches())
    return batch


def groups_of(dataset: TokenizedDataset, batch: GlobalBatch) -> list[TokenizedRecord]:
    """Every group of which a pass over the batch may want the reference."""
    mismatched = [
        mismatched_group(dataset, index, partner)
        for index, partner in zip(batch.indices, batch.mismatched, strict=True)
        if partner is not None and dataset.kind == "unpaired"
    ]
    return [*(dataset[index] for index in batch.indices), *mismatched]


def scored_by(
    model: Any, groups: Sequence[TokenizedRecord], folder: Path, *, temperature: float = 1.0
) -> ReferenceLogProbs:
    """The reference log-probabilities of groups under a model, kept in a folder."""
    cache = ReferenceCache(folder, {"made": "for a test"})
    scorer = CausalModel(copy.deepcopy(model), temperature=temperature)
    score_reference(scorer, cache, groups, tokens_per_row=ONE_ROW, seed=0)
    return ReferenceLogProbs(cache)


def make_pass(
    name: str,
    policy: Any,
    reference: Any,
    dataset: TokenizedDataset,
    batch: GlobalBatch,
    folder: Path,
    *,
    tokens_per_row: int = ONE_ROW,
    sharing: Sharing = "shared",
    temperature: float = 1.0,
    **hyperparameters: float,
) -> ObjectivePass:
    """A pass of one objective, with its reference scored; the policy is copied."""
    objective = objective_named(name, dataset, **hyperparameters)
    scored = None
    if objective.card.needs_reference:
        groups = groups_of(dataset, batch)
        scored = scored_by(reference, groups, folder, temperature=temperature)
    model = CausalModel(copy.deepcopy(policy), sharing=sharing, temperature=temperature)
    return ObjectivePass(model, objective, dataset, scored, tokens_per_row)


def gradients(objective_pass: ObjectivePass) -> dict[str, torch.Tensor]:
    """The gradient of every parameter that has one, by name, in float64."""
    return {
        name: parameter.grad.double().clone()
        for name, parameter in objective_pass.model.hf.named_parameters()
        if parameter.grad is not None
    }


def largest_relative_error(
    got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]
) -> float:
    """Over all named tensors, the norm of the difference over the norm of what is expected."""
    assert got.keys() == expected.keys(), "both hold the same parameters"
    return max(
        float((got[name] - expected[name]).norm() / expected[name].norm()) for name in expected
    )
