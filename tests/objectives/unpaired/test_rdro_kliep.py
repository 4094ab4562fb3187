import dataclasses
from math import exp, log

import pytest
import torch

from veritune.laboratory.distances import kl
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import mixture_problem
from veritune.objectives.unpaired.rdro_kliep import rdro_kliep_loss


def loss_and_force(labels, log_ratio, *, alpha):
    """Loss and derivative of the desirable and the undesirable example, without class weights."""
    policy = (labels.completion.reference + log_ratio).requires_grad_()
    completion = dataclasses.replace(labels.completion, policy=policy)
    loss = rdro_kliep_loss(dataclasses.replace(labels, completion=completion), alpha=alpha)
    loss.sum().backward()
    return (loss / 2).tolist(), (policy.grad / 2).tolist()


def test_rdro_kliep_loss_and_its_derivatives_are_those_of_the_formula(labels):
    mean = rdro_kliep_loss(labels, alpha=0.39).mean()
    mean.backward()

    assert mean.item() == pytest.approx(0.39 * exp(1.0) - 1.0 + 0.61 * exp(-0.5))
    d_chosen, d_rejected = labels.completion.policy.grad.tolist()
    assert d_chosen == pytest.approx(0.39 * exp(1.0) - 1.0)
    assert d_rejected == pytest.approx(0.61 * exp(-0.5))


def test_rdro_kliep_pushes_a_desirable_completion_up_below_the_ceiling_and_down_above(labels):
    ceiling = log(1 / 0.39)
    forces = [
        loss_and_force(labels, place, alpha=0.39)[1][0]
        for place in (-1e4, ceiling - 0.1, ceiling + 0.1, ceiling + 2, 50, 1e4)
    ]

    assert forces[0] == pytest.approx(-1)
    assert forces[1] < 0
    assert min(forces[2:]) > 0


def test_rdro_kliep_ratio_is_a_line_from_one_nat_above_the_ceiling_on(labels):
    place = log(1 / 0.39) + 1
    (desirable, undesirable), forces = loss_and_force(labels, place + 3, alpha=0.39)

    top = exp(1) / 0.39
    assert desirable == pytest.approx(0.39 * 4 * top - (place + 3))
    assert undesirable == pytest.approx(0.61 * 4 * top)
    # The bounds of the docstring.
    assert forces == pytest.approx([exp(1) - 1, 0.61 * exp(1) / 0.39])


def test_rdro_kliep_loss_and_derivative_are_continuous_where_the_line_begins(labels):
    place = log(1 / 0.39) + 1

    below, above = (loss_and_force(labels, place + step, alpha=0.39) for step in (-1e-10, 1e-10))

    for left, right in zip(below, above, strict=True):
        assert left == pytest.approx(right, rel=1e-8)


def test_rdro_kliep_is_in_expectation_the_likelihood_if_the_reference_is_the_mixture():
    problem = mixture_problem(num_completions=6, seed=3, desirable_fraction=0.3)
    uniform = torch.full_like(problem.reference, 1 / 6).log()
    policy = torch.log_softmax(torch.linspace(-0.4, 0.4, 6).double() + problem.reference, dim=0)

    def excess(problem):
        loss = population_loss(rdro_kliep_loss, problem, alpha=0.3)
        return float(loss(policy) - loss(problem.desirable))

    assert excess(problem) == pytest.approx(kl(problem.desirable, policy))
    # Under another reference the mean of the ratio depends on the policy.
    elsewhere = dataclasses.replace(problem, reference=uniform)
    assert abs(excess(elsewhere) - kl(problem.desirable, policy)) > 1e-2
