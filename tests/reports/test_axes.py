import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veritune.reports.axes import fit_scale, round_step


def labels(values, *, log=False):
    return [text for _, text in fit_scale(values, log=log, start=0, end=100).ticks()]


def test_a_linear_scale_puts_the_middle_in_the_middle():
    scale = fit_scale([2.0, 4.0], log=False, start=0, end=100)
    assert scale.pixel(3.0) == pytest.approx(50)
    # Five hundredths of the span are left free: (2 - 1.9) / 2.2 of 100 pixels.
    assert scale.pixel(2.0) == pytest.approx(100 * 0.1 / 2.2)


def test_a_logarithmic_scale_puts_the_geometric_mean_in_the_middle():
    scale = fit_scale([1e-4, 1.0], log=True, start=100, end=0)
    assert scale.pixel(1e-2) == pytest.approx(50)
    assert scale.pixel(1e-4) > scale.pixel(1.0)


def test_a_logarithmic_scale_ignores_zero_and_negative_values():
    scale = fit_scale([0.0, -3.0, 1e-2, 1.0], log=True, start=0, end=100)
    assert not scale.shows(0.0)
    assert not scale.shows(-3.0)
    assert scale.low == pytest.approx(-2.1)


def test_a_scale_ignores_what_is_not_finite():
    scale = fit_scale([math.nan, math.inf, -math.inf, 0.0, 1.0], log=False, start=0, end=100)
    assert (scale.low, scale.high) == pytest.approx((-0.05, 1.05))


@pytest.mark.parametrize("span", [1.0, 1.5, 3.0, 7.0, 9.9, 0.0123, 4.2e8])
def test_steps_are_one_two_or_five_times_a_power_of_ten(span):
    step = round_step(span, 5)
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - round_one) for round_one in (1, 2, 5)) < 1e-6
    assert 2 <= span / step <= 5 + 1e-6


def test_ticks_are_round():
    assert labels([0.0, 1.0]) == ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert labels([-1.0, 1.0]) == ["−1.0", "−0.5", "0", "0.5", "1.0"]


def test_logarithmic_ticks_are_powers_of_ten_over_decades():
    assert labels([1e-3, 1.0], log=True) == ["0.001", "0.01", "0.1", "1"]


def test_logarithmic_ticks_leave_decades_out_when_there_are_many():
    shown = labels([1e-20, 1.0], log=True)
    assert shown == ["1e-20", "1e-16", "1e-12", "1e-8", "1e-4", "1"]


def test_logarithmic_ticks_of_a_narrow_range_are_still_there():
    assert labels([0.1, 1.0], log=True) == ["0.1", "0.2", "0.5", "1"]
    assert len(labels([1.1, 1.3], log=True)) >= 2


def test_one_value_gets_a_range_around_it():
    for log in (False, True):
        scale = fit_scale([0.7], log=log, start=0, end=100)
        assert scale.pixel(0.7) == pytest.approx(50)
    assert fit_scale([0.0], log=False, start=0, end=100).pixel(0.0) == pytest.approx(50)


def test_no_value_gives_a_scale_that_works():
    assert len(labels([])) >= 2
    assert len(labels([math.nan], log=True)) >= 2


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=6), st.booleans())
def test_every_scale_has_few_ticks_within_it_and_places_its_values_there(values, log):
    scale = fit_scale(values, log=log, start=0, end=100)
    ticks = scale.ticks()
    assert len(ticks) <= 12
    assert all(-1e-3 <= at <= 100 + 1e-3 for at, _ in ticks)
    assert all(-1e-3 <= scale.pixel(v) <= 100 + 1e-3 for v in values if scale.shows(v))
