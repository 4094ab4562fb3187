from math import inf, log

import pytest
import torch

from veritune.laboratory.distances import kl, total_variation

FAIR = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).log()
SKEWED = torch.tensor([0.2, 0.6, 0.2], dtype=torch.float64).log()


def test_total_variation_is_half_the_sum_of_differences():
    assert total_variation(FAIR, SKEWED) == pytest.approx((0.3 + 0.1 + 0.2) / 2)


def test_kl_is_the_mean_log_ratio_under_the_first_law():
    assert kl(FAIR, SKEWED) == pytest.approx(0.5 * log(0.5 / 0.2) + 0.5 * log(0.5 / 0.6))


def test_kl_is_infinite_where_the_second_law_lacks_what_the_first_has():
    assert kl(SKEWED, FAIR) == inf


def test_a_law_has_no_distance_from_itself():
    assert kl(FAIR, FAIR) == 0
    assert total_variation(FAIR, FAIR) == 0
