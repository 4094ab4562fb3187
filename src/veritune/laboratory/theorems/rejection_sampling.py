"""Rejection sampling: the law of what is accepted, how often, and until when."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from veritune.laboratory.distances import total_variation
from veritune.laboratory.extremes import largest_residual, smallest_control
from veritune.laboratory.problems import bradley_terry_problem
from veritune.laboratory.theorem import Curve, Evidence, Plot, Theorem
from veritune.rejection import accepted, accepted_in_one_round, expected_acceptance, tilted_law
from veritune.seeds import stream

_SEEDS = (0, 1, 2)
_BETAS = (0.3, 0.5, 1.0)
_NUM_COMPLETIONS = 6
_NUM_CANDIDATES = 400_000
_NUM_FEW_KEPT = 8
_FEW = (64, 32, 16)
_NUM_REPEATS = 5_000


def excess_chi_square(counts: Int[Tensor, " Y"], law: Float[Tensor, " Y"]) -> float:
    """Pearson's statistic of counts against a law, in its deviations above its expectation.

        statistic = sum over y of (counts(y) - n * law(y))^2 / (n * law(y))
        excess    = (statistic - (Y - 1)) / sqrt(2 * (Y - 1))

    For independent draws from the law it exceeds 5 about once in 1,200 times for Y = 6.

    Args:
        counts: How often each outcome was seen.
        law: Log-probabilities of the outcomes.
    """
    expected = counts.sum() * law.exp()
    statistic = float(((counts - expected) ** 2 / expected).sum())
    freedom = len(law) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


def _policy_and_rewards(seed: int) -> tuple[Float[Tensor, " Y"], Float[Tensor, " Y"]]:
    problem = bradley_terry_problem(_NUM_COMPLETIONS, seed)
    assert problem.reward is not None, "a Bradley-Terry problem has a reward"
    return problem.reference, problem.reward


def _candidates(policy: Float[Tensor, " Y"], seed: int, what: str) -> Int[Tensor, " N"]:
    generator = stream(seed, "laboratory", "candidates", what)
    return torch.multinomial(policy.exp(), _NUM_CANDIDATES, replacement=True, generator=generator)


def _counts(drawn: Int[Tensor, " M"]) -> Int[Tensor, " Y"]:
    return torch.bincount(drawn, minlength=_NUM_COMPLETIONS)


def _frequencies(counts: Int[Tensor, " Y"]) -> Float[Tensor, " Y"]:
    return (counts.to(torch.float64) / counts.sum()).log()


def _one_round(
    rewards: Float[Tensor, " Y"],
    drawn: Int[Tensor, " N"],
    beta: float,
    generator: torch.Generator,
) -> Bool[Tensor, " N"]:
    """Which candidates one pass accepts, bounded by the largest reward."""
    return accepted_in_one_round(
        rewards[drawn], beta=beta, max_reward=float(rewards.max()), generator=generator
    )


def acceptance_tilts_the_policy() -> Evidence:
    """The policy times the probability that each completion is accepted, normalized."""
    residuals: list[float] = []
    controls: list[float] = []
    for seed in _SEEDS:
        policy, rewards = _policy_and_rewards(seed)
        for beta in _BETAS:
            for above in (0.0, 1.0):
                bound = float(rewards.max()) + above
                # What a policy that always gives this one completion sees accepted.
                each = [
                    expected_acceptance(policy.new_zeros(1), reward, beta=beta, max_reward=bound)
                    for reward in rewards[:, None]
                ]
                of_all = expected_acceptance(policy, rewards, beta=beta, max_reward=bound)
                law = policy + torch.tensor(each, dtype=torch.float64).log() - math.log(of_all)
                residuals.append(total_variation(law, tilted_law(policy, rewards, beta=beta)))
                controls.append(total_variation(law, tilted_law(policy, rewards, beta=1.2 * beta)))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"Y = {_NUM_COMPLETIONS}, beta = 0.3, 0.5 and 1, bounds at the largest reward and 1 above: "
        f"TV at most {max(residuals):.1e}; {min(controls):.2g} or more from the law of 1.2 beta",
    )


def one_round_accepts_the_tilted_law() -> Evidence:
    """Chi-square of what one pass accepts, against the tilted law."""
    residuals: list[float] = []
    controls: list[float] = []
    distances: list[float] = []
    for seed in _SEEDS:
        policy, rewards = _policy_and_rewards(seed)
        drawn = _candidates(policy, seed, "law")
        for beta in _BETAS:
            kept = _one_round(rewards, drawn, beta, stream(seed, "laboratory", "law", str(beta)))
            counts, law = _counts(drawn[kept]), tilted_law(policy, rewards, beta=beta)
            residuals.append(excess_chi_square(counts, law))
            distances.append(total_variation(_frequencies(counts), law))
            controls.append(excess_chi_square(counts, tilted_law(policy, rewards, beta=1.2 * beta)))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"{_NUM_CANDIDATES:,} candidates, Y = {_NUM_COMPLETIONS}, beta = 0.3, 0.5 and 1: excess "
        f"chi-square {min(residuals):.1f} to {max(residuals):.1f} deviations, TV at most "
        f"{max(distances):.1e}; against 1.2 beta {min(controls):.0f} deviations or more",
    )


def share_accepted() -> Evidence:
    """The share that one pass accepts, in deviations from what is expected."""
    residuals: list[float] = []
    controls: list[float] = []
    found: list[str] = []
    for seed in _SEEDS:
        policy, rewards = _policy_and_rewards(seed)
        drawn = _candidates(policy, seed, "share")
        for beta in _BETAS:
            bound = float(rewards.max())
            kept = _one_round(rewards, drawn, beta, stream(seed, "laboratory", "share", str(beta)))
            expected = expected_acceptance(policy, rewards, beta=beta, max_reward=bound)
            at_mean = math.exp((float((policy.exp() * rewards).sum()) - bound) / beta)
            share = float(kept.to(torch.float64).mean())
            deviation = math.sqrt(expected * (1 - expected) / _NUM_CANDIDATES)
            residuals.append(abs(share - expected) / deviation)
            controls.append(abs(share - at_mean) / deviation)
            if seed == 0:
                found.append(f"{share:.4f} for {expected:.4f} at beta {beta:g}")
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"{_NUM_CANDIDATES:,} candidates: {', '.join(found)}; in all 9 settings within "
        f"{max(residuals):.1f} deviations",
    )


def passes_keep_the_law() -> Evidence:
    """Chi-square of what repeated passes keep, below and above the acceptance rate."""
    residuals: list[float] = []
    controls: list[float] = []
    curves: list[Curve] = []
    few: list[str] = []
    for seed in _SEEDS:
        policy, rewards = _policy_and_rewards(seed)
        drawn = _candidates(policy, seed, "passes")
        beta = 0.5
        law = tilted_law(policy, rewards, beta=beta)
        rate = expected_acceptance(policy, rewards, beta=beta, max_reward=float(rewards.max()))
        points: list[tuple[float, float]] = []
        for fraction in (0.25, 0.5, 0.75, 0.95, 1.05, 1.2, 1.4, 1.6):
            kept = accepted(
                rewards[drawn],
                beta=beta,
                num_wanted=round(fraction * rate * _NUM_CANDIDATES),
                generator=stream(seed, "laboratory", "passes", str(fraction)),
            )
            counts = _counts(drawn[kept])
            (residuals if fraction < 1 else controls).append(excess_chi_square(counts, law))
            points.append((fraction, total_variation(_frequencies(counts), law)))
        curves.append(Curve(f"acceptance rate {rate:.2f}", tuple(points), "marked"))
        few.append(
            f"{' / '.join(f'{distance:.3f}' for distance in _of_few(seed, beta))} with an "
            f"acceptance rate of {rate:.2f}"
        )
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"{_NUM_CANDIDATES:,} candidates, Y = {_NUM_COMPLETIONS}, beta = 0.5: excess chi-square at "
        f"most {max(residuals):.1f} deviations up to 0.95 of what a pass accepts, "
        f"{min(controls):.0f} or more from 1.05 of it on. Of few candidates: TV of "
        f"{_NUM_FEW_KEPT} kept of {' / '.join(map(str, _FEW))}, over {_NUM_REPEATS:,} repeats, on "
        f"bradley_terry_problem({_NUM_COMPLETIONS}, seed) with seed 0, 1 and 2: {'; '.join(few)}",
        plots=(
            Plot(
                "What repeated passes keep",
                "candidates kept, over what one pass accepts",
                "total variation to the tilted law",
                tuple(curves),
                note="Beyond one pass the best are used up, and each further one lowers its bound.",
            ),
        ),
    )


def _of_few(seed: int, beta: float) -> list[float]:
    """Total variation from the tilted law to what is kept of each number of few candidates."""
    policy, rewards = _policy_and_rewards(seed)
    law = tilted_law(policy, rewards, beta=beta)
    distances = []
    for num_candidates in _FEW:
        generator = stream(seed, "laboratory", "few candidates", str(num_candidates))
        groups = torch.multinomial(
            policy.exp().expand(_NUM_REPEATS, -1),
            num_candidates,
            replacement=True,
            generator=generator,
        )
        kept = [
            group[
                accepted(rewards[group], beta=beta, num_wanted=_NUM_FEW_KEPT, generator=generator)
            ]
            for group in groups
        ]
        distances.append(total_variation(_frequencies(_counts(torch.cat(kept))), law))
    return distances


def best_of_n(
    policy: Float[Tensor, " Y"], rewards: Float[Tensor, " Y"], num_candidates: int
) -> Float[Tensor, " Y"]:
    """Log-probabilities of the candidate of largest reward among n independent draws.

        P(best is y) = P(reward <= reward(y))^n - P(reward < reward(y))^n

    Rewards are distinct.
    """
    order = rewards.argsort()
    below = policy.exp()[order].cumsum(dim=0) ** num_candidates
    probabilities = torch.empty_like(policy)
    probabilities[order] = below.diff(prepend=below.new_zeros(1))
    return probabilities.log()


def limits_of_the_temperature() -> Evidence:
    """Chi-square of one kept of four, at extreme temperatures and at one between."""
    residuals: list[float] = []
    controls: list[float] = []
    num_candidates, num_repeats = 4, 2_000
    for seed in _SEEDS:
        policy, rewards = _policy_and_rewards(seed)
        best = best_of_n(policy, rewards, num_candidates)
        for beta in (1e-9, 1.0, 1e9):
            generator = stream(seed, "laboratory", "temperature", str(beta))
            groups = torch.multinomial(
                policy.exp().expand(num_repeats, -1),
                num_candidates,
                replacement=True,
                generator=generator,
            )
            kept = [
                group[accepted(rewards[group], beta=beta, num_wanted=1, generator=generator)]
                for group in groups
            ]
            counts = _counts(torch.cat(kept))
            if beta == 1.0:
                controls += [excess_chi_square(counts, law) for law in (best, policy)]
            else:
                residuals.append(excess_chi_square(counts, best if beta < 1 else policy))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"{num_repeats:,} times one of {num_candidates} candidates, beta = 1e-9 and 1e9: excess "
        f"chi-square at most {max(residuals):.1f} deviations; at beta = 1 from either law "
        f"{min(controls):.0f} or more",
    )


_SOURCE = "Liu et al. 2023, arXiv:2309.06657"

THEOREMS = (
    Theorem(
        name="rso_acceptance_tilts_the_policy",
        claim="The policy times the probability of acceptance, over the acceptance rate, is "
        "policy * exp(reward / beta), normalized, for any bound on rewards.",
        control="It is the law of 1.2 beta.",
        source=_SOURCE,
        methods=("rso",),
        tolerance=1e-12,
        check=acceptance_tilts_the_policy,
    ),
    Theorem(
        name="rso_accepts_the_tilted_law",
        claim="What one pass accepts of many candidates is a sample of policy * exp(reward / "
        "beta).",
        control="It is a sample of the law of 1.2 beta.",
        source=_SOURCE,
        methods=("rso",),
        tolerance=5.0,
        check=one_round_accepts_the_tilted_law,
    ),
    Theorem(
        name="rso_acceptance_rate",
        claim="A pass accepts the share E[exp((reward - largest reward) / beta)] of the "
        "candidates.",
        control="It accepts the share exp((E[reward] - largest reward) / beta).",
        source=_SOURCE,
        methods=("rso",),
        tolerance=4.0,
        check=share_accepted,
    ),
    Theorem(
        name="rso_passes_keep_the_law",
        claim="Repeated passes over many candidates keep a sample of the tilted law as long as no "
        "more are wanted than one pass accepts.",
        control="They keep one when more are wanted.",
        source=f"{_SOURCE}; the condition is derived here",
        methods=("rso",),
        tolerance=5.0,
        check=passes_keep_the_law,
    ),
    Theorem(
        name="rso_limits_of_the_temperature",
        claim="One kept of n candidates is the best of n as beta goes to 0, and a sample of the "
        "policy as beta grows.",
        control="It is either of them at beta = 1.",
        source=_SOURCE,
        methods=("rso",),
        tolerance=5.0,
        check=limits_of_the_temperature,
    ),
)
