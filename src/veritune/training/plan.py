"""Which records a run meets, in which order, and which groups its reference must score."""

from dataclasses import dataclass

from veritune.batches.loader import GlobalBatch, Loader, num_steps
from veritune.batches.order import RecordOrder
from veritune.errors import DataError
from veritune.tokens.dataset import TokenizedDataset
from veritune.tokens.encode import TokenizedRecord
from veritune.training.loop import TrainingConfig
from veritune.training.step import Objective, mismatched_group


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

    def groups_to_score(self, dataset: TokenizedDataset) -> list[TokenizedRecord]:
        """Every group of which the run needs reference log-probabilities, with repeats."""
        return [group for batch, _ in self.loader.batches() for group in groups_of(dataset, batch)]


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


def groups_of(dataset: TokenizedDataset, batch: GlobalBatch) -> list[TokenizedRecord]:
    """Every group of which a batch needs log-probabilities, mismatched ones last."""
    groups = [dataset[index] for index in batch.indices]
    for index, partner in zip(batch.indices, batch.mismatched, strict=False):
        if partner is not None:
            groups.append(mismatched_group(dataset, index, partner))
    return groups


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
) -> list[bytes] | None:
    """Keys of prompts where mismatched partners are asked for."""
    if not objective.card.needs_mismatched:
        return None
    keys = [dataset[index].prompt.tobytes() for index in range(len(dataset))]
    if len(set(keys)) < 2:
        raise DataError(
            f"{objective.card.name} needs at least two different prompts",
            where=setting,
            why="its baseline is estimated from completions under prompts they do not belong to",
            fix="add records, or choose an objective without a baseline, such as rdro",
        )
    return keys
