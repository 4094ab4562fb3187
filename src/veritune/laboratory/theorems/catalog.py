"""Every theorem of the laboratory, listed by hand."""

from veritune.laboratory.theorem import Theorem
from veritune.laboratory.theorems import (
    adaptive_scale,
    decision_process_optima,
    density_ratio,
    density_ratio_bounds,
    density_ratio_rates,
    distribution_learning,
    dpo_relatives,
    exact_optimization,
    extrapolation,
    initial_losses,
    likelihood_anchors,
    mode_seeking,
    optimistic_exploration,
    pair_forces,
    paired_optima,
    policy_gradients,
    rejection_sampling,
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
    *dpo_relatives.THEOREMS,
    *adaptive_scale.THEOREMS,
    *likelihood_anchors.THEOREMS,
    *policy_gradients.THEOREMS,
    *rejection_sampling.THEOREMS,
    *extrapolation.THEOREMS,
    *decision_process_optima.THEOREMS,
    *optimistic_exploration.THEOREMS,
    *initial_losses.THEOREMS,
)
"""In the order of the families; each is known by its name."""
