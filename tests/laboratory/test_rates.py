import pytest
import torch

from veritune.laboratory.rates import fitted_slope


def test_the_exponent_of_a_power_law_is_found_exactly():
    sizes = [10, 100, 1000]

    slope = fitted_slope(sizes, [[5 * size**-0.5] for size in sizes])

    assert slope.value == pytest.approx(-0.5)
    assert slope.low == pytest.approx(-0.5, abs=1e-6)
    assert slope.high == pytest.approx(-0.5, abs=1e-6)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    sizes = [10.0, 30.0, 100.0, 300.0]
    covered = 0
    for _ in range(200):
        noise = torch.randn(4, 10, generator=generator).mul(0.3).exp().tolist()
        measured = [[size**-1.0 * n for n in row] for size, row in zip(sizes, noise, strict=True)]
        slope = fitted_slope(sizes, measured)
        covered += slope.low <= -1 <= slope.high
    assert 180 <= covered <= 198
