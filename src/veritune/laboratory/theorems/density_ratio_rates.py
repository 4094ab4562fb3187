"""Density ratios of labelled completions: measured rates of convergence.

Errors are measured as total variation and as KL(policy || p+). The other KL is infinite as soon as
a sample lacks a rare desirable completion.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from veritune.laboratory.distances import kl, total_variation
from veritune.laboratory.extremes import largest_residual, smallest_control
from veritune.laboratory.labels import class_laws
from veritune.laboratory.minimize_many import minimize_many
from veritune.laboratory.problems import disjoint_problem, mixture_problem, sampled_problem
from veritune.laboratory.rates import Slope, fitted_slope
from veritune.laboratory.theorem import Curve, Evidence, Plot, Theorem
from veritune.objectives.optimum import FiniteProblem
from veritune.objectives.unpaired.ddro import ddro_loss
from veritune.objectives.unpaired.ddro_stabilized import ddro_stabilized_loss
from veritune.objectives.unpaired.rdro import rdro_loss
from veritune.objectives.unpaired.rdro_pooled import rdro_pooled_loss
from veritune.seeds import stream

_METHODS: dict[str, tuple[Callable[..., Tensor], str]] = {
    "rdro": (rdro_loss, "alpha"),
    "rdro_pooled": (rdro_pooled_loss, "alpha"),
    "ddro": (ddro_loss, "t"),
    "ddro_stabilized": (ddro_stabilized_loss, "t"),
}
"""Each loss and the name of its share of desirable completions."""

_FRACTION = 0.39
_NUM_COMPLETIONS = 8
_LAWS_SEED = 297
"""Of laws without rare completions: each law gives every completion at least 0.05 where the laws
overlap, and 0.13 to each of its own where they hardly do. A completion that a sample lacks under
both labels would leave a choice of minimizers."""

_OVERLAP = 0.002
_SIZES = (100, 316, 1000, 3162, 10_000, 31_623, 100_000)
_NUM_SAMPLES = 200
_TAIL = 3
"""From this size on each label has shown most completions of the other, with little overlap."""


def _problem(*, overlaps: bool) -> FiniteProblem:
    if overlaps:
        return mixture_problem(_NUM_COMPLETIONS, _LAWS_SEED, desirable_fraction=_FRACTION)
    return disjoint_problem(
        _NUM_COMPLETIONS, _LAWS_SEED, desirable_fraction=_FRACTION, overlap=_OVERLAP
    )


@functools.cache
def _samples(num_examples: int, *, overlaps: bool) -> list[FiniteProblem]:
    problem = _problem(overlaps=overlaps)
    generator = stream(0, "laboratory", "density ratio rates", str(overlaps), num_examples)
    return [sampled_problem(problem, num_examples, generator) for _ in range(_NUM_SAMPLES)]


@dataclass(frozen=True)
class Errors:
    """Distances from the minimizers on many samples of one size to p+."""

    total_variations: list[float]
    divergences: list[float]
    """KL(policy || p+) in nats."""

    are_certified: bool
    """Whether every minimizer is."""

    @property
    def total_variation(self) -> float:
        """The mean over samples."""
        return math.fsum(self.total_variations) / len(self.total_variations)

    @property
    def divergence(self) -> float:
        """The mean over samples."""
        return math.fsum(self.divergences) / len(self.divergences)


@functools.cache
def errors(method: str, num_examples: int, *, overlaps: bool) -> Errors:
    """Errors of a method on 200 samples of n desirable and n undesirable completions.

    All methods see the same samples. The search starts at p+, which saves steps: from the reference
    it ends at the same policies.
    """
    loss, name = _METHODS[method]
    given: dict[str, Any] = {name: _FRACTION}
    truth = class_laws(_problem(overlaps=overlaps)).desirable
    found = minimize_many(loss, _samples(num_examples, overlaps=overlaps), truth, **given)
    return Errors(
        [total_variation(policy, truth) for policy in found.policies],
        [kl(policy, truth) for policy in found.policies],
        bool(found.are_certified.all()),
    )


def _slopes(method: str, sizes: Sequence[int], *, overlaps: bool) -> tuple[Slope, Slope]:
    """Exponents of total variation and of KL in the number of examples."""
    measured = [errors(method, size, overlaps=overlaps) for size in sizes]
    return (
        fitted_slope(sizes, [one.total_variations for one in measured]),
        fitted_slope(sizes, [one.divergences for one in measured]),
    )


def _all_certified(methods: Sequence[str], sizes: Sequence[int], *, overlaps: bool) -> bool:
    return all(
        errors(method, size, overlaps=overlaps).are_certified
        for method in methods
        for size in sizes
    )


def _rate_plots(methods: Sequence[str], *, overlaps: bool, note: str) -> tuple[Plot, Plot]:
    laws = "laws that overlap" if overlaps else f"laws that share {_OVERLAP}"
    distance_curves: list[Curve] = []
    divergence_curves: list[Curve] = []
    for method in methods:
        slopes = _slopes(method, _SIZES, overlaps=overlaps)
        measured = [errors(method, size, overlaps=overlaps) for size in _SIZES]
        for curves, slope, values in (
            (distance_curves, slopes[0], [one.total_variation for one in measured]),
            (divergence_curves, slopes[1], [one.divergence for one in measured]),
        ):
            points = tuple(zip(map(float, _SIZES), values, strict=True))
            curves.append(Curve(f"{method}: slope {slope}", points, "marked"))
    return (
        Plot(
            title=f"Error of the minimizer, {laws}",
            x="examples of each label",
            y="total variation to p+",
            curves=tuple(distance_curves),
            log_x=True,
            log_y=True,
            note=note,
        ),
        Plot(
            title=f"Divergence of the minimizer, {laws}",
            x="examples of each label",
            y="KL(policy || p+), nats",
            curves=tuple(divergence_curves),
            log_x=True,
            log_y=True,
            note=note,
        ),
    )


def rates_with_overlap() -> Evidence:
    """Fitted exponents of the errors of RDRO and DDRO, and of pooled RDRO, which keeps a bias."""
    methods = ("rdro", "ddro", "rdro_pooled")
    misses: dict[str, list[float]] = {}
    seen = []
    for method in methods:
        distance, divergence = _slopes(method, _SIZES, overlaps=True)
        misses[method] = [abs(distance.value + 0.5), abs(divergence.value + 1)]
        seen.append(f"{method} {distance} in TV and {divergence} in KL")
    certified = _all_certified(methods, _SIZES, overlaps=True)
    last = errors("rdro_pooled", _SIZES[-1], overlaps=True).total_variation
    note = (
        "RDRO and DDRO fall as n^(-1/2), the KL as 1/n; with one mean over all examples RDRO "
        "comes to rest at its bias."
    )
    return Evidence(
        largest_residual([*misses["rdro"], *misses["ddro"]]) if certified else math.inf,
        smallest_control(misses["rdro_pooled"]) if certified else 0.0,
        f"{_NUM_SAMPLES} samples at each of {len(_SIZES)} sizes from {_SIZES[0]} to {_SIZES[-1]}; "
        f"alpha = t = {_FRACTION}; Y = {_NUM_COMPLETIONS}; slopes with 95 % intervals: "
        f"{'; '.join(seen)}, whose TV is still {last:.3f} at the last size",
        _rate_plots(methods, overlaps=True, note=note),
    )


def rates_without_overlap() -> Evidence:
    """The largest of sqrt(n) * error over the smallest, for large n and with little overlap."""
    methods = ("rdro", "ddro", "ddro_stabilized")
    over_limit, seen = {}, []
    for method in methods:
        scaled = [
            math.sqrt(size) * errors(method, size, overlaps=False).total_variation
            for size in _SIZES
        ]
        # A method with a bias has no limit constant: its scaled error grows with n.
        over_limit[method] = max(scaled) / min(scaled[_TAIL:]) - 1
        distance, divergence = _slopes(method, _SIZES, overlaps=False)
        seen.append(
            f"{method} {', '.join(f'{value:.3f}' for value in scaled)} (slopes: TV {distance}, "
            f"KL {divergence})"
        )
    certified = _all_certified(methods, _SIZES, overlaps=False)
    note = (
        "RDRO never errs more than its limit constant / sqrt(n). DDRO does until the sample shows "
        "undesirable examples of every completion; stabilized, it keeps a bias."
    )
    return Evidence(
        over_limit["rdro"] if certified else math.inf,
        smallest_control([over_limit["ddro"], over_limit["ddro_stabilized"]]) if certified else 0.0,
        f"laws that share {_OVERLAP}; sqrt(n) * mean TV at n = "
        f"{', '.join(str(size) for size in _SIZES)}: {'; '.join(seen)}",
        _rate_plots(methods, overlaps=False, note=note),
    )


def tail_rate_without_overlap() -> Evidence:
    """RDRO's exponent where the laws hardly overlap, once each label has shown all completions."""
    sizes = _SIZES[_TAIL:]
    relative, direct = (_slopes(method, sizes, overlaps=False) for method in ("rdro", "ddro"))
    certified = _all_certified(("rdro", "ddro"), sizes, overlaps=False)
    return Evidence(
        abs(relative[0].value + 0.5) if certified else math.inf,
        abs(direct[0].value + 0.5) if certified else 0.0,
        f"laws that share {_OVERLAP}; n from {sizes[0]} to {sizes[-1]}: RDRO {relative[0]}; DDRO "
        f"{direct[0]}, still catching up. In KL, where a completion of probability below 1/n "
        f"counts, {relative[1]} and {direct[1]}",
    )


