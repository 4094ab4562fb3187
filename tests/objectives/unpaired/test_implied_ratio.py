from math import log

import pytest
import torch

from veritune.laboratory.problems import mixture_problem
from veritune.objectives.unpaired.implied_ratio import implied_ratio


def test_the_implied_ratio_is_that_of_the_two_laws_where_the_reference_is_their_mixture():
    problem = mixture_problem(num_completions=6, seed=2, desirable_fraction=0.3)

    ratio = implied_ratio(problem.desirable - problem.reference, t=0.3)

    assert ratio.is_defined.all()
    assert torch.allclose(ratio.log, problem.desirable - problem.undesirable)
    elsewhere = implied_ratio(problem.desirable - problem.reference, t=0.2)
    assert not torch.allclose(elsewhere.log, problem.desirable - problem.undesirable, atol=1e-2)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_implied_ratio_ends_where_the_policy_takes_all_that_the_reference_has(t):
    end = log(1 / t)
    places = torch.tensor([end - 1e-6, end + 1e-6, 1e4], dtype=torch.float64)

    ratio = implied_ratio(places, t=t)

    assert ratio.is_defined.tolist() == [True, False, False]
    assert ratio.log[0].item() == pytest.approx(log((1 - t) / t) - log(1e-6), abs=1e-5)
    assert torch.isfinite(ratio.log).all()


def test_the_implied_ratio_sends_no_gradient_beyond_its_end():
    log_ratio = torch.tensor([0.3, 5.0], requires_grad=True)

    implied_ratio(log_ratio, t=0.5).log.sum().backward()

    assert log_ratio.grad[0] > 1
    assert log_ratio.grad[1] == 0
