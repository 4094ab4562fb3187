"""Rates of convergence: slopes on log-log axes, with their confidence."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Slope:
    """Exponent of a power law, fitted to measurements."""

    value: float
    low: float
    """Lower end of the 95 % confidence interval."""

    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def fitted_slope(sizes: Sequence[float], values: Sequence[Sequence[float]]) -> Slope:
    """The exponent `b` of `value ~ size^b`, by least squares on logarithms.

    Args:
        sizes: At least three, positive.
        values: For each size, independent measurements, all positive; the interval is from their
            scatter around the line, so it covers lack of fit as well as noise.

    Returns:
        The slope with its 95 % interval, normal approximation.
    """
    points = [
        (math.log(size), math.log(value))
        for size, measured in zip(sizes, values, strict=True)
        for value in measured
    ]
    count = len(points)
    assert len(sizes) >= 3, "a slope with an interval takes at least three sizes"
    mean_x = math.fsum(x for x, _ in points) / count
    mean_y = math.fsum(y for _, y in points) / count
    spread = math.fsum((x - mean_x) ** 2 for x, _ in points)
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    residuals = math.fsum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    error = math.sqrt(residuals / (count - 2) / spread)
    return Slope(slope, slope - 1.96 * error, slope + 1.96 * error)
