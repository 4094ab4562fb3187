import dataclasses

import pytest
import torch

from veritune.laboratory.distances import total_variation
from veritune.laboratory.minimize import minimize
from veritune.laboratory.minimize_many import minimize_many
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import (
    bradley_terry_problem,
    disjoint_problem,
    mixture_problem,
    sampled_problem,
)
from veritune.objectives.paired.pmle import pmle_loss
from veritune.objectives.unpaired.ddro import ddro_loss
from veritune.objectives.unpaired.rdro import rdro_loss

METHODS = [(rdro_loss, "alpha"), (ddro_loss, "t")]


def draw(problem, num_examples, num_samples=5):
    generator = torch.Generator().manual_seed(0)
    return [sampled_problem(problem, num_examples, generator) for _ in range(num_samples)]


@pytest.mark.parametrize(("loss", "name"), METHODS)
def test_each_minimum_is_that_of_its_sample_alone(loss, name):
    problem = mixture_problem(6, seed=0, desirable_fraction=0.4)
    samples = draw(problem, 300)

    found = minimize_many(loss, samples, problem.reference, **{name: 0.4})

    assert found.are_certified.all()
    for sample, policy, value in zip(samples, found.policies, found.losses, strict=True):
        alone = minimize(population_loss(loss, sample, **{name: 0.4}), problem.reference)
        assert total_variation(alone.policy, policy) < 1e-9
        assert value.item() == pytest.approx(alone.loss)
    assert total_variation(found.policies[0], found.policies[1]) > 1e-3


def test_samples_of_pairs_are_minimized_too():
    problem = bradley_terry_problem(5, seed=0)

    found = minimize_many(pmle_loss, draw(problem, 2000), problem.reference, gamma=1.0)

    assert found.are_certified.all()
    assert found.gradient_norms.max() < 1e-11


@pytest.mark.parametrize(("loss", "name"), METHODS)
def test_the_start_does_not_matter_where_labels_tell_completions_apart(loss, name):
    problem = disjoint_problem(8, seed=297, desirable_fraction=0.39, overlap=0.002)
    samples = draw(problem, 300, num_samples=20)

    first, second = (
        minimize_many(loss, samples, start, **{name: 0.39})
        for start in (problem.desirable, problem.reference)
    )

    assert first.are_certified.all()
    assert (first.policies.exp() - second.policies.exp()).abs().max() < 1e-9


def test_minima_beside_the_boundary_have_their_curvature_in_fisher_units():
    """A completion that is never desirable has its probability sent to zero, and with it the
    Hessian's own smallest eigenvalue."""
    problem = disjoint_problem(8, seed=297, desirable_fraction=0.39, overlap=0.002)
    sample = draw(problem, 100, num_samples=1)[0]
    assert (sample.desirable == -torch.inf).any()

    found = minimize_many(rdro_loss, [sample], problem.reference, alpha=0.39)
    alone = minimize(population_loss(rdro_loss, sample, alpha=0.39), problem.reference)

    assert found.policies.exp().min() < 1e-9
    assert alone.smallest_curvature < 1e-9
    assert found.smallest_curvatures.item() > 0.1


def test_a_search_cut_short_is_not_certified():
    problem = mixture_problem(6, seed=0, desirable_fraction=0.4)

    found = minimize_many(rdro_loss, draw(problem, 300), problem.reference, max_steps=1, alpha=0.4)

    assert found.num_steps == 1
    assert not found.are_certified.any()


def test_a_policy_that_a_completion_was_taken_from_wrongly_is_not_certified():
    """With the probability the gradient over logits fades, and the search does not come back."""
    problem = mixture_problem(6, seed=0, desirable_fraction=0.4)
    without_first = problem.desirable.clone()
    without_first[0] = -40.0

    found = minimize_many(
        ddro_loss, [problem], without_first.log_softmax(dim=0), max_steps=0, t=0.4
    )

    assert found.first_order_gaps.item() > 1
    assert not found.are_certified.any()


def test_two_completions_that_a_sample_lacks_leave_a_choice():
    problem = mixture_problem(6, seed=0, desirable_fraction=0.4)
    laws = [
        law.index_fill(0, torch.tensor([0, 1]), -torch.inf).log_softmax(dim=0)
        for law in (problem.desirable, problem.undesirable)
    ]
    sample = dataclasses.replace(problem, desirable=laws[0], undesirable=laws[1])

    found = minimize_many(rdro_loss, [sample], problem.reference, alpha=0.4)

    assert abs(found.smallest_curvatures.item()) < 1e-6
