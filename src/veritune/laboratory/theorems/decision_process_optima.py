"""OptiDICE: the optimum that its dual finds, for decision processes and for one prompt."""

import dataclasses
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.laboratory.decision_processes import (
    DecisionProcess,
    bandit,
    flow_gap,
    occupancy,
    optimal_policy,
    policy_of_occupancy,
    random_policy,
    random_process,
)
from veritune.laboratory.distances import total_variation
from veritune.laboratory.extremes import largest_residual, smallest_control
from veritune.laboratory.group_draws import (
    GroupDraws,
    every_group,
    expected_group_loss,
    proportional_group,
)
from veritune.laboratory.minimize import certified_policy, minimize
from veritune.laboratory.optidice import OptimalOccupancy, optimal_occupancy, regularized_reward
from veritune.laboratory.rates import fitted_slope
from veritune.laboratory.theorem import Curve, Evidence, Plot, Theorem
from veritune.objectives.divergences import CHI_SQUARE, KL, SOFT_CHI_SQUARE, Divergence
from veritune.objectives.optimum import FiniteProblem, tilted_reference
from veritune.objectives.scored.optidice_chi_square import optidice_chi_square_loss
from veritune.objectives.scored.optidice_kl import optidice_kl_loss
from veritune.objectives.scored.optidice_soft_chi_square import optidice_soft_chi_square_loss
from veritune.ranges import Positive
from veritune.seeds import stream

_SEEDS = (0, 1, 2)
_ALPHAS = (0.05, 0.3, 3.0)
_DIVERGENCES = {
    "optidice_kl": KL,
    "optidice_chi_square": CHI_SQUARE,
    "optidice_soft_chi_square": SOFT_CHI_SQUARE,
}
_LOSSES: dict[str, Callable[..., Tensor]] = {
    "optidice_kl": optidice_kl_loss,
    "optidice_chi_square": optidice_chi_square_loss,
    "optidice_soft_chi_square": optidice_soft_chi_square_loss,
}
_COUNTS = (5, 12, 2, 9, 4)
"""How often each of five completions is in a group of 32 drawn proportionally."""

_GROUP_SIZES = (2, 4, 8, 16, 32, 64)


@dataclasses.dataclass(frozen=True)
class _Case:
    """A process of 5 states, 3 actions and a discount of 0.9, with data of a random policy."""

    process: DecisionProcess
    data: Float[Tensor, "S A"]
    alpha: float
    divergence: Divergence

    def optimum(self, *, stretch: float = 1.0, max_steps: int = 1000) -> OptimalOccupancy:
        """The optimum for alpha times this factor, or where the search is after so many steps."""
        return optimal_occupancy(
            self.process,
            self.data,
            alpha=stretch * self.alpha,
            divergence=self.divergence,
            max_steps=max_steps,
        )


def _cases() -> Iterator[_Case]:
    for seed in _SEEDS:
        process = random_process(5, 3, seed, gamma=0.9)
        data = occupancy(process, random_policy(5, 3, seed))
        for alpha in _ALPHAS:
            for divergence in _DIVERGENCES.values():
                yield _Case(process, data, alpha, divergence)


_SETTINGS = "5 states, 3 actions, discount 0.9, alpha 0.05, 0.3 and 3, three divergences"


def room_above(
    process: DecisionProcess,
    data: Float[Tensor, "S A"],
    visits: Float[Tensor, "S A"],
    *,
    alpha: Positive,
    divergence: Divergence,
) -> float:
    """How much more of the regularized reward any policy at all can have than these visits.

    The regularized reward is concave in the visits, so it lies below its tangent, and the tangent
    is a linear program over occupancies, which policy iteration solves exactly:

        reward'(x, a) = reward(x, a) - alpha * f'(visits(x, a) / data(x, a))
        room          = largest sum of d * reward' over occupancies d, less that of the visits

    No dual variable of OptiDICE is involved.
    """
    tangent = process.reward - alpha * divergence.derivative(visits / data)
    linear = dataclasses.replace(process, reward=tangent)
    best = occupancy(linear, optimal_policy(linear))
    return float(((best - visits) * tangent).sum())


