"""Every theorem of the laboratory, listed by hand."""

from veritune.laboratory.theorem import Theorem
from veritune.laboratory.theorems import distribution_learning, policy_gradients

THEOREMS: tuple[Theorem, ...] = (
    *distribution_learning.THEOREMS,
    *policy_gradients.THEOREMS,
)
"""In the order of the families."""
