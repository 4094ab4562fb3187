"""Two completions that are compared."""

from collections.abc import Callable

import pytest
import torch

from veritune.laboratory.problems import independent_pairs
from veritune.objectives.optimum import FiniteProblem


@pytest.fixture
def one_comparison() -> Callable[[float], FiniteProblem]:
    def make(win_probability: float) -> FiniteProblem:
        reference = torch.tensor([0.3, 0.7], dtype=torch.float64).log()
        return FiniteProblem(
            reference=reference,
            preferences=torch.tensor(
                [[0.5, win_probability], [1 - win_probability, 0.5]], dtype=torch.float64
            ),
            pair_law=independent_pairs(reference),
        )

    return make
