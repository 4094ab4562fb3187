"""The mean log-ratio of all earlier steps, for objectives with a moving baseline."""

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import LogProbs, PairedLogProbs, UnpairedLogProbs


class RunningLogRatio:
    """Sums of log-ratios over all steps made, by class: chosen or desirable, and the other.

    A step reads what earlier steps left, never its own examples, so how it is cut into rows and
    ranks changes nothing.
    """

    def __init__(self) -> None:
        self._totals = torch.zeros(2, 2, dtype=torch.float64)

    @property
    def mean(self) -> float:
        """Mean over the classes seen of the mean in each; 0 before the first step."""
        sums, counts = self._totals.unbind(dim=1)
        seen = counts > 0
        return float((sums[seen] / counts[seen]).mean()) if seen.any() else 0.0

    def add(self, totals: Float[Tensor, "2 2"]) -> None:
        """Add the sums and counts of a step, as `class_totals` gives them, over all ranks."""
        self._totals = self._totals + totals

    @property
    def state(self) -> list[list[float]]:
        """What a checkpoint keeps: sum and count of each class."""
        rows: list[list[float]] = self._totals.tolist()
        return rows

    def restore(self, state: list[list[float]]) -> None:
        """Go on from a checkpoint."""
        self._totals = torch.tensor(state, dtype=torch.float64)


def class_totals(data: LogProbs) -> Float[Tensor, "2 2"]:
    """Sum of log-ratios and number of completions in each class, without gradient."""
    if isinstance(data, PairedLogProbs):
        classes = [data.chosen.log_ratio, data.rejected.log_ratio]
    else:
        assert isinstance(data, UnpairedLogProbs), "pairs and labels have two classes"
        log_ratio = data.completion.log_ratio
        classes = [log_ratio[data.desirable], log_ratio[~data.desirable]]
    return torch.stack(
        [
            torch.stack([c.detach().double().sum().cpu(), torch.tensor(float(len(c))).double()])
            for c in classes
        ]
    )
