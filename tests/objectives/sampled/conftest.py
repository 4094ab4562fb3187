"""The expected gradient on fresh samples, exact, and that of RLHF's objective."""

from collections.abc import Callable

import pytest
from torch import Tensor

from veritune.laboratory import fresh_samples


@pytest.fixture
def fresh_gradient() -> Callable[..., Tensor]:
    return fresh_samples.fresh_gradient


@pytest.fixture
def rlhf_gradient() -> Callable[..., Tensor]:
    return fresh_samples.rlhf_gradient
