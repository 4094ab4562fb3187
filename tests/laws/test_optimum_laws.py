"""Every claimed optimum is where the exact population loss has its minimum."""

import pytest
import torch

from veritune.laboratory.distances import total_variation
from veritune.laboratory.group_draws import every_group
from veritune.laboratory.minimize import is_certified, minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import (
    bradley_terry_problem,
    mixture_problem,
    with_flipped_labels,
)
from veritune.laboratory.rankings import every_ranking, expected_ranking_loss


@pytest.fixture
def problem(card, settings):
    if card.name == "rdpo":
        return with_flipped_labels(bradley_terry_problem(6, seed=7), settings["epsilon"])
    if card.kind in ("unpaired", "demonstration"):
        return mixture_problem(num_completions=6, seed=7, desirable_fraction=0.39)
    return bradley_terry_problem(num_completions=6, seed=7)


@pytest.fixture
def expected_loss(card, settings, problem):
    if card.name == "plackett_luce":
        # Its data are rankings that are drawn, and not scores.
        rankings = every_ranking(every_group(problem.reference, 3), problem.reward)
        return expected_ranking_loss(card.loss, problem, rankings, **settings)
    return population_loss(card.loss, problem, **settings)


def test_the_minimizer_of_the_population_loss_is_the_claimed_optimum(
    card, settings, problem, request
):
    if card.optimum is None:
        pytest.skip("no optimum is claimed")
    if card.kind == "sampled":
        pytest.skip("samples are fresh at every step: the next test")
    claimed = card.optimum(problem, **settings)

    found = minimize(request.getfixturevalue("expected_loss"), problem.reference)

    assert is_certified(found)
    assert total_variation(found.policy, claimed) < 1e-6
    assert float(claimed.logsumexp(dim=0)) == pytest.approx(0, abs=1e-12)
    # The check can fail: the search had to leave the reference to get there.
    assert total_variation(problem.reference, claimed) > 1e-2


def test_the_gradient_on_fresh_samples_vanishes_at_the_claimed_optimum_and_not_elsewhere(
    card, settings, problem
):
    if card.optimum is None or card.kind != "sampled":
        pytest.skip("no optimum is claimed for samples")

    def gradient_norm(policy):
        logits = policy.clone().requires_grad_()
        loss = population_loss(card.loss, problem, behavior=policy, **settings)
        loss(torch.log_softmax(logits, dim=0)).backward()
        return float(logits.grad.norm())

    assert gradient_norm(card.optimum(problem, **settings)) < 1e-9
    assert gradient_norm(problem.reference) > 1e-3
