"""The largest of many residuals and the smallest of many controls, where nan is not overlooked.

`max` and `min` of Python skip a nan that does not come first; a check that lost its numbers would
pass.
"""

import math
from collections.abc import Iterable


def largest_residual(values: Iterable[float]) -> float:
    """The largest value; infinite if one is no number, which fails any claim."""
    return max(math.inf if math.isnan(value) else value for value in values)


def smallest_control(values: Iterable[float]) -> float:
    """The smallest value; minus infinity if one is no number, which shows any check as blind."""
    return min(-math.inf if math.isnan(value) else value for value in values)
