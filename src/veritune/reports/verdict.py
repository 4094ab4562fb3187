"""What the numbers of a run say, in plain sentences."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from veritune.reports.numbers import format_number, format_share
from veritune.reports.run_folder import HELD_OUT, RunFolder, Series

ACCURACY = "rewards/accuracies"
_CHOSEN, _REJECTED = "logps/chosen", "logps/rejected"
_MIN_SAMPLES_FOR_NOISE = 5


@dataclass(frozen=True)
class Change:
    """A quantity at the beginning and at the end."""

    first: float
    last: float
    first_steps: str
    """Which steps the beginning is, in words."""

    last_steps: str
    is_noise: bool
    """Whether the difference is less than two of its standard errors."""


def tenths(series: Series) -> Change | None:
    """Mean of the first tenth against mean of the last; None with fewer than two values."""
    values = [value for _, value in series if math.isfinite(value)]
    if len(values) < 2:
        return None
    size = max(1, len(values) // 10)
    first, last = values[:size], values[-size:]
    mean_first, mean_last = math.fsum(first) / size, math.fsum(last) / size
    is_noise = False
    if size >= _MIN_SAMPLES_FOR_NOISE:
        error = math.sqrt((_variance(first) + _variance(last)) / size)
        is_noise = abs(mean_last - mean_first) < 2 * error
    if size == 1:
        return Change(mean_first, mean_last, "the first step", "the last", is_noise)
    return Change(
        mean_first,
        mean_last,
        f"the mean of the first {size} steps",
        f"the mean of the last {size}",
        is_noise,
    )


def ends(series: Series) -> Change | None:
    """The first value against the last; None with fewer than two values."""
    points = [(step, value) for step, value in series if math.isfinite(value)]
    if len(points) < 2:
        return None
    (first_step, first), (last_step, last) = points[0], points[-1]
    return Change(first, last, f"step {first_step:.0f}", f"step {last_step:.0f}", is_noise=False)


def run_findings(run: RunFolder) -> tuple[str, ...]:
    """The sentences, those that the numbers allow."""
    return tuple(
        sentence
        for sentence in (
            _training_loss(run),
            _not_a_number(run),
            _training_accuracy(run),
            _held_out_loss(run),
            _best_held_out_loss(run),
            _held_out_accuracy(run),
            _both_fell(run),
        )
        if sentence
    )


def _training_loss(run: RunFolder) -> str:
    series = run.values("loss")
    change = tenths(series)
    if change is not None:
        sentence = _moved("The training loss", change, format_number)
        if change.is_noise:
            sentence += " The difference is within the noise from step to step."
        return sentence
    values = [value for _, value in series if math.isfinite(value)]
    if values:
        return f"The training loss is {format_number(values[0])}, of one step: no trend yet."
    return "No training loss was recorded." if run.steps else ""


def _not_a_number(run: RunFolder) -> str:
    bad = [step for step, value in run.values("loss") if not math.isfinite(value)]
    if not bad:
        return ""
    return (
        f"The loss was not a finite number at {_counted(len(bad), 'step')} "
        f"of {len(run.values('loss'))}, first at step {bad[0]:.0f}."
    )


def _training_accuracy(run: RunFolder) -> str:
    change = tenths(run.values(ACCURACY))
    if change is None:
        return ""
    return _moved("The share of training examples that are ranked rightly", change, format_share)


def _held_out_loss(run: RunFolder) -> str:
    series = run.values(HELD_OUT + "loss")
    change = ends(series)
    if change is not None:
        return _moved("On held-out data the loss", change, format_number)
    points = [(step, value) for step, value in series if math.isfinite(value)]
    if not points:
        return (
            "" if not run.steps else "Nothing was held out, so this page cannot show overfitting."
        )
    step, value = points[0]
    return (
        f"On held-out data the loss is {format_number(value)} at step {step:.0f}; "
        "with one evaluation there is nothing to compare."
    )


def _best_held_out_loss(run: RunFolder) -> str:
    points = [(s, v) for s, v in run.values(HELD_OUT + "loss") if math.isfinite(v)]
    if len(points) < 3:
        return ""
    best_step, best = min(points, key=lambda point: point[1])
    risen, fallen = points[-1][1] - best, points[0][1] - best
    if best_step == points[-1][0] or risen < 0.1 * fallen or risen == 0:
        return ""
    return (
        f"The held-out loss was lowest, {format_number(best)}, at step {best_step:.0f}; "
        "the steps after it did not help on unseen data."
    )


def _held_out_accuracy(run: RunFolder) -> str:
    change = ends(run.values(HELD_OUT + ACCURACY))
    if change is None:
        return ""
    return _moved("The share of held-out examples that are ranked rightly", change, format_share)


def _both_fell(run: RunFolder) -> str:
    """Falling likelihood of chosen completions, from held-out records if they were measured.

    Held-out evaluations score the same records each time, so no change of records blurs them.
    """
    for prefix, change_of in ((HELD_OUT, ends), ("", tenths)):
        chosen = change_of(run.values(prefix + _CHOSEN))
        rejected = change_of(run.values(prefix + _REJECTED))
        if chosen is None or rejected is None:
            continue
        falls = [change.last - change.first for change in (chosen, rejected)]
        if not all(fall < 0 for fall in falls) or chosen.is_noise or rejected.is_noise:
            return ""
        data = "held-out" if prefix else "training"
        return (
            f"Both chosen and rejected {data} completions became less probable (by "
            f"{format_number(-falls[0])} and {format_number(-falls[1])} nats on average): "
            "probability moved to completions that are in neither column of the data, which a loss "
            "of the difference between the two does not prevent."
        )
    return ""


def _moved(subject: str, change: Change, written: Callable[[float], str]) -> str:
    first, last = written(change.first), written(change.last)
    if first == last:
        return f"{subject} stayed at {first} ({change.first_steps} to {change.last_steps})."
    verb = "rose" if change.last > change.first else "fell"
    return f"{subject} {verb} from {first} ({change.first_steps}) to {last} ({change.last_steps})."


def _variance(values: Iterable[float]) -> float:
    numbers = list(values)
    mean = math.fsum(numbers) / len(numbers)
    return math.fsum((value - mean) ** 2 for value in numbers) / (len(numbers) - 1)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
