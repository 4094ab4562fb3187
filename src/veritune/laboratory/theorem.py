"""Theorem: a claim of a paper, a number that it says is zero, and a false claim beside it."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

CONTROL_MARGIN = 10.0
"""How many tolerances the control must be away from zero."""


@dataclass(frozen=True)
class Curve:
    """One named line of a plot."""

    name: str
    points: tuple[tuple[float, float], ...]
    style: Literal["plain", "marked", "guide"] = "plain"
    """`marked`: a dot at every point. `guide`: what the others are held against."""


@dataclass(frozen=True)
class Plot:
    """What a check measured, as numbers; the report draws it."""

    title: str
    x: str
    y: str
    curves: tuple[Curve, ...]
    log_x: bool = False
    log_y: bool = False
    note: str = ""
    """What to see in it, in a sentence."""


@dataclass(frozen=True)
class Evidence:
    """What one check of a theorem found."""

    residual: float
    """The number that the claim says is zero, or at most zero."""

    control: float
    """The same number for a neighboring claim that is false."""

    detail: str = ""
    """What was measured, in words and numbers."""

    plots: tuple[Plot, ...] = ()


@dataclass(frozen=True)
class Theorem:
    """A claim that can be checked here and now.

    It holds when the residual is within the tolerance and the control far beyond it: a check that
    could not fail would prove nothing.
    """

    name: str
    """A few words with underscores, for the command line."""

    claim: str
    """A sentence that is true."""

    control: str
    """A sentence beside it that is false."""

    source: str
    """Who claims it: authors, year, identifier; or that it is derived here."""

    methods: tuple[str, ...]
    """Names of the objectives and algorithms that the claim is about."""

    contrasts: tuple[str, ...] = field(default=(), kw_only=True)
    """Names of those that the false claim alone is about: what the claim is held against.

    A theorem says nothing true of them, so they are not counted as having one.
    """

    tolerance: float
    """Largest residual, in the residual's unit. Numerical error for what is exact; sampling error
    for what is drawn."""

    check: Callable[[], Evidence]
    """Measures both residuals; deterministic."""


@dataclass(frozen=True)
class Result:
    """A theorem and what its check found."""

    theorem: Theorem
    evidence: Evidence
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether the claim stands and the check has shown that it could fail."""
        return self.is_within_tolerance and self.is_control_rejected

    @property
    def is_within_tolerance(self) -> bool:
        """Whether the residual is as small as the claim says."""
        # A comparison with nan is False, as it should be.
        return self.evidence.residual <= self.theorem.tolerance

    @property
    def is_control_rejected(self) -> bool:
        """Whether the false claim was found out."""
        return self.evidence.control > CONTROL_MARGIN * self.theorem.tolerance

    @property
    def verdict(self) -> str:
        """One word for a table: holds, fails, or blind where the control passed, too."""
        if not self.is_within_tolerance:
            return "fails"
        return "holds" if self.is_control_rejected else "blind"


def run_check(theorem: Theorem) -> Result:
    """Check a theorem and time it."""
    began = time.perf_counter()
    evidence = theorem.check()
    assert not math.isnan(evidence.control), f"{theorem.name}: a control is a number"
    return Result(theorem, evidence, time.perf_counter() - began)
