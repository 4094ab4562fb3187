"""Every theorem of the laboratory, listed by hand."""

from veritune.laboratory.theorem import Theorem
from veritune.laboratory.theorems import policy_gradients

THEOREMS: tuple[Theorem, ...] = (*policy_gradients.THEOREMS,)
"""In the order of the families."""
