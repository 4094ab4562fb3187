import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veritune.training.optimizer import OptimizerConfig, learning_rate_at


def rates(total: int, schedule: str, warmup: float) -> list[float]:
    config = OptimizerConfig(learning_rate=1.0, schedule=schedule, warmup_fraction=warmup)
    return [learning_rate_at(step, total, config) for step in range(1, total + 1)]


def test_a_linear_schedule_rises_to_the_top_and_falls_on_a_line() -> None:
    # Two steps of warm-up, then eight steps; the ninth would be at zero.
    assert rates(10, "linear", 0.2) == pytest.approx(
        [1 / 2, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    )


def test_a_cosine_schedule_falls_on_half_a_cosine() -> None:
    assert rates(5, "cosine", 0.2) == pytest.approx(
        [1, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    )


def test_a_constant_schedule_stays_at_the_top_behind_its_warm_up() -> None:
    assert rates(6, "constant", 0.5) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])


def test_without_warm_up_the_first_step_is_at_the_top() -> None:
    assert rates(4, "linear", 0) == pytest.approx([1, 3 / 4, 2 / 4, 1 / 4])


def test_warm_up_alone_ends_at_the_top() -> None:
    assert rates(4, "cosine", 1) == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_a_run_of_one_step_makes_it_at_the_full_rate(schedule: str) -> None:
    assert rates(1, schedule, 0.1) == [1]


@given(
    total=st.integers(1, 300),
    warmup=st.floats(0, 1),
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
)
def test_every_step_has_a_rate_above_zero_and_at_most_the_top(
    total: int, warmup: float, schedule: str
) -> None:
    found = rates(total, schedule, warmup)
    assert all(0 < rate <= 1 for rate in found)
    top = found.index(max(found))
    assert found[: top + 1] == sorted(found[: top + 1])
    assert found[top:] == sorted(found[top:], reverse=True)
