"""Which records a run meets, in which order, and which groups its reference must score."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from veritune.batches.loader import GlobalBatch, Loader, num_steps
from veritune.batches.order import RecordOrder
from veritune.errors import DataError
from veritune.tokens.dataset import TokenizedDataset, View
from veritune.tokens.encode import TokenizedRecord
from veritune.training.loop import TrainingConfig
from veritune.training.objective_pass import Objective, mismatched_group

Streams = list[tuple[TokenizedDataset, Iterable[GlobalBatch]]]
"""Data sets, and the batches that are made of them."""


@dataclass(frozen=True)
class RunPlan:
    """The stream of records of a run."""

    loader: Loader
    total_steps: int

    @property
    def first_batch(self) -> GlobalBatch:
        """The records of the first step."""
        batch, _ = next(self.loader.batches())
        return batch

    def batches(self) -> Iterator[GlobalBatch]:
        """The records of every step."""
        return (batch for batch, _ in self.loader.batches())


def plan_run(config: TrainingConfig, dataset: TokenizedDataset, objective: Objective) -> RunPlan:
    """The records of `config.steps` steps, or of `config.epochs` passes over the data.

    Raises:
        DataError: The objective compares with other prompts, and there is one only.
    """
    size = len(dataset)
    total = config.steps or num_steps(size, config.batch_size, config.epochs)
    last = total * config.batch_size if config.steps else max(1, round(config.epochs * size))
    return RunPlan(_loader(config, dataset, objective, config.batch_size, last, "data"), total)


def whole_set(
    config: TrainingConfig,
    dataset: TokenizedDataset,
    objective: Objective,
    *,
    setting: str = "evaluation",
) -> GlobalBatch:
    """A data set as one global batch.

    Args:
        config: Gives the seed.
        dataset: At least one group.
        objective: Says whether mismatched partners are needed.
        setting: The setting that names the data, for messages.

    Raises:
        DataError: The objective compares with other prompts, and there is one only.
    """
    size = len(dataset)
    batch, _ = next(_loader(config, dataset, objective, size, size, setting).batches())
    return batch


def groups_to_score(streams: Streams) -> View[TokenizedRecord]:
    """Every group of which batches need reference log-probabilities, mismatched ones included.

    Each is made when it is asked for; until then it is three numbers.
    """
    places = np.concatenate(
        [
            _places(number, len(dataset), batches)
            for number, (dataset, batches) in enumerate(streams)
        ]
    )

    def group(place: int) -> TokenizedRecord:
        number, index, partner = places[place].tolist()
        dataset, _ = streams[number]
        return dataset[index] if partner < 0 else mismatched_group(dataset, index, partner)

    return View(len(places), group)


def _places(number: int, size: int, batches: Iterable[GlobalBatch]) -> NDArray[np.int64]:
    """Data set, record, and the partner whose completion it stands before or -1, shape (N, 3)."""
    is_met = np.zeros(size, np.bool_)
    pairs = [np.zeros(0, np.int64)]
    for batch in batches:
        is_met[list(batch.indices)] = True
        joined = [
            index * size + partner
            for index, partner in zip(batch.indices, batch.mismatched, strict=False)
            if partner is not None
        ]
        pairs.append(np.array(joined, np.int64))
    own, mismatched = np.flatnonzero(is_met), np.unique(np.concatenate(pairs))
    records = np.concatenate([own, mismatched // size])
    partners = np.concatenate([np.full(len(own), -1), mismatched % size])
    return np.stack([np.full(len(records), number), records, partners], axis=1)


def _loader(
    config: TrainingConfig,
    dataset: TokenizedDataset,
    objective: Objective,
    batch_size: int,
    last: int,
    setting: str,
) -> Loader:
    order = RecordOrder(len(dataset), config.seed, dataset.desirable)
    return Loader(order, batch_size, last, _prompt_keys(dataset, objective, setting))


def _prompt_keys(
    dataset: TokenizedDataset, objective: Objective, setting: str
) -> NDArray[np.int64] | None:
    """A number for each record's prompt, where mismatched partners are asked for."""
    if not objective.card.needs_mismatched:
        return None
    starts = dataset.piece_starts[dataset.group_starts[:-1]]
    ends = starts + dataset.prompt_lengths()
    hashes = np.empty(len(dataset), "S16")
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        prompt = dataset.ids[start:end]
        hashes[index] = hashlib.blake2b(prompt.data, digest_size=16).digest()
    distinct, numbers = np.unique(hashes, return_inverse=True)
    if len(distinct) < 2:
        raise DataError(
            f"{objective.card.name} needs at least two different prompts",
            where=setting,
            why="its baseline is estimated from completions under prompts they do not belong to",
            fix="add records, or choose an objective without a baseline, such as rdro",
        )
    return numbers.astype(np.int64)
