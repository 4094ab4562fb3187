import dataclasses
from math import exp, inf, log

import pytest

from veritune.laboratory.distances import total_variation
from veritune.laboratory.minimize import minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import mixture_problem
from veritune.objectives.unpaired.ddro_lsif import ddro_lsif_loss, ddro_lsif_optimum


def with_log_ratio(labels, log_ratio):
    policy = (labels.completion.reference + log_ratio).requires_grad_()
    return dataclasses.replace(
        labels, completion=dataclasses.replace(labels.completion, policy=policy)
    )


def test_ddro_lsif_loss_and_its_derivatives_are_those_of_the_formula(labels):
    mean = ddro_lsif_loss(labels, t=0.3).mean()
    mean.backward()

    chosen = 0.7 * exp(1.0) / (1 - 0.3 * exp(1.0))
    rejected = 0.7 * exp(-0.5) / (1 - 0.3 * exp(-0.5))
    assert mean.item() == pytest.approx(-chosen + rejected**2 / 2)
    d_chosen, d_rejected = labels.completion.policy.grad.tolist()
    # The derivative of log R is 1 / (1 - t rho).
    assert d_chosen == pytest.approx(-chosen / (1 - 0.3 * exp(1.0)))
    assert d_rejected == pytest.approx(rejected**2 / (1 - 0.3 * exp(-0.5)))


def test_ddro_lsif_of_desirable_completions_falls_without_bound_toward_the_end(labels):
    end = log(1 / 0.5)
    losses = [
        ddro_lsif_loss(with_log_ratio(labels, end - gap), t=0.5)[0].item() / 2
        for gap in (1e-2, 1e-4, 1e-6)
    ]

    # R is about 1 / gap at t = 1/2.
    assert losses == pytest.approx([-1e2, -1e4, -1e6], rel=2e-2)


def test_ddro_lsif_loss_beyond_the_domain_is_infinite_for_either_label(labels):
    beyond = with_log_ratio(labels, log(1 / 0.5) + 0.01)

    loss = ddro_lsif_loss(beyond, t=0.5)
    loss.sum().backward()

    assert loss.tolist() == [inf, inf]
    assert beyond.completion.policy.grad.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("t", [0.3, 0.5, 0.8])
def test_ddro_lsif_minimizer_is_the_law_of_desirable_completions(t):
    problem = mixture_problem(num_completions=8, seed=0, desirable_fraction=t)

    found = minimize(population_loss(ddro_lsif_loss, problem, t=t), problem.reference)

    assert found.gradient_norm < 1e-9
    assert found.smallest_curvature > 0
    assert total_variation(found.policy, ddro_lsif_optimum(problem, t=t)) < 1e-6


def test_ddro_lsif_minimizer_is_another_law_if_t_is_not_the_fraction_of_the_mixture():
    problem = mixture_problem(num_completions=8, seed=0, desirable_fraction=0.3)

    found = minimize(population_loss(ddro_lsif_loss, problem, t=0.2), problem.reference)

    assert found.gradient_norm < 1e-9
    assert total_variation(found.policy, problem.desirable) > 1e-2
