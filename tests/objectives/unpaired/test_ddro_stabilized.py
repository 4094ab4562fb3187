import dataclasses
from math import exp, log

import pytest
import torch

from veritune.laboratory.distances import total_variation
from veritune.laboratory.minimize import minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import mixture_problem
from veritune.objectives.unpaired.ddro import ddro_loss
from veritune.objectives.unpaired.ddro_stabilized import (
    ddro_stabilized_initial_loss,
    ddro_stabilized_loss,
)


def undesirable_at(labels, log_ratio, *, t, delta=0.05):
    """Loss and derivative of the undesirable example, before its class weight of 2."""
    policy = (labels.completion.reference + log_ratio).requires_grad_()
    moved = dataclasses.replace(
        labels, completion=dataclasses.replace(labels.completion, policy=policy)
    )
    loss = ddro_stabilized_loss(moved, t=t, delta=delta)
    loss[1].backward()
    return loss[1].item() / 2, policy.grad[1].item() / 2


def test_ddro_stabilized_loss_is_that_of_ddro_inside_the_domain(labels):
    assert torch.equal(ddro_stabilized_loss(labels, t=0.3), ddro_loss(labels, t=0.3))


def test_ddro_stabilized_loss_follows_the_tangent_from_the_end_of_the_domain_on(labels):
    loss, derivative = undesirable_at(labels, log(2 * 1.5), t=0.5)

    assert loss == pytest.approx(-0.5 * (log(0.05) - (1.5 - 0.95) / 0.05))
    assert derivative == pytest.approx(0.5 * 1.5 / 0.05)


def test_ddro_stabilized_loss_and_derivative_are_continuous_where_the_pieces_meet(labels):
    for place in (log(0.95 / 0.5), 3 - log(0.5)):
        below, above = (undesirable_at(labels, place + step, t=0.5) for step in (-1e-9, 1e-9))
        assert below == pytest.approx(above, rel=1e-7)


def test_ddro_stabilized_loss_is_a_line_in_the_log_ratio_from_three_nats_on(labels):
    loss, _ = undesirable_at(labels, 4 - log(0.5), t=0.5)

    z = exp(3) + exp(3) * (4 - 3)
    assert loss == pytest.approx(-0.5 * (log(0.05) - (z - 0.95) / 0.05))


def test_ddro_stabilized_initial_loss_lies_on_the_tangent_if_nearly_all_are_desirable(labels):
    at_reference = dataclasses.replace(
        labels,
        completion=dataclasses.replace(labels.completion, policy=labels.completion.reference),
    )

    loss = ddro_stabilized_loss(at_reference, t=0.98, delta=0.05)

    expected = ddro_stabilized_initial_loss(labels, t=0.98, delta=0.05)
    assert torch.allclose(loss, expected)
    assert expected[1].item() == pytest.approx(-2 * 0.02 * (log(0.05) - 0.03 / 0.05))


def test_ddro_stabilized_still_pushes_down_a_completion_far_beyond_the_domain(labels):
    for log_ratio in (5.0, 100.0, 1e4):
        _, derivative = undesirable_at(labels, log_ratio, t=0.5)
        assert derivative == pytest.approx(0.5 * exp(3) / 0.05)


def test_ddro_stabilized_minimizer_is_the_desirable_law_unless_that_needs_the_tangent():
    problem = mixture_problem(num_completions=8, seed=0, desirable_fraction=0.4)
    surest = float((0.4 * (problem.desirable - problem.reference).exp()).max())

    def distance(delta):
        loss = population_loss(ddro_stabilized_loss, problem, t=0.4, delta=delta)
        found = minimize(loss, problem.reference)
        assert found.gradient_norm < 1e-9
        return total_variation(found.policy, problem.desirable)

    assert distance((1 - surest) / 2) < 1e-6
    assert distance(1 - surest / 2) > 1e-3