def errors_with_and_without_overlap() -> Evidence:
    """DDRO's mean error over RDRO's on the same samples, as a logarithm."""
    sizes = (200, 1000, 5000)
    last = 125_000
    logarithms: dict[bool, list[float]] = {True: [], False: []}
    seen = []
    for overlaps in (True, False):
        for size in (*sizes, last):
            relative, direct = (errors(m, size, overlaps=overlaps) for m in ("rdro", "ddro"))
            logarithms[overlaps].append(math.log(direct.total_variation / relative.total_variation))
            seen.append(
                f"{relative.total_variation:.4f} and {direct.total_variation:.4f} at {size}"
            )
    certified = all(
        _all_certified(("rdro", "ddro"), (*sizes, last), overlaps=overlaps)
        for overlaps in (True, False)
    )
    alike = [*logarithms[True], logarithms[False][-1]]
    count = len(sizes) + 1
    return Evidence(
        largest_residual(map(abs, alike)) if certified else math.inf,
        smallest_control(logarithms[False][:-1]) if certified else 0.0,
        f"mean TV of RDRO and DDRO, laws that overlap: {', '.join(seen[:count])}; laws that share "
        f"{_OVERLAP}: {', '.join(seen[count:])}",
    )


_RDRO = "Takahashi et al. 2026, arXiv:2604.04410"
_DDRO = "Higuchi and Suzuki 2025, arXiv:2505.07558"

