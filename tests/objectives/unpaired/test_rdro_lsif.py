import dataclasses
from math import exp, log

import pytest
import torch

from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import mixture_problem
from veritune.objectives.unpaired.rdro_lsif import rdro_lsif_loss


def loss_and_force(labels, log_ratio, *, alpha):
    """Loss and derivative of the desirable and the undesirable example, without class weights."""
    policy = (labels.completion.reference + log_ratio).requires_grad_()
    completion = dataclasses.replace(labels.completion, policy=policy)
    loss = rdro_lsif_loss(dataclasses.replace(labels, completion=completion), alpha=alpha)
    loss.sum().backward()
    return (loss / 2).tolist(), (policy.grad / 2).tolist()


def test_rdro_lsif_loss_and_its_derivatives_are_those_of_the_formula(labels):
    mean = rdro_lsif_loss(labels, alpha=0.39).mean()
    mean.backward()

    desirable = 0.5 * 0.39 * exp(1.0) ** 2 - exp(1.0)
    undesirable = 0.5 * 0.61 * exp(-0.5) ** 2
    assert mean.item() == pytest.approx(desirable + undesirable)
    d_chosen, d_rejected = labels.completion.policy.grad.tolist()
    assert d_chosen == pytest.approx(0.39 * exp(2.0) - exp(1.0))
    assert d_rejected == pytest.approx(0.61 * exp(-1.0))


def test_rdro_lsif_pushes_a_desirable_completion_up_below_the_ceiling_and_down_above(labels):
    ceiling = log(1 / 0.39)
    forces = [
        loss_and_force(labels, place, alpha=0.39)[1][0]
        for place in (-8, ceiling - 0.1, ceiling + 0.1, ceiling + 2, 50, 1e4)
    ]

    assert forces[0] < 0
    assert forces[1] < 0
    assert min(forces[2:]) > 0
    assert loss_and_force(labels, ceiling, alpha=0.39)[1][0] == pytest.approx(0, abs=1e-12)


def test_rdro_lsif_loss_is_a_line_from_one_nat_above_the_ceiling_on(labels):
    (desirable, undesirable), forces = loss_and_force(labels, log(1 / 0.39) + 1 + 3, alpha=0.39)

    top = exp(1) / 0.39
    assert desirable == pytest.approx(0.39 * top**2 / 2 - top + 3 * (0.39 * top**2 - top))
    assert undesirable == pytest.approx(0.61 * top**2 / 2 + 3 * 0.61 * top**2)
    # The bounds of the docstring.
    assert forces[0] == pytest.approx(exp(1) * (exp(1) - 1) / 0.39)
    assert forces[1] == pytest.approx(0.61 * exp(1) ** 2 / 0.39**2)


def test_rdro_lsif_loss_and_derivative_are_continuous_where_the_line_begins(labels):
    place = log(1 / 0.39) + 1

    below, above = (loss_and_force(labels, place + step, alpha=0.39) for step in (-1e-10, 1e-10))

    for left, right in zip(below, above, strict=True):
        assert left == pytest.approx(right, rel=1e-8)


def test_rdro_lsif_excess_is_half_the_mean_squared_error_of_the_ratio():
    problem = mixture_problem(num_completions=6, seed=3, desirable_fraction=0.3)
    loss = population_loss(rdro_lsif_loss, problem, alpha=0.3)
    policy = torch.log_softmax(torch.linspace(-0.4, 0.4, 6).double() + problem.reference, dim=0)

    excess = float(loss(policy) - loss(problem.desirable))

    target = (problem.desirable - problem.reference).exp()
    error = (policy - problem.reference).exp() - target
    assert excess == pytest.approx(float((problem.reference.exp() * error**2).sum()) / 2)