def _slack(case: _Case, found: OptimalOccupancy) -> float:
    """The largest of what is zero at a saddle point: flow gap, mass missing, duality gap."""
    return largest_residual(
        [
            float(flow_gap(case.process, found.occupancy).abs().max()),
            abs(float(found.occupancy.sum()) - 1),
            abs(found.dual - found.primal),
        ]
    )


def dual_is_tight() -> Evidence:
    """Flow, mass and duality gap at the minimizer of the dual."""
    residuals = [_slack(case, case.optimum()) for case in _cases()]
    # The search starts from the values of the best policy, the potential without a penalty.
    controls = [_slack(case, case.optimum(max_steps=0)) for case in _cases()]
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"{_SETTINGS}: at most {max(residuals):.1e}; at the values of the best policy "
        f"{min(controls):.2f} or more",
    )


def policy_has_the_occupancy() -> Evidence:
    """Occupancies of policies read off the optimum, against the optimal occupancy."""
    residuals: list[float] = []
    controls: list[float] = []
    for case in _cases():
        found = case.optimum()
        for policy, distances in (
            (found.policy, residuals),
            (policy_of_occupancy(found.weight), controls),
        ):
            visits = occupancy(case.process, policy)
            distances.append(float((visits - found.occupancy).abs().max()))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"{_SETTINGS}: visits differ by at most {max(residuals):.1e}; by {min(controls):.2g} or "
        "more for weights without the law of the data",
    )


def no_policy_is_better() -> Evidence:
    """The most that any policy can gain over the optimum, by a linear program."""
    residuals: list[float] = []
    controls: list[float] = []
    for case in _cases():
        for stretch, room in ((1.0, residuals), (1.2, controls)):
            room.append(
                room_above(
                    case.process,
                    case.data,
                    case.optimum(stretch=stretch).occupancy,
                    alpha=case.alpha,
                    divergence=case.divergence,
                )
            )
    first = next(case for case in _cases() if case.alpha == 0.3)
    other = [
        regularized_reward(
            first.process,
            first.data,
            occupancy(first.process, random_policy(5, 3, seed)),
            alpha=first.alpha,
            divergence=first.divergence,
        )
        for seed in range(100, 300)
    ]
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"{_SETTINGS}: at most {max(residuals):.1e} of reward a step; {min(controls):.1e} or more "
        f"at the optimum of 1.2 alpha. One case: {first.optimum().primal:.3f}, the best of 200 "
        f"random policies {max(other):.3f}",
        plots=(_reward_against_alpha(first.process, first.data),),
    )


def _reward_against_alpha(process: DecisionProcess, data: Float[Tensor, "S A"]) -> Plot:
    alphas = [10 ** (k / 4) for k in range(-8, 9)]

    def reward(visits: Float[Tensor, "S A"]) -> float:
        return float((visits * process.reward).sum())

    curves = []
    for name, divergence in _DIVERGENCES.items():
        earned = [
            reward(optimal_occupancy(process, data, alpha=alpha, divergence=divergence).occupancy)
            for alpha in alphas
        ]
        curves.append(Curve(name, tuple(zip(alphas, earned, strict=True)), "marked"))
    best = reward(occupancy(process, optimal_policy(process)))
    for name, level in (("best policy", best), ("data", reward(data))):
        curves.append(Curve(name, tuple((alpha, level) for alpha in alphas), "guide"))
    return Plot(
        "Reward of OptiDICE's policy",
        "alpha",
        "expected reward a step",
        tuple(curves),
        log_x=True,
        note="From the best policy of all to the policy of the data as alpha grows.",
    )


def _one_prompt(seed: int) -> FiniteProblem:
    generator = stream(seed, "laboratory", "bandit")
    counts = torch.tensor(_COUNTS, dtype=torch.float64)
    return FiniteProblem(
        reference=(counts / counts.sum()).log(),
        reward=torch.randn(len(_COUNTS), generator=generator, dtype=torch.float64),
    )


