"""Loss to gradient to update: one optimizer step."""

from collections.abc import Sequence

import torch
from torch import nn

from veritune import distributed, seeds
from veritune.batches.loader import GlobalBatch
from veritune.errors import NonFiniteLossError
from veritune.training.objective_pass import ObjectivePass, PassResult, PreparedBatch
from veritune.training.optimizer import OptimizerConfig, learning_rate_at

_MAX_NAMED_RECORDS = 8


class TrainingStep:
    """One optimizer step: losses, gradients, one sum over ranks, clipping, update.

    Args:
        objective_pass: Gives losses and gradients.
        optimizer: Updates the parameters that require a gradient.
        config: Rate, schedule and clipping.
        total_steps: Steps of the run, for the schedule.
        seed: The run's seed, for dropout where it is on.
    """

    def __init__(
        self,
        objective_pass: ObjectivePass,
        optimizer: torch.optim.Optimizer,
        config: OptimizerConfig,
        total_steps: int,
        seed: int,
    ) -> None:
        self.objective_pass = objective_pass
        self.optimizer = optimizer
        self._config = config
        self._total_steps = total_steps
        self._seed = seed

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that are updated."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def run(self, step: int, batch: GlobalBatch | PreparedBatch) -> dict[str, float]:
        """Make step number `step` (from 1) and return its line of metrics.

        Raises:
            NonFiniteLossError: Loss or gradient is not finite; nothing was updated.
        """
        # Whatever is random inside a step depends on the step alone, so a resumed run repeats it.
        torch.manual_seed(seeds.stream_seed(self._seed, "step", step, distributed.rank()))
        self.objective_pass.model.hf.train()
        self.optimizer.zero_grad(set_to_none=True)
        result = self.objective_pass.run(batch, backward=True)
        if not torch.isfinite(result.losses).all():
            raise self._non_finite(step, batch.indices, result, "loss")
        distributed.sum_gradients(self.parameters)
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if not torch.isfinite(norm):
            raise self._non_finite(step, batch.indices, result, "gradient")
        nn.utils.clip_grads_with_norm_(self.parameters, self._config.max_gradient_norm, norm)
        rate = learning_rate_at(step, self._total_steps, self._config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.objective_pass.running.add(result.class_totals)
        return {
            "step": step,
            "loss": result.loss,
            "learning_rate": rate,
            "gradient_norm": float(norm),
            "tokens": result.num_tokens,
            "fill": result.fill,
            **result.metrics,
        }

    def _non_finite(
        self, step: int, indices: Sequence[int], result: PassResult, what: str
    ) -> NonFiniteLossError:
        """The error that names the records whose loss is not finite, or all where the sum is."""
        bad = torch.nonzero(~torch.isfinite(result.losses)).flatten().tolist()
        places = bad or range(len(indices))
        origins = [str(self.objective_pass.dataset.origins[indices[p]]) for p in places]
        named = "; ".join(origins[:_MAX_NAMED_RECORDS])
        more = len(origins) - _MAX_NAMED_RECORDS
        return NonFiniteLossError(
            f"the {what} is not finite, and no update was made; the records are {named}"
            + (f", and {more} more" if more > 0 else ""),
            where=f"step {step}",
            got=result.loss,
            why="the next update would destroy the weights",
            fix="lower train.learning_rate, look at these records, or choose an objective whose "
            "loss is finite everywhere (veritune objectives)",
        )
