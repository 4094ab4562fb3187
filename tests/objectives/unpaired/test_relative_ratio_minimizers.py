"""RDRO by its three criteria: one minimizer, on the same conditions."""

import dataclasses
from math import log

import pytest
import torch

from veritune.laboratory.distances import total_variation
from veritune.laboratory.minimize import is_certified, minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import mixture, mixture_problem
from veritune.objectives.catalog import CATALOG
from veritune.objectives.optimum import FiniteProblem
from veritune.objectives.unpaired import rdro_kliep, rdro_lsif

MEMBERS = ("rdro", "rdro_lsif", "rdro_kliep")
WITH_LINES = {"rdro_lsif": rdro_lsif, "rdro_kliep": rdro_kliep}
"""Those whose ratio goes on as a line above one nat over the ceiling."""


@pytest.fixture(params=MEMBERS)
def loss(request):
    return CATALOG[request.param].loss


@pytest.mark.parametrize("alpha", [0.2, 0.39, 0.5, 0.8])
@pytest.mark.parametrize("name", MEMBERS)
def test_the_minimizer_is_the_law_of_desirable_completions(name, alpha):
    problem = mixture_problem(num_completions=8, seed=0, desirable_fraction=alpha)
    card = CATALOG[name]

    found = minimize(population_loss(card.loss, problem, alpha=alpha), problem.reference)

    assert is_certified(found)
    assert total_variation(found.policy, card.optimum(problem, alpha=alpha)) < 1e-6


def test_the_minimizer_is_another_law_if_the_reference_is_not_the_mixture(loss):
    problem = mixture_problem(num_completions=8, seed=0, desirable_fraction=0.39)
    uniform = torch.full_like(problem.reference, 1 / 8).log()
    wrong = dataclasses.replace(problem, reference=uniform)

    found = minimize(population_loss(loss, wrong, alpha=0.39), uniform)

    assert found.gradient_norm < 1e-9
    assert total_variation(found.policy, problem.desirable) > 1e-2


def test_the_minimizer_exists_when_the_two_laws_share_no_completion(loss):
    desirable = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64).log()
    undesirable = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64).log()
    problem = FiniteProblem(
        reference=mixture(desirable, undesirable, 0.4),
        desirable=desirable,
        undesirable=undesirable,
        desirable_fraction=0.4,
    )

    found = minimize(population_loss(loss, problem, alpha=0.4), problem.reference)

    assert found.gradient_norm < 1e-9
    # Least squares pushes a completion that must vanish with the square of its ratio: the search
    # ends early.
    assert total_variation(found.policy, desirable) < 1e-5
    ratio = (found.policy - problem.reference).exp()[:3]
    assert torch.allclose(ratio, torch.full_like(ratio, 1 / 0.4), rtol=1e-4)


@pytest.mark.parametrize("name", WITH_LINES)
def test_the_lines_add_no_minimum_of_their_own(name):
    problem = mixture_problem(num_completions=5, seed=1, desirable_fraction=0.39)
    expected = population_loss(CATALOG[name].loss, problem, alpha=0.39)
    rarest = int(problem.reference.argmin())

    for share in (0.8, 0.97):
        start = torch.full((5,), (1 - share) / 4, dtype=torch.float64)
        start[rarest] = share
        assert log(share) - float(problem.reference[rarest]) > log(1 / 0.39) + 1
        found = minimize(expected, start.log())
        assert found.gradient_norm < 1e-9
        assert total_variation(found.policy, problem.desirable) < 1e-6


@pytest.mark.parametrize("name", WITH_LINES)
def test_the_minimizer_moves_if_the_line_begins_below_the_target(name, monkeypatch):
    problem = mixture_problem(num_completions=5, seed=1, desirable_fraction=0.39)
    highest = float((problem.desirable - problem.reference).max())
    monkeypatch.setattr(WITH_LINES[name], "tangent_place", lambda alpha: highest - 0.5)

    expected = population_loss(CATALOG[name].loss, problem, alpha=0.39)
    found = minimize(expected, problem.reference)

    assert total_variation(found.policy, problem.desirable) > 1e-2
