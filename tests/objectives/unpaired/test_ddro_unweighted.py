import dataclasses
from math import exp, inf, log

import pytest
import torch

from veritune.laboratory.distances import total_variation
from veritune.laboratory.minimize import minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import mixture_problem
from veritune.objectives.unpaired.ddro import ddro_loss
from veritune.objectives.unpaired.ddro_unweighted import (
    ddro_unweighted_loss,
    ddro_unweighted_optimum,
)


def with_log_ratio(labels, log_ratio):
    policy = (labels.completion.reference + log_ratio).requires_grad_()
    return dataclasses.replace(
        labels, completion=dataclasses.replace(labels.completion, policy=policy)
    )


def test_ddro_unweighted_loss_and_its_derivatives_are_those_of_the_formula(labels):
    mean = ddro_unweighted_loss(labels, t=0.3).mean()
    mean.backward()

    chosen = 0.7 * exp(1.0) / (1 - 0.3 * exp(1.0))
    rejected = 0.7 * exp(-0.5) / (1 - 0.3 * exp(-0.5))
    assert mean.item() == pytest.approx(log(1 + 1 / chosen) + log(1 + rejected))
    d_chosen, d_rejected = labels.completion.policy.grad.tolist()
    # 1 + 1/R = (1 + (1 - 2t) rho) / ((1 - t) rho), and 1 + R = (1 + (1 - 2t) rho) / (1 - t rho).
    assert d_chosen == pytest.approx(-1 / (1 + 0.4 * exp(1.0)))
    assert d_rejected == pytest.approx(
        0.4 * exp(-0.5) / (1 + 0.4 * exp(-0.5)) + 0.3 * exp(-0.5) / (1 - 0.3 * exp(-0.5))
    )


def test_ddro_unweighted_is_twice_ddro_where_both_labels_are_as_frequent(labels):
    for log_ratio in (-3.0, 0.0, 0.6):
        near = with_log_ratio(labels, log_ratio)
        assert torch.allclose(ddro_unweighted_loss(near, t=0.5), 2 * ddro_loss(near, t=0.5))
        assert not torch.allclose(ddro_unweighted_loss(near, t=0.4), 2 * ddro_loss(near, t=0.4))


def test_ddro_unweighted_loss_beyond_the_domain_is_its_limit_without_gradient(labels):
    beyond = with_log_ratio(labels, log(1 / 0.3) + 0.01)
    near = with_log_ratio(labels, log(1 / 0.3) - 1e-9)

    loss = ddro_unweighted_loss(beyond, t=0.3)
    loss.sum().backward()

    assert loss.tolist() == [0.0, inf]
    assert beyond.completion.policy.grad.tolist() == [0.0, 0.0]
    assert ddro_unweighted_loss(near, t=0.3)[0].item() == pytest.approx(0, abs=1e-8)
    assert ddro_unweighted_loss(near, t=0.3)[1].item() > 2 * 15


@pytest.mark.parametrize("t", [0.3, 0.5, 0.8])
def test_ddro_unweighted_minimizer_is_the_law_of_desirable_completions(t):
    problem = mixture_problem(num_completions=8, seed=0, desirable_fraction=t)

    found = minimize(population_loss(ddro_unweighted_loss, problem, t=t), problem.reference)

    assert found.gradient_norm < 1e-9
    assert found.smallest_curvature > 0
    assert total_variation(found.policy, ddro_unweighted_optimum(problem, t=t)) < 1e-6


def test_ddro_unweighted_minimizer_is_another_law_if_t_is_not_the_fraction_of_the_mixture():
    problem = mixture_problem(num_completions=8, seed=0, desirable_fraction=0.3)

    found = minimize(population_loss(ddro_unweighted_loss, problem, t=0.2), problem.reference)

    assert found.gradient_norm < 1e-9
    assert total_variation(found.policy, problem.desirable) > 1e-2
