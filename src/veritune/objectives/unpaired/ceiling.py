"""The ceiling of the relative density ratio, and where a loss may go straight on above it."""

import math

TANGENT_ABOVE_CEILING = 1.0
"""Nats above the ceiling at which tangent lines begin."""


def tangent_place(alpha: float) -> float:
    """The log-ratio, in nats, from which a loss may be continued by its tangent line.

    The target ratio `p+ / (alpha p+ + (1 - alpha) p-)` never exceeds 1 / alpha. One nat above
    that ceiling every completion is already pushed down, toward the target, so a continuation that
    keeps the slope moves no minimizer and adds none where the reference is the mixture.

    Args:
        alpha: Share of desirable completions in the mixture, strictly between 0 and 1.
    """
    return TANGENT_ABOVE_CEILING - math.log(alpha)
