import math

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from veritune.laboratory.fitting import fit
from veritune.laboratory.policies import GaussianPolicy, LogLinearPolicy

GRID = torch.linspace(-5, 5, 101, dtype=torch.float64)
TARGET = GaussianPolicy(GRID, mean=1.0, std=0.6)().detach()


def cross_entropy(law):
    return -(TARGET.exp() * law).sum()


def test_fit_finds_the_parameters_that_made_the_target():
    found = fit(GaussianPolicy(GRID, mean=-0.5, std=1.5), cross_entropy)

    assert found.gradient_norm < 1e-10
    assert found.smallest_curvature > 0
    assert found.parameters.tolist() == pytest.approx([1.0, math.log(0.6)], abs=1e-9)
    assert torch.allclose(found.policy, TARGET, atol=1e-7)
    assert found.loss == pytest.approx(float(cross_entropy(TARGET)))


def test_fit_leaves_the_policy_as_it_was():
    policy = GaussianPolicy(GRID, mean=-0.5, std=1.5)
    before = parameters_to_vector(policy.parameters()).clone()

    fit(policy, cross_entropy)

    assert torch.equal(parameters_to_vector(policy.parameters()), before)


def test_the_certificate_shows_that_a_search_was_cut_short():
    found = fit(GaussianPolicy(GRID, mean=-4.0, std=0.3), cross_entropy, max_steps=0)

    assert found.gradient_norm > 1e-3


def test_the_certificate_shows_a_saddle():
    """At equal probabilities the gradient of this loss vanishes, and it is a maximum."""
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)

    found = fit(LogLinearPolicy(features, torch.zeros(2)), lambda law: -(law.exp() ** 2).sum())

    assert found.gradient_norm < 1e-11
    assert found.smallest_curvature < -1e-3


def test_a_redundant_parameter_has_no_curvature():
    features = torch.ones(3, 2, dtype=torch.float64)
    features[:, 0] = torch.tensor([0.0, 1.0, 3.0])

    found = fit(
        LogLinearPolicy(features, torch.zeros(2)),
        lambda law: -law.exp()[1] + (law.exp() ** 2).sum(),
    )

    assert abs(found.smallest_curvature) < 1e-12