THEOREMS = (
    Theorem(
        name="density_ratio_rates_with_overlap",
        claim="Where the laws overlap, the minimizers of RDRO and of DDRO converge to the law of "
        "desirable completions as n^(-1/2) in total variation and as 1/n in KL.",
        control="So does RDRO with one mean over all examples.",
        source=f"{_RDRO}; {_DDRO}; the exponents are the parametric ones, measured here",
        methods=("rdro", "ddro"),
        contrasts=("rdro_pooled",),
        tolerance=0.03,
        check=rates_with_overlap,
    ),
    Theorem(
        name="rdro_keeps_its_constant_without_overlap",
        claim="Where the laws hardly overlap, RDRO's error at every sample size is at most its "
        "limit constant times n^(-1/2).",
        control="DDRO's is, stabilized or not.",
        source=f"{_RDRO}; measured here",
        methods=("rdro",),
        contrasts=("ddro", "ddro_stabilized"),
        tolerance=0.15,
        check=rates_without_overlap,
    ),
    Theorem(
        name="rdro_rate_without_overlap",
        claim="Where the laws hardly overlap, RDRO converges as n^(-1/2) in total variation once "
        "a sample shows completions under the other label.",
        control="DDRO does, from the same sample size on.",
        source=f"{_RDRO}; measured here",
        methods=("rdro",),
        contrasts=("ddro",),
        tolerance=0.04,
        check=tail_rate_without_overlap,
    ),
    Theorem(
        name="ddro_errs_like_rdro_with_overlap",
        claim="DDRO and RDRO err alike where the laws overlap, and in large samples where they "
        "hardly do.",
        control="They err alike in small samples where the laws hardly overlap.",
        source=f"{_RDRO}; measured here",
        methods=("rdro", "ddro"),
        tolerance=0.15,
        check=errors_with_and_without_overlap,
    ),
)
