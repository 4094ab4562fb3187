"""Held-out loss and metrics, by the same pass that trains, without its gradient."""

from collections.abc import Mapping
from typing import Any

from pydantic import model_validator

from veritune.batches.loader import GlobalBatch
from veritune.config import Config
from veritune.errors import SettingsError
from veritune.ranges import OpenFraction, PositiveInt
from veritune.records.read import DataConfig
from veritune.training.objective_pass import ObjectivePass


class EvaluationConfig(Config):
    """What is held out, and when it is looked at."""

    data: DataConfig | None = None
    """Held-out data, in any form that `data` may have."""

    fraction: OpenFraction | None = None
    """Without `data`: the share of the training data's prompts that is held out instead."""

    every: PositiveInt | None = None
    """Steps between evaluations; null evaluates at the start and at the end only."""

    @model_validator(mode="after")
    def _one_way(self) -> "EvaluationConfig":
        if self.data is not None and self.fraction is not None:
            raise SettingsError(
                "data and fraction are two ways to name held-out data",
                got=f"data {', '.join(self.data.files)} and fraction {self.fraction:g}",
                fix="give one of them",
            )
        return self


class HeldOut:
    """Evaluates at the start, at the end and every so often.

    The held-out set is one global batch: losses are averaged over all of it, and whatever an
    objective needs of its batch (class counts, a baseline) is that of the whole set.
    """

    def __init__(
        self, objective_pass: ObjectivePass, batch: GlobalBatch, every: int | None, last_step: int
    ) -> None:
        self._pass = objective_pass
        self._batch = batch
        self._every = every
        self._last_step = last_step

    def __call__(self, step: int) -> Mapping[str, Any] | None:
        """The line for the log if this step is one to evaluate at, else None."""
        due = step in (0, self._last_step) or (self._every is not None and step % self._every == 0)
        return self.measure(step) if due else None

    def measure(self, step: int) -> dict[str, Any]:
        """`eval/…` names with held-out values, and the number of held-out records."""
        model = self._pass.model.hf
        was_training = model.training
        model.eval()
        result = self._pass.run(self._batch)
        model.train(was_training)
        named = {"loss": result.loss, **result.metrics, "records": len(self._batch.indices)}
        return {"step": step, **{f"eval/{name}": value for name, value in named.items()}}