def _of_bandit(
    problem: FiniteProblem, divergence: Divergence, *, alpha: Positive
) -> Float[Tensor, " Y"]:
    """Log-probabilities of the optimum for one prompt; not a number where it is not reached."""
    assert problem.reward is not None, "a bandit has rewards"
    data = problem.reference.exp()[None]
    found = optimal_occupancy(bandit(problem.reward), data, alpha=alpha, divergence=divergence)
    if not found.gradient_norm < 1e-10:
        return torch.full_like(problem.reference, torch.nan)
    return found.policy[0].log()


def kl_bandit_is_the_tilted_reference() -> Evidence:
    """The optimum for one prompt with KL, against the optimum of RLHF."""
    residuals: list[float] = []
    controls: list[float] = []
    for seed in _SEEDS:
        problem = _one_prompt(seed)
        assert problem.reward is not None, "a bandit has rewards"
        for alpha in (0.3, 1.0):
            claimed = tilted_reference(problem.reference, problem.reward / alpha)
            for divergence, distances in ((KL, residuals), (SOFT_CHI_SQUARE, controls)):
                found = _of_bandit(problem, divergence, alpha=alpha)
                distances.append(total_variation(found, claimed))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"Y = {len(_COUNTS)}, alpha = 0.3 and 1: TV at most {max(residuals):.1e}; with the soft "
        f"chi-square {min(controls):.2g} or more",
    )


def _learned(
    name: str, problem: FiniteProblem, groups: GroupDraws, *, alpha: Positive
) -> Float[Tensor, " Y"]:
    """The minimizer of an objective over groups; not a number without a certificate."""
    loss = expected_group_loss(_LOSSES[name], problem, groups, alpha=alpha)
    # Chi-square leaves completions out.
    return certified_policy(minimize(loss, problem.reference), may_lie_on_boundary=True)


def losses_find_the_bandit_optimum() -> Evidence:
    """Minimizers of the three losses on a group drawn proportionally, and on all pairs."""
    residuals: list[float] = []
    controls: list[float] = []
    large = proportional_group(torch.tensor(_COUNTS))
    for seed in _SEEDS:
        problem = _one_prompt(seed)
        small = every_group(problem.reference, 2)
        for alpha in (0.3, 1.0):
            for name, divergence in _DIVERGENCES.items():
                claimed = _of_bandit(problem, divergence, alpha=alpha)
                for groups, distances in ((large, residuals), (small, controls)):
                    found = _learned(name, problem, groups, alpha=alpha)
                    distances.append(total_variation(found, claimed))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"Y = {len(_COUNTS)}, a group of {sum(_COUNTS)}, alpha = 0.3 and 1, three divergences: TV "
        f"at most {max(residuals):.1e}; over all groups of two {min(controls):.2g} to "
        f"{max(controls):.2g}",
    )


def _errors_of_groups(name: str, lowest_reward: float) -> list[float]:
    """Distance from the optimum for groups of each of `_GROUP_SIZES`, exact over all groups."""
    problem = FiniteProblem(
        reference=torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64).log(),
        reward=torch.tensor([0.3, 1.2, lowest_reward], dtype=torch.float64),
    )
    claimed = _of_bandit(problem, _DIVERGENCES[name], alpha=1.0)
    return [
        total_variation(
            _learned(name, problem, every_group(problem.reference, size), alpha=1.0), claimed
        )
        for size in _GROUP_SIZES
    ]


