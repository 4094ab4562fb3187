import math

import pytest

from veritune.reports.numbers import (
    format_count,
    format_number,
    format_power_of_ten,
    format_seconds,
    format_share,
    format_tick,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.69314718, "0.693"),
        (0.5, "0.500"),
        (12345.6, "12,346"),
        (5e-7, "5e-7"),
        (1.25e-7, "1.25e-7"),
        (-1.5, "−1.50"),
        (3, "3"),
        (0.0, "0"),
        (-0.0, "0"),
        (2.5e12, "2.5e12"),
        (math.nan, "–"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
    ],
)
def test_numbers_keep_three_significant_digits_and_their_whole_part(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.714, "71%"), (0.996, "99.6%"), (0.0123, "1.2%"), (-0.2, "−20%"), (1.0, "100%"), (0, "0%")],
)
def test_shares_show_a_decimal_near_their_ends(value, text):
    assert format_share(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.4234, "0.42 s"),
        (12.3, "12 s"),
        (59.7, "1 min 0 s"),
        (250, "4 min 10 s"),
        (7500, "2 h 5 min"),
        (86400 * 3 + 3600 * 4, "3 d 4 h"),
        (math.nan, "–"),
    ],
)
def test_durations_are_in_two_units_at_most(value, text):
    assert format_seconds(value) == text


def test_counts_have_separators_and_survive_infinity():
    assert format_count(1204000) == "1,204,000"
    assert format_count(math.inf) == "–"


@pytest.mark.parametrize(
    ("value", "step", "text"),
    [
        (0.6000000000000001, 0.2, "0.6"),
        (1.0, 0.2, "1.0"),
        (1e-17, 0.2, "0"),
        (-0.05, 0.05, "−0.05"),
        (3e-7, 1e-7, "3e-7"),
        (1500.0, 500.0, "1,500"),
        (1.5e6, 5e5, "1,500,000"),
        (1.5e9, 5e8, "1.5e9"),
    ],
)
def test_ticks_have_the_decimals_of_their_distance(value, step, text):
    assert format_tick(value, step) == text


def test_powers_of_ten_are_written_out_while_they_are_short():
    written = [format_power_of_ten(exponent) for exponent in (-7, -2, 0, 3, 6)]
    assert written == ["1e-7", "0.01", "1", "1,000", "1e6"]
