import dataclasses
from math import exp, inf, log

import pytest
import torch

from veritune.laboratory.distances import total_variation
from veritune.laboratory.minimize import minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import mixture_problem
from veritune.objectives.unpaired.ddro import ddro_loss, ddro_optimum


def with_log_ratio(labels, log_ratio):
    policy = (labels.completion.reference + log_ratio).requires_grad_()
    return dataclasses.replace(
        labels, completion=dataclasses.replace(labels.completion, policy=policy)
    )


def test_ddro_loss_and_its_derivatives_are_the_known_numbers(labels):
    mean = ddro_loss(labels, t=0.3).mean()
    mean.backward()

    undesirable = 0.3 * exp(-0.5)
    assert mean.item() == pytest.approx(-0.3 * log(0.3 * exp(1.0)) - 0.7 * log(1 - undesirable))
    assert mean.item() == pytest.approx(0.201782, abs=5e-7)
    d_chosen, d_rejected = labels.completion.policy.grad.tolist()
    assert d_chosen == pytest.approx(-0.3)
    assert d_rejected == pytest.approx(0.7 * undesirable / (1 - undesirable))
    assert d_rejected == pytest.approx(0.155703, abs=1e-6)


@pytest.mark.parametrize(
    ("ratio", "force"), [(1.0, 1), (1.5, 3), (1.9, 19), (1.99, 199), (1.999, 1999)]
)
def test_ddro_force_on_an_undesirable_completion_diverges_at_the_end_of_the_domain(
    labels, ratio, force
):
    near = with_log_ratio(labels, log(ratio))

    ddro_loss(near, t=0.5).mean().backward()

    assert near.completion.policy.grad[1].item() == pytest.approx(0.5 * force, rel=1e-9)


def test_ddro_loss_is_infinite_and_not_nan_beyond_the_domain(labels):
    beyond = with_log_ratio(labels, log(1 / 0.5) + 0.01)

    loss = ddro_loss(beyond, t=0.5)
    loss.sum().backward()

    assert loss[1].item() == inf
    assert torch.isfinite(loss[0])
    assert not torch.isnan(beyond.completion.policy.grad).any()


@pytest.mark.parametrize("t", [0.3, 0.5])
def test_ddro_minimizer_is_the_law_of_desirable_completions(t):
    problem = mixture_problem(num_completions=8, seed=0, desirable_fraction=t)

    found = minimize(population_loss(ddro_loss, problem, t=t), problem.reference)

    assert found.gradient_norm < 1e-9
    assert total_variation(found.policy, ddro_optimum(problem, t=t)) < 1e-6


def test_ddro_minimizer_is_another_law_if_t_is_not_the_fraction_of_the_mixture():
    problem = mixture_problem(num_completions=8, seed=0, desirable_fraction=0.3)

    found = minimize(population_loss(ddro_loss, problem, t=0.2), problem.reference)

    assert found.gradient_norm < 1e-9
    assert total_variation(found.policy, problem.desirable) > 1e-2
