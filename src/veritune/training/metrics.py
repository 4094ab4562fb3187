"""Every logged quantity: name, unit and formula, per kind of data.

Each metric is a mean over examples, kept as (sum, count) and divided once, after the sum over all
rows and ranks. Names are those of the ecosystem. An implicit reward is `scale * log_ratio`, or
`scale * logprob` for an objective without a reference.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from veritune.logprobs import (
    CompletionLogProbs,
    DemonstrationLogProbs,
    LogProbs,
    PairedLogProbs,
    ScoredLogProbs,
    UnpairedLogProbs,
)


@dataclass(frozen=True)
class Metric:
    """One logged quantity."""

    name: str
    meaning: str
    values: Callable[[LogProbs, float], Tensor]
    """The values that it is the mean of; any number of them, none included."""


def implicit_reward(completions: CompletionLogProbs, scale: float) -> Tensor:
    """Reward that the policy implies, without gradient, in units of `scale` nats."""
    policy = completions.policy.detach()
    return scale * (policy if completions.reference is None else policy - completions.reference)


def _accuracy(better: Tensor, worse: Tensor) -> Tensor:
    """1 where better is larger, 1/2 where both are equal, else 0."""
    return (better > worse).float() + 0.5 * (better == worse).float()


def _paired(take: Callable[[PairedLogProbs, float], Tensor]) -> Callable[[LogProbs, float], Tensor]:
    def values(data: LogProbs, scale: float) -> Tensor:
        assert isinstance(data, PairedLogProbs), "metrics of pairs are for pairs"
        return take(data, scale)

    return values


def _of_class(desirable: bool, reward: bool) -> Callable[[LogProbs, float], Tensor]:
    def values(data: LogProbs, scale: float) -> Tensor:
        assert isinstance(data, UnpairedLogProbs), "metrics of labels are for labels"
        every = (
            implicit_reward(data.completion, scale) if reward else data.completion.policy.detach()
        )
        return every[data.desirable == desirable]

    return values


def _scored_accuracy(data: LogProbs, scale: float) -> Tensor:
    """Over all pairs of a group with different scores: is the better one rewarded more?"""
    assert isinstance(data, ScoredLogProbs), "metrics of scores are for scores"
    reward = implicit_reward(data.completions, scale)
    better = data.scores[:, :, None] > data.scores[:, None, :]
    better &= data.present[:, :, None] & data.present[:, None, :]
    return _accuracy(reward[:, :, None], reward[:, None, :])[better]


def _scored_reward_of(best: bool) -> Callable[[LogProbs, float], Tensor]:
    def values(data: LogProbs, scale: float) -> Tensor:
        assert isinstance(data, ScoredLogProbs), "metrics of scores are for scores"
        filler = float("-inf") if best else float("inf")
        ranked = data.scores.masked_fill(~data.present, filler)
        which = ranked.argmax(1) if best else ranked.argmin(1)
        return implicit_reward(data.completions, scale).gather(1, which[:, None])[:, 0]

    return values


def _demonstrated(data: LogProbs, scale: float) -> Tensor:
    assert isinstance(data, DemonstrationLogProbs), "metrics of demonstrations are for them"
    return data.completion.policy.detach()


METRICS: dict[type[LogProbs], tuple[Metric, ...]] = {
    PairedLogProbs: (
        Metric(
            "rewards/chosen",
            "implicit reward of the chosen completion",
            _paired(lambda d, s: implicit_reward(d.chosen, s)),
        ),
        Metric(
            "rewards/rejected",
            "implicit reward of the rejected completion",
            _paired(lambda d, s: implicit_reward(d.rejected, s)),
        ),
        Metric(
            "rewards/accuracies",
            "share of pairs whose chosen has the larger implicit reward; ties count half",
            _paired(
                lambda d, s: _accuracy(implicit_reward(d.chosen, s), implicit_reward(d.rejected, s))
            ),
        ),
        Metric(
            "logps/chosen",
            "log-probability of the chosen completion, nats",
            _paired(lambda d, _: d.chosen.policy.detach()),
        ),
        Metric(
            "logps/rejected",
            "log-probability of the rejected completion, nats",
            _paired(lambda d, _: d.rejected.policy.detach()),
        ),
    ),
    UnpairedLogProbs: (
        Metric("rewards/chosen", "implicit reward of desirable ones", _of_class(True, True)),
        Metric("rewards/rejected", "implicit reward of undesirable ones", _of_class(False, True)),
        Metric("logps/chosen", "log-probability of desirable ones, nats", _of_class(True, False)),
        Metric(
            "logps/rejected", "log-probability of undesirable ones, nats", _of_class(False, False)
        ),
    ),
    ScoredLogProbs: (
        Metric("rewards/chosen", "implicit reward of the best-scored", _scored_reward_of(True)),
        Metric("rewards/rejected", "implicit reward of the worst-scored", _scored_reward_of(False)),
        Metric(
            "rewards/accuracies",
            "share of pairs of different score that rewards order rightly; ties count half",
            _scored_accuracy,
        ),
    ),
    DemonstrationLogProbs: (
        Metric("logps/completions", "log-probability of the demonstration, nats", _demonstrated),
    ),
}
"""What is logged for each kind of data; `rewards/margins` is added by `finish`."""


class MetricSums:
    """Running (sum, count) of every metric of one kind of data, in float64."""

    def __init__(self, form: type[LogProbs], scale: float) -> None:
        self.metrics = METRICS[form]
        self._scale = scale
        self.totals = torch.zeros(2, len(self.metrics), dtype=torch.float64)

    def add(self, data: LogProbs) -> None:
        """Take the examples of one row in."""
        for column, metric in enumerate(self.metrics):
            values = metric.values(data, self._scale)
            self.totals[0, column] += values.double().sum().item()
            self.totals[1, column] += values.numel()


def finish(metrics: tuple[Metric, ...], totals: Tensor) -> dict[str, float]:
    """Means from global (sum, count); a metric without a value is left out.

    `rewards/margins` is the mean reward of the chosen minus that of the rejected.
    """
    means = {
        metric.name: float(totals[0, i] / totals[1, i])
        for i, metric in enumerate(metrics)
        if totals[1, i] > 0
    }
    if "rewards/chosen" in means and "rewards/rejected" in means:
        means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
    return means
