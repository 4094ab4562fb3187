"""Collapse by too few pairs: when a sample has a finite fit, and what more pairs bring."""

import dataclasses
import math

import torch
from torch import Tensor

from veritune.laboratory.endings import ending_of, follow
from veritune.laboratory.extremes import largest_residual
from veritune.laboratory.minimize_many import minimize_many
from veritune.laboratory.outcomes import distinct_pairs
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import bradley_terry_problem, sampled_problem
from veritune.laboratory.theorem import Curve, Evidence, Plot, Theorem
from veritune.laboratory.theorems.distribution_learning import target_of, target_problem
from veritune.objectives.optimum import FiniteProblem
from veritune.objectives.paired.dpo import dpo_loss
from veritune.objectives.paired.pmle import pmle_loss
from veritune.objectives.sampled.rloo import rloo_optimum
from veritune.seeds import stream

_FEW = (10, 20, 40, 80)
_NUM_SAMPLES = 15
_MANY = (100, 1_000, 10_000, 100_000)
_NUM_DRAWS = 40
_RLHF_BETAS = (0.3, 0.1)


def every_group_loses(problem: FiniteProblem) -> bool:
    """Whether of each two groups that make up all completions, each has won against the other.

    That is: along wins one can go from every completion to every other.
    """
    assert problem.preferences is not None, "wins are preferences"
    assert problem.pair_law is not None, "wins are of pairs"
    reaches = problem.preferences * problem.pair_law > 0
    for _ in range(problem.num_completions):
        reaches = reaches | (reaches.double() @ reaches.double() > 0)
    return bool(reaches.all())


def _each_wins_and_loses(problem: FiniteProblem) -> bool:
    assert problem.preferences is not None, "wins are preferences"
    assert problem.pair_law is not None, "wins are of pairs"
    wins = problem.preferences * problem.pair_law > 0
    return bool(wins.any(dim=0).all() and wins.any(dim=1).all())


def _two_groups() -> FiniteProblem:
    """Three completions that win against two others with probability 0.95."""
    problem = distinct_pairs(bradley_terry_problem(5, seed=0))
    reward = torch.tensor([1.5, 1.5, 1.5, -1.5, -1.5], dtype=torch.float64)
    preferences = torch.sigmoid(reward[:, None] - reward[None, :])
    return dataclasses.replace(problem, reward=reward, preferences=preferences)


def finite_fit_needs_upsets() -> Evidence:
    """Share of small samples on which DPO's ending is not what their wins say."""
    wrong, wrong_by_completion = 0, 0
    seen = []
    problem = _two_groups()
    generator = stream(0, "laboratory", "few pairs")
    for num_pairs in _FEW:
        num_finite = 0
        for _ in range(_NUM_SAMPLES):
            sample = sampled_problem(problem, num_pairs, generator)
            loss = population_loss(dpo_loss, sample, beta=0.5)
            found = ending_of(loss, follow(loss, sample.reference, until=1e8))
            is_finite = found.kind == "rests"
            num_finite += is_finite
            wrong += is_finite != every_group_loses(sample)
            wrong_by_completion += is_finite != _each_wins_and_loses(sample)
        seen.append(f"{num_finite} with {num_pairs}")
    num_samples = _NUM_SAMPLES * len(_FEW)
    return Evidence(
        wrong / num_samples,
        wrong_by_completion / num_samples,
        f"Y = 5: of {_NUM_SAMPLES} samples each, DPO came to rest on {', '.join(seen)} pairs; the "
        f"condition on single completions is wrong on {wrong_by_completion} of {num_samples}",
    )


def more_pairs_reveal_the_target() -> Evidence:
    """The largest probability that PMLE learns, and that RLHF makes of it, against the target's."""
    problem = target_problem(8, seed=3, sharpness=0.5)
    target = target_of(problem)
    truth = float(target.exp().max())
    generator = stream(0, "laboratory", "more pairs")
    names = ["pmle", *(f"RLHF on it, beta {beta:g}" for beta in _RLHF_BETAS)]
    means: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    errors: list[list[float]] = []
    for num_pairs in _MANY:
        samples = [sampled_problem(problem, num_pairs, generator) for _ in range(_NUM_DRAWS)]
        # Without upsets there is no finite fit; that is the theorem above.
        fitted = minimize_many(pmle_loss, list(filter(every_group_loses, samples)), target, gamma=1)
        policies = fitted.policies.where(fitted.are_certified[:, None], torch.nan)
        largest = policies.exp().amax(dim=1)
        errors.append((largest - truth).abs().tolist())
        means["pmle"].append((float(num_pairs), float(largest.mean())))
        for name, beta in zip(names[1:], _RLHF_BETAS, strict=True):
            peaks = [_after_rlhf(problem, policy, beta) for policy in policies]
            means[name].append((float(num_pairs), math.fsum(peaks) / len(peaks)))
    misses = [math.fsum(values) / len(values) for values in errors]
    last = {name: points[-1][1] for name, points in means.items()}
    return Evidence(
        largest_residual(misses[-1:]),
        abs(last[names[-1]] - truth),
        f"Y = 8, {_NUM_DRAWS} draws: the target's largest probability is {truth:.4f}; mean from "
        f"{_MANY[-1]:,} pairs "
        + ", ".join(f"{name} {value:.4f}" for name, value in last.items())
        + "; PMLE's mean error is "
        + ", ".join(f"{miss:.4f}" for miss in misses)
        + f" from {', '.join(f'{n:,}' for n in _MANY)} pairs",
        plots=(
            Plot(
                "The most probable completion as data grow",
                "pairs n",
                "largest probability",
                (
                    *(Curve(name, tuple(points), "marked") for name, points in means.items()),
                    Curve("target", tuple((float(n), truth) for n in _MANY), "guide"),
                ),
                log_x=True,
                note="More pairs bring PMLE to the target. RLHF on the log-probabilities that it "
                "learned stays more peaked, however many pairs there are.",
            ),
        ),
    )


def _after_rlhf(problem: FiniteProblem, learned: Tensor, beta: float) -> float:
    """Largest probability of RLHF's optimum with the learned log-probabilities as the reward."""
    optimum = rloo_optimum(dataclasses.replace(problem, reward=learned), beta=beta)
    return float(optimum.exp().max())


THEOREMS: tuple[Theorem, ...] = (
    Theorem(
        name="finite_fit_needs_upsets",
        claim="On a sample of pairs DPO has a finite minimizer exactly if, however the completions "
        "are split into two groups, each group has won against the other.",
        control="It has one exactly if each completion has won and has lost.",
        source="Ford 1957, Solution of a ranking problem from binary comparisons, for the "
        "Bradley-Terry model; derived here for DPO",
        methods=("dpo",),
        tolerance=1e-3,
        check=finite_fit_needs_upsets,
    ),
    Theorem(
        name="more_pairs_reveal_the_target",
        claim="As pairs accumulate, the largest probability that PMLE learns converges to the "
        "target's.",
        control="So does that of RLHF, with beta = 0.1 and the learned log-probabilities as the "
        "reward.",
        source="Yun et al. 2025, arXiv:2506.01523",
        methods=("pmle",),
        contrasts=("rloo",),
        tolerance=0.01,
        check=more_pairs_reveal_the_target,
    ),
)
