import dataclasses
from math import exp, log

import pytest
import torch

from veritune.laboratory.distances import total_variation
from veritune.laboratory.minimize import minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import mixture, mixture_problem
from veritune.objectives.optimum import FiniteProblem
from veritune.objectives.unpaired.rdro import rdro_loss, rdro_optimum


def test_rdro_loss_and_its_derivatives_are_the_known_numbers(labels):
    """The derivative of the desirable one is positive: its ratio, e, is above 1 / 0.39."""
    mean = rdro_loss(labels, alpha=0.39).mean()
    mean.backward()

    desirable = 1.39 * log(1 + exp(1.0)) - 1.0
    undesirable = 0.61 * log(1 + exp(-0.5))
    assert mean.item() == pytest.approx(desirable + undesirable)
    assert mean.item() == pytest.approx(1.114621, abs=5e-7)
    d_chosen, d_rejected = labels.completion.policy.grad.tolist()
    assert d_chosen == pytest.approx(1.39 / (1 + exp(-1.0)) - 1)
    assert d_chosen == pytest.approx(0.016171, abs=1e-6)
    assert d_rejected == pytest.approx(0.61 / (1 + exp(0.5)))
    assert d_rejected == pytest.approx(0.230300, abs=1e-6)


def test_rdro_stops_pushing_a_desirable_completion_at_the_ceiling_of_the_ratio(labels):
    at_ceiling = (labels.completion.reference + log(1 / 0.39)).requires_grad_()
    completion = dataclasses.replace(labels.completion, policy=at_ceiling)

    rdro_loss(dataclasses.replace(labels, completion=completion), alpha=0.39).sum().backward()

    assert at_ceiling.grad[0].item() == pytest.approx(0, abs=1e-12)
    assert at_ceiling.grad[1].item() > 0.1


@pytest.mark.parametrize("alpha", [0.2, 0.39, 0.5, 0.8])
def test_rdro_minimizer_is_the_law_of_desirable_completions(alpha):
    problem = mixture_problem(num_completions=8, seed=0, desirable_fraction=alpha)

    found = minimize(population_loss(rdro_loss, problem, alpha=alpha), problem.reference)

    assert found.gradient_norm < 1e-9
    assert total_variation(found.policy, rdro_optimum(problem, alpha=alpha)) < 1e-6


def test_rdro_minimizer_is_another_law_if_the_reference_is_not_the_mixture():
    problem = mixture_problem(num_completions=8, seed=0, desirable_fraction=0.39)
    uniform = torch.full_like(problem.reference, 1 / 8).log()
    wrong = dataclasses.replace(problem, reference=uniform)

    found = minimize(population_loss(rdro_loss, wrong, alpha=0.39), uniform)

    assert found.gradient_norm < 1e-9
    assert total_variation(found.policy, problem.desirable) > 1e-2


def test_rdro_minimizer_exists_when_the_two_laws_share_no_completion():
    desirable = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64).log()
    undesirable = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64).log()
    problem = FiniteProblem(
        reference=mixture(desirable, undesirable, 0.4),
        desirable=desirable,
        undesirable=undesirable,
        desirable_fraction=0.4,
    )

    found = minimize(population_loss(rdro_loss, problem, alpha=0.4), problem.reference)

    assert found.gradient_norm < 1e-9
    assert total_variation(found.policy, desirable) < 1e-6
    ratio = (found.policy - problem.reference).exp()[:3]
    assert torch.allclose(ratio, torch.full_like(ratio, 1 / 0.4))
