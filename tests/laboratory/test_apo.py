"""He, Yuan and Gu 2024, arXiv:2410.06293: accelerated rounds against their closed form."""

from functools import partial
from itertools import product
from math import exp, log

import pytest
import torch

from veritune.laboratory.apo import (
    accelerated_policy,
    accelerated_run,
    distance_to_best,
    exact_proximal_step,
    extrapolated,
    minimized_proximal_step,
    predicted_decay,
)
from veritune.laboratory.distances import total_variation
from veritune.laboratory.problems import bradley_terry_problem
from veritune.objectives.optimum import FiniteProblem

SEEDS = (0, 1, 2)
ALPHAS = (0.0, 0.3, 0.6)


def with_gap(gap: float) -> FiniteProblem:
    """Five completions; the best leads by a known gap and the others are well behind."""
    return FiniteProblem(
        reference=torch.tensor([0.1, 0.3, 0.2, 0.25, 0.15], dtype=torch.float64).log(),
        reward=torch.tensor([1.0, 1.0 - gap, -0.5, -1.0, -2.0], dtype=torch.float64),
    )


def test_a_proximal_step_tilts_the_current_policy_by_the_reward():
    problem = bradley_terry_problem(num_completions=3, seed=0)
    current = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)

    tilted = [
        p * exp(r / 0.7) for p, r in zip(current.tolist(), problem.reward.tolist(), strict=True)
    ]

    found = exact_proximal_step(problem, current.log(), beta=0.7).exp().tolist()
    assert found == pytest.approx([t / sum(tilted) for t in tilted])


def test_extrapolation_multiplies_by_a_power_of_the_last_ratio():
    proximal, previous = [0.5, 0.2, 0.3], [0.4, 0.4, 0.2]
    product_of = [p * (p / q) ** 0.3 for p, q in zip(proximal, previous, strict=True)]

    found = extrapolated(
        torch.tensor(proximal, dtype=torch.float64).log(),
        torch.tensor(previous, dtype=torch.float64).log(),
        alpha=0.3,
    )

    assert found.exp().tolist() == pytest.approx([p / sum(product_of) for p in product_of])


@pytest.mark.parametrize(("seed", "alpha"), list(product(SEEDS, ALPHAS)))
def test_the_result_of_exact_rounds_is_the_closed_form(seed, alpha):
    problem = bradley_terry_problem(num_completions=6, seed=seed)
    step = partial(exact_proximal_step, problem, beta=2.0)

    run = accelerated_run(problem.reference, step, alpha=alpha, num_rounds=8)

    for rounds in range(9):
        rewards = problem.reward.expand(rounds, -1)
        closed = accelerated_policy(problem.reference, rewards, beta=2.0, alpha=alpha)
        assert torch.allclose(run.proximal[rounds], closed, rtol=0, atol=1e-12)


def test_the_closed_form_holds_for_a_reward_that_changes_with_the_round():
    reference = bradley_terry_problem(num_completions=5, seed=0).reference
    rewards = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rounds = iter(rewards)

    run = accelerated_run(
        reference,
        lambda current: torch.log_softmax(current + next(rounds) / 0.5, dim=-1),
        alpha=0.4,
        num_rounds=6,
    )

    closed = accelerated_policy(reference, rewards, beta=0.5, alpha=0.4)
    backwards = accelerated_policy(reference, rewards.flip(0), beta=0.5, alpha=0.4)
    assert torch.allclose(run.proximal[-1], closed, rtol=0, atol=1e-12)
    assert total_variation(run.proximal[-1], backwards) > 1e-3


def test_three_rounds_tilt_by_the_multiple_written_out():
    """1, then 2 + alpha, then 3 + 2 alpha + alpha^2 times reward / beta."""
    problem = bradley_terry_problem(num_completions=4, seed=0)
    step = partial(exact_proximal_step, problem, beta=1.0)

    run = accelerated_run(problem.reference, step, alpha=0.3, num_rounds=3)

    lead = float(problem.reward[0] - problem.reward[1])
    for rounds, multiple in enumerate([0, 1, 2 + 0.3, 3 + 2 * 0.3 + 0.3**2]):
        change = run.proximal[rounds] - problem.reference
        assert float(change[0] - change[1]) == pytest.approx(multiple * lead, abs=1e-12)


def test_without_extrapolation_rounds_are_iterated_dpo():
    problem = bradley_terry_problem(num_completions=4, seed=0)
    step = partial(exact_proximal_step, problem, beta=1.0)

    run = accelerated_run(problem.reference, step, alpha=0.0, num_rounds=5)

    assert torch.allclose(run.proximal, run.extrapolated, rtol=0, atol=1e-14)
    tilted = torch.log_softmax(problem.reference + 5 * problem.reward, dim=-1)
    assert torch.allclose(run.proximal[-1], tilted, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("seed", "alpha"), list(product(SEEDS, ALPHAS)))
def test_rounds_of_the_dpo_loss_minimized_are_the_exact_rounds(seed, alpha):
    problem = bradley_terry_problem(num_completions=5, seed=seed)
    certificates = []

    def minimized(current: torch.Tensor) -> torch.Tensor:
        found = minimized_proximal_step(problem, current, beta=2.0)
        certificates.append(found)
        return found.policy

    run = accelerated_run(problem.reference, minimized, alpha=alpha, num_rounds=4)

    assert all(found.gradient_norm < 1e-10 for found in certificates)
    assert all(found.smallest_curvature > 0 for found in certificates)
    rewards = problem.reward.expand(4, -1)
    closed = accelerated_policy(problem.reference, rewards, beta=2.0, alpha=alpha)
    assert total_variation(run.proximal[-1], closed) < 1e-8
    neighbor = accelerated_policy(problem.reference, rewards, beta=2.0, alpha=alpha + 0.05)
    assert total_variation(run.proximal[-1], neighbor) > 1e-3


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_distance_to_the_best_completion_decays_at_the_predicted_rate(alpha):
    problem = with_gap(0.5)
    step = partial(exact_proximal_step, problem, beta=2.0)

    run = accelerated_run(problem.reference, step, alpha=alpha, num_rounds=80)
    log_distance = distance_to_best(run, problem).log()

    predicted = -0.5 / (2.0 * (1 - alpha))
    assert predicted_decay(problem, beta=2.0, alpha=alpha) == pytest.approx(predicted)
    assert float(log_distance[-1] - log_distance[-2]) == pytest.approx(predicted, rel=1e-6)


def test_a_larger_alpha_is_nearer_to_the_best_completion_after_equally_many_rounds():
    problem = with_gap(0.5)
    step = partial(exact_proximal_step, problem, beta=2.0)

    after_ten = [
        float(
            distance_to_best(
                accelerated_run(problem.reference, step, alpha=alpha, num_rounds=10), problem
            )[-1]
        )
        for alpha in ALPHAS
    ]

    assert after_ten == sorted(after_ten, reverse=True)
    assert after_ten[0] > 5 * after_ten[2]


def test_the_distance_to_the_best_is_what_the_others_have():
    problem = with_gap(0.5)
    run = accelerated_run(problem.reference, lambda current: current, alpha=0.0, num_rounds=1)

    best = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64).log()
    assert distance_to_best(run, problem)[0] == pytest.approx(0.9)
    assert total_variation(problem.reference, best) == pytest.approx(0.9)
    assert float(distance_to_best(run, problem)[0].log()) == pytest.approx(log(0.9))
