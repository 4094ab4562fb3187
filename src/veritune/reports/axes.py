"""Where values lie on a chart: scales, linear or logarithmic, and their round ticks."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from veritune.reports.numbers import format_number, format_power_of_ten, format_tick

_LARGEST = 1e300
_MARGIN = 0.05
_NUM_TICKS = 7
_MAX_DECADE_TICKS = 7


@dataclass(frozen=True)
class Axis:
    """What an axis says, and how it counts."""

    label: str
    """The quantity, with its unit in parentheses if it has one: "KL (nats)"."""

    log: bool = False
    """Whether equal distances are equal factors; values of zero and below are not drawn then."""

    include: tuple[float, ...] = ()
    """Values that the axis reaches, whatever the data."""


@dataclass(frozen=True)
class Scale:
    """The map from values to pixels along one axis.

    `low` and `high` are base-10 logarithms where the axis is logarithmic.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool

    def shows(self, value: float) -> bool:
        """Whether the value has a place on this axis."""
        return is_drawable(value, log=self.log)

    def pixel(self, value: float) -> float:
        """Where a value that is shown lies."""
        place = math.log10(value) if self.log else value
        return self.start + (self.end - self.start) * (place - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Pixel and label of every tick, all within the axis."""
        return self._log_ticks() if self.log else self._linear_ticks()

    def _linear_ticks(self) -> list[tuple[float, str]]:
        step = round_step(self.high - self.low, _NUM_TICKS)
        return [
            (self.pixel(count * step), format_tick(count * step, step))
            for count in _counts(self.low, self.high, step)
        ]

    def _log_ticks(self) -> list[tuple[float, str]]:
        exponents = range(math.ceil(self.low), math.floor(self.high) + 1)
        if len(exponents) >= 3:
            stride = math.ceil(len(exponents) / _MAX_DECADE_TICKS)
            return [
                (self._pixel_of_log(exponent), format_power_of_ten(exponent))
                for exponent in exponents
                if exponent % stride == 0
            ]
        below, above = math.floor(self.low), math.ceil(self.high)
        values = [10.0**e * factor for e in range(below, above + 1) for factor in (1, 2, 5)]
        shown = [value for value in values if value > 0 and self._holds(value)]
        if len(shown) < 2:
            # Less than a factor of five: the ticks of a linear axis are the round ones.
            low, high = 10.0**self.low, 10.0**self.high
            step = round_step(high - low, _NUM_TICKS)
            shown = [count * step for count in _counts(low, high, step)]
            return [(self.pixel(value), format_tick(value, step)) for value in shown if value > 0]
        return [(self.pixel(value), format_number(value, 1)) for value in shown]

    def _holds(self, value: float) -> bool:
        return self.low <= math.log10(value) <= self.high

    def _pixel_of_log(self, place: float) -> float:
        return self.start + (self.end - self.start) * (place - self.low) / (self.high - self.low)


def is_drawable(value: float, *, log: bool) -> bool:
    """Whether a value can be placed: finite and, on a logarithmic axis, above zero."""
    return math.isfinite(value) and abs(value) < _LARGEST and (not log or value > 0)


def fit_scale(
    values: Iterable[float], *, log: bool, start: float, end: float, margin: bool = True
) -> Scale:
    """A scale that holds all values that can be drawn; from 0 to 1, or 1 to 10, if there are none.

    Args:
        values: Whatever the axis is to reach.
        log: Whether the axis is logarithmic.
        start: Pixel of the lowest value.
        end: Pixel of the highest value; below `start` for an axis that points up.
        margin: Whether a little room is left beyond the outermost values.
    """
    places = [math.log10(v) if log else float(v) for v in values if is_drawable(v, log=log)]
    low, high = (min(places), max(places)) if places else (0.0, 1.0)
    span = high - low
    if span <= 1e-9 * max(abs(low), abs(high)):
        half = 0.5 if log else (abs(low) / 10 or 1.0)
        low, high = low - half, high + half
    elif margin:
        low, high = low - _MARGIN * span, high + _MARGIN * span
    return Scale(low, high, start, end, log)


def round_step(span: float, num_ticks: int) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that cuts the span into so many parts."""
    rough = span / num_ticks
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _counts(low: float, high: float, step: float) -> Sequence[int]:
    return range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
