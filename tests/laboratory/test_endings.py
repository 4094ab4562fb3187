from math import log

import pytest
import torch

from veritune.laboratory.distances import total_variation
from veritune.laboratory.endings import ending, ending_of, ending_with_kinks, follow
from veritune.laboratory.minimize import is_certified, minimize
from veritune.laboratory.outcomes import distinct_pairs, with_labels
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import bradley_terry_problem, deterministic_problem
from veritune.objectives.optimum import FiniteProblem
from veritune.objectives.paired.bco_pair import bco_pair_loss
from veritune.objectives.paired.chosen_nll import chosen_nll_loss
from veritune.objectives.paired.dpo import dpo_loss, dpo_optimum
from veritune.objectives.paired.hinge_norm import hinge_norm_loss
from veritune.objectives.paired.mpo import mpo_loss
from veritune.objectives.paired.robust_dpo import robust_dpo_loss
from veritune.objectives.paired.slic import slic_loss
from veritune.objectives.unpaired.rdro import rdro_loss


@pytest.fixture
def unsure():
    return with_labels(distinct_pairs(bradley_terry_problem(4, seed=0)))


@pytest.fixture
def certain():
    return with_labels(distinct_pairs(deterministic_problem(4, seed=0)))


def comparison(win_probability):
    return FiniteProblem(
        reference=torch.tensor([0.4, 0.6], dtype=torch.float64).log(),
        preferences=torch.tensor(
            [[0.5, win_probability], [1 - win_probability, 0.5]], dtype=torch.float64
        ),
        pair_law=torch.tensor([[0.0, 0.5], [0.5, 0.0]], dtype=torch.float64),
    )


@pytest.mark.parametrize("loss", [dpo_loss, bco_pair_loss])
def test_the_path_is_that_of_many_small_gradient_steps(unsure, loss):
    """For BCO, too, whose running mean moves with the policy."""
    expected = population_loss(loss, unsure, beta=0.5)
    rate, logits = 0.02, unsure.reference.clone()
    for _ in range(1_000):
        point = logits.clone().requires_grad_()
        expected(point.log_softmax(dim=0)).backward()
        logits = logits - rate * point.grad

    path = follow(expected, unsure.reference, until=20.0, growth=1.02)

    assert path.times[-1] == pytest.approx(20, rel=0.03)
    assert total_variation(path.policies[-1], logits.log_softmax(dim=0)) < 5e-3
    assert total_variation(path.policies[0], logits.log_softmax(dim=0)) > 5e-2


def test_a_path_to_a_minimizer_ends_at_rest_there(unsure):
    found = ending(population_loss(dpo_loss, unsure, beta=0.5), unsure.reference)

    assert found.kind == "rests"
    assert found.distance < 1e-9
    assert found.kept.all()
    assert total_variation(found.policy, dpo_optimum(unsure, beta=0.5)) < 1e-9


def test_a_fall_without_end_is_no_rest_though_its_gradient_fades(certain):
    loss = population_loss(dpo_loss, certain, beta=0.5)

    found = ending(loss, certain.reference)

    assert found.kind == "collapses"
    assert found.distance > 1
    assert found.kept.tolist() == (certain.reward == certain.reward.max()).tolist()
    assert found.largest_probability > 1 - 1e-9
    # Nor does the certificate of a search for a minimizer take it for one.
    searched = minimize(loss, certain.reference)
    assert searched.gradient_norm < 1e-9
    assert not is_certified(searched)


def test_a_completion_that_is_never_chosen_is_dropped_and_the_others_kept(certain):
    found = ending(population_loss(chosen_nll_loss, certain), certain.reference)

    assert found.kind == "drops"
    assert found.kept.tolist() == (certain.reward != certain.reward.min()).tolist()


def test_a_path_that_ends_on_its_way_to_a_rest_point_does_not_pass_for_a_fall():
    """The rest point is at a margin of 2 log(1e6) = 28 nats."""
    problem = comparison(1.0)
    loss = population_loss(robust_dpo_loss, problem, beta=0.5, epsilon=1e-6)

    early, late = (
        ending_of(loss, follow(loss, problem.reference, until=until)) for until in (1e2, 1e12)
    )

    assert early.kind == "unclear"
    assert early.kept.tolist() == [True, False]
    assert late.kind == "rests"
    assert late.kept.all()


def test_completions_that_are_compared_with_nothing_leave_the_ending_unclear():
    problem = bradley_terry_problem(3, seed=0)
    law = torch.zeros(3, 3, dtype=torch.float64)
    law[0, 1] = 1.0
    apart = FiniteProblem(problem.reference, preferences=problem.preferences, pair_law=law)

    assert ending(population_loss(dpo_loss, apart, beta=0.5), apart.reference).kind == "unclear"


def test_the_rest_point_of_a_moving_baseline_is_that_of_the_baseline_there(unsure):
    loss = population_loss(bco_pair_loss, unsure, beta=0.5)

    found = ending(loss, unsure.reference)

    point = found.policy.clone().requires_grad_()
    loss(point.log_softmax(dim=0)).backward()
    assert found.kind == "rests"
    assert point.grad.norm() < 1e-12


def test_steps_stay_short_where_curvature_changes_sign():
    """MPO's preference term is a sigmoid: flat far off, concave, and convex near its end."""
    problem = comparison(1.0)
    loss = population_loss(mpo_loss, problem, reference_weight=0.0)
    start = torch.tensor([1e-6, 1.0], dtype=torch.float64).log().log_softmax(dim=0)

    path = follow(loss, start)

    assert float(path.policies.diff(dim=0).abs().max()) < 5
    assert float(path.policies[-1, 0].exp()) > 0.999


@pytest.mark.parametrize("loss", [hinge_norm_loss, slic_loss])
def test_a_comparison_rests_on_the_kink_of_a_hinge(loss):
    problem = comparison(0.7)

    found = ending_with_kinks(population_loss(loss, problem, gamma=0.5), problem.reference)

    start = log(0.4 / 0.6) if loss is hinge_norm_loss else 0.0
    assert found.kind == "rests"
    assert float(found.policy[0] - found.policy[1]) == pytest.approx(start + 2, abs=1e-6)


def test_descent_with_kinks_finds_a_smooth_minimum_too(unsure):
    loss = population_loss(rdro_loss, unsure, alpha=0.5)

    found = ending_with_kinks(loss, unsure.reference)

    assert found.kind == "rests"
    assert total_variation(found.policy, unsure.desirable) < 1e-6


def test_descent_with_kinks_knows_a_fall_without_end(certain):
    found = ending_with_kinks(population_loss(chosen_nll_loss, certain), certain.reference)

    assert found.kind == "drops"
    assert found.kept.tolist() == (certain.reward != certain.reward.min()).tolist()
