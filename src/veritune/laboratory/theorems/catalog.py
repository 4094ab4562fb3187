"""Every theorem of the laboratory, listed by hand."""

from veritune.laboratory.theorem import Theorem
from veritune.laboratory.theorems import (
    density_ratio,
    density_ratio_bounds,
    density_ratio_rates,
    distribution_learning,
    exact_optimization,
    mode_seeking,
    pair_forces,
    paired_optima,
    policy_gradients,
)

THEOREMS: tuple[Theorem, ...] = (
    *density_ratio.THEOREMS,
    *density_ratio_bounds.THEOREMS,
    *density_ratio_rates.THEOREMS,
    *exact_optimization.THEOREMS,
    *mode_seeking.THEOREMS,
    *pair_forces.THEOREMS,
    *distribution_learning.THEOREMS,
    *paired_optima.THEOREMS,
    *policy_gradients.THEOREMS,
)
"""In the order of the families; each is known by its name."""