def error_of_groups() -> Evidence:
    """Distance of the minimizer over groups of K from the optimum, fitted by a power of K."""
    # Under chi-square the third completion has weight 0 below the mean reward less alpha. At
    # exactly that reward half of the groups drop it, and the others keep about 1 / sqrt(K) of it.
    edge = (0.5 * 0.3 + 0.2 * 1.2 - 1) / (1 - 0.3)
    settings = [(name, reward) for reward in (-0.2, -0.5) for name in _DIVERGENCES]
    slopes: list[float] = []
    curves: list[Curve] = []
    for name, reward in [*settings, ("optidice_chi_square", edge)]:
        errors = _errors_of_groups(name, reward)
        slope = fitted_slope(_GROUP_SIZES[-3:], [[error] for error in errors[-3:]])
        slopes.append(slope.value)
        if reward != -0.5:
            at_edge = " at the edge" if reward == edge else ""
            points = [(float(k), error) for k, error in zip(_GROUP_SIZES, errors, strict=True)]
            curves.append(
                Curve(f"{name}{at_edge}: slope {slope.value:.3f}", tuple(points), "marked")
            )
    return Evidence(
        largest_residual(abs(slope + 1) for slope in slopes[:-1]),
        smallest_control([abs(slopes[-1] + 1)]),
        f"Y = 3, alpha = 1, all groups of K = {_GROUP_SIZES[-3]} to {_GROUP_SIZES[-1]}: slopes "
        f"{min(slopes[:-1]):.3f} to {max(slopes[:-1]):.3f}; at the edge {slopes[-1]:.3f}, on its "
        "way to -1/2",
        plots=(
            Plot(
                "Error of small groups",
                "completions in a group K",
                "total variation to the optimum of the prompt",
                tuple(curves),
                log_x=True,
                log_y=True,
                note=f"Exact over all groups. Slopes are of K = {_GROUP_SIZES[-3]} and more. At "
                "the edge a completion has weight 0, and any better reward would give it some.",
            ),
        ),
    )


_SOURCE = "Lee et al. 2021, arXiv:2106.10783"

THEOREMS = (
    Theorem(
        name="optidice_dual_is_tight",
        claim="At the minimizer of the dual the weighted data are an occupancy: they sum to one, "
        "what flows into each state flows out, and the primal there equals the dual.",
        control="So it is at the values of the best policy, the potential without a penalty.",
        source=_SOURCE,
        methods=("optidice",),
        tolerance=1e-10,
        check=dual_is_tight,
    ),
    Theorem(
        name="optidice_policy_has_its_occupancy",
        claim="The policy proportional to weight * data in each state has the optimal occupancy.",
        control="The policy proportional to the weight has it.",
        source=_SOURCE,
        methods=("optidice",),
        tolerance=1e-10,
        check=policy_has_the_occupancy,
    ),
    Theorem(
        name="optidice_beats_every_policy",
        claim="No policy has more reward less alpha times its divergence from the data than the "
        "one that OptiDICE extracts.",
        control="None has more than the one extracted with 1.2 alpha.",
        source=f"{_SOURCE}; the linear program that bounds all policies is ours",
        methods=("optidice",),
        tolerance=1e-9,
        check=no_policy_is_better,
    ),
    Theorem(
        name="optidice_kl_tilts_a_bandit",
        claim="For one prompt, OptiDICE with KL ends at the optimum of RLHF, the reference times "
        "exp(reward / alpha), normalized.",
        control="With the soft chi-square it does, too.",
        source=f"derived here; {_SOURCE}",
        methods=("optidice",),
        tolerance=1e-10,
        check=kl_bandit_is_the_tilted_reference,
    ),
    Theorem(
        name="optidice_losses_find_its_optimum",
        claim="In the limit of large groups, weighted imitation by each of the three losses ends "
        "at the optimum of OptiDICE for one prompt.",
        control="It does so with groups of two.",
        source=f"derived here; {_SOURCE}",
        methods=tuple(_LOSSES),
        tolerance=1e-8,
        check=losses_find_the_bandit_optimum,
    ),
    Theorem(
        name="optidice_error_is_one_over_k",
        claim="With groups of K completions, the minimizers of the three losses approach the "
        "optimum of OptiDICE for one prompt as 1/K, unless chi-square gives a completion a weight "
        "on the edge of zero.",
        control="With such a weight, too.",
        source="derived and measured here",
        methods=tuple(_LOSSES),
        tolerance=0.03,
        check=error_of_groups,
    ),
)
