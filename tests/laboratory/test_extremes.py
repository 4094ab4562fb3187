from math import inf, nan

from veritune.laboratory.extremes import largest_residual, smallest_control


def test_the_extremes_of_numbers_are_the_largest_and_the_smallest():
    assert largest_residual([0.1, 0.3, -2.0]) == 0.3
    assert smallest_control([0.1, 0.3, -2.0]) == -2.0


def test_a_residual_that_is_no_number_counts_as_infinite():
    assert largest_residual([0.1, nan]) == inf
    assert largest_residual([nan, 0.1]) == inf


def test_a_control_that_is_no_number_rejects_nothing():
    assert smallest_control([5.0, nan]) == -inf
    assert smallest_control([nan, 5.0]) == -inf
