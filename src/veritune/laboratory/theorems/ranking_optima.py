"""Objectives on groups: what rankings and contrasts of several completions converge to."""

import dataclasses
import math

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.laboratory.endings import ending
from veritune.laboratory.extremes import largest_residual, smallest_control
from veritune.laboratory.group_draws import GroupDraws, every_group, expected_group_loss
from veritune.laboratory.minimize import Minimum, distance_of_minimum, minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import bradley_terry_problem
from veritune.laboratory.rankings import (
    every_ranking,
    expected_ranking_loss,
    wins_in_all_pairs,
    wins_of_first_over_last,
)
from veritune.laboratory.rates import fitted_slope
from veritune.laboratory.theorem import Curve, Evidence, Plot, Theorem
from veritune.objectives.optimum import FiniteProblem, tilted_reference
from veritune.objectives.paired.dpo import dpo_loss, dpo_optimum
from veritune.objectives.scored.infonca import infonca_loss, infonca_optimum
from veritune.objectives.scored.nca_rw import nca_rw_loss
from veritune.objectives.scored.plackett_luce import plackett_luce_loss, plackett_luce_optimum

_NUM_COMPLETIONS = 4
_SEEDS = (0, 1, 2)
_BETA = 0.5
_ALPHA = 0.8
_SIZES = (2, 4, 8, 16, 32, 64, 128)
_LARGE = 4
"""Sizes from this place on are large: the slope is fitted to them."""


def _reward_of(problem: FiniteProblem) -> Float[Tensor, " Y"]:
    assert problem.reward is not None, "rankings and scores follow a reward"
    return problem.reward


def plackett_luce_tilts_the_reference() -> Evidence:
    """Minimizers of Plackett-Luce DPO on rankings of groups from two laws."""
    residuals: list[float] = []
    controls: list[float] = []
    for seed in _SEEDS:
        problem = bradley_terry_problem(_NUM_COMPLETIONS, seed)
        uniform = torch.zeros_like(problem.reference).log_softmax(dim=0)
        for group_size in (2, 3, 4):
            for behavior in (problem.reference, uniform):
                groups = every_group(behavior, group_size)
                rankings = every_ranking(groups, _reward_of(problem))
                loss = expected_ranking_loss(plackett_luce_loss, problem, rankings, beta=_BETA)
                found = minimize(loss, problem.reference)
                claimed = plackett_luce_optimum(problem, beta=_BETA)
                residuals.append(distance_of_minimum(found, claimed, uncertified=math.inf))
                other = plackett_luce_optimum(problem, beta=1.2 * _BETA)
                controls.append(distance_of_minimum(found, other, uncertified=0.0))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"Y = {_NUM_COMPLETIONS}, groups of 2, 3 and 4 from the reference and uniform, every order "
        f"of each, beta = {_BETA:g}: TV at most {max(residuals):.1e}; to the optimum at "
        f"beta = {1.2 * _BETA:g} at least {min(controls):.3f}",
    )


def certain_rankings_have_no_minimizer() -> Evidence:
    """What is left for all but the best completion when rankings are by reward, or drawn."""
    residuals: list[float] = []
    controls: list[float] = []
    for seed in _SEEDS:
        problem = bradley_terry_problem(_NUM_COMPLETIONS, seed)
        for group_size in (2, 3):
            groups = _without_ties(every_group(problem.reference, group_size))
            certain = expected_group_loss(plackett_luce_loss, problem, groups, beta=_BETA)
            drawn = expected_ranking_loss(
                plackett_luce_loss, problem, every_ranking(groups, _reward_of(problem)), beta=_BETA
            )
            endless, rest = (ending(loss, problem.reference) for loss in (certain, drawn))
            left = _all_but_the_first(endless.policy)
            residuals.append(left if endless.kind == "collapses" else math.inf)
            controls.append(_all_but_the_first(rest.policy) if rest.kind == "rests" else 0.0)
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"Y = {_NUM_COMPLETIONS}, groups of 2 and 3: at most {max(residuals):.0e} at time 1e12; "
        f"{min(controls):.2f} to {max(controls):.2f} at the rest point on drawn rankings",
    )


def _without_ties(groups: GroupDraws) -> GroupDraws:
    """Groups of different completions only: equal ones have one score and pull together."""
    ordered = groups.which.sort(dim=1).values
    is_distinct = (ordered.diff(dim=1) > 0).all(dim=1)
    weight = groups.weight[is_distinct]
    return GroupDraws(groups.which[is_distinct], weight / weight.sum())


def _all_but_the_first(policy: Float[Tensor, " Y"]) -> float:
    """Probability of all but the most probable completion."""
    return float(policy.sort().values[:-1].exp().sum())


def all_pairs_of_a_ranking_are_fair() -> Evidence:
    """Minimizers of DPO on all pairs of drawn rankings, and on the first against the last."""
    residuals: list[float] = []
    controls: list[float] = []
    for seed in _SEEDS:
        problem = bradley_terry_problem(_NUM_COMPLETIONS, seed)
        claimed = dpo_optimum(problem, beta=_BETA)
        for group_size in (3, 4):
            groups = _without_ties(every_group(problem.reference, group_size))
            rankings = every_ranking(groups, _reward_of(problem))
            for selected, distances, uncertified in (
                (wins_in_all_pairs, residuals, math.inf),
                (wins_of_first_over_last, controls, 0.0),
            ):
                pairs = _pairs_with(problem, selected(rankings, _NUM_COMPLETIONS))
                found = minimize(population_loss(dpo_loss, pairs, beta=_BETA), pairs.reference)
                distances.append(distance_of_minimum(found, claimed, uncertified=uncertified))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"Y = {_NUM_COMPLETIONS}, groups of 3 and 4 different completions: TV at most "
        f"{max(residuals):.1e}; best against worst {min(controls):.3f} to {max(controls):.3f}",
    )


def _pairs_with(problem: FiniteProblem, wins: Float[Tensor, "Y Y"]) -> FiniteProblem:
    """The problem whose row beats the column this often."""
    both = wins + wins.T
    preferences = torch.where(both > 0, wins / both, 0.5)
    return dataclasses.replace(problem, preferences=preferences, pair_law=both / 2)


def infonca_tilts_the_reference() -> Evidence:
    """Minimizers of InfoNCA at three sizes of groups."""
    residuals: list[float] = []
    controls: list[float] = []
    for seed in _SEEDS:
        problem = bradley_terry_problem(_NUM_COMPLETIONS, seed)
        untempered = tilted_reference(problem.reference, _reward_of(problem) / _ALPHA)
        for group_size in (2, 3, 4):
            groups = every_group(problem.reference, group_size)
            loss = expected_group_loss(infonca_loss, problem, groups, alpha=_ALPHA, beta=_BETA)
            found = minimize(loss, problem.reference)
            claimed = infonca_optimum(problem, alpha=_ALPHA, beta=_BETA)
            residuals.append(distance_of_minimum(found, claimed, uncertified=math.inf))
            controls.append(distance_of_minimum(found, untempered, uncertified=0.0))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"Y = {_NUM_COMPLETIONS}, K = 2, 3 and 4, alpha = {_ALPHA:g}, beta = {_BETA:g}: TV at most "
        f"{max(residuals):.1e}, to the reference tilted by exp(reward / alpha) at least "
        f"{min(controls):.3f}",
    )


def _share_law(groups: GroupDraws, problem: FiniteProblem) -> Float[Tensor, " Y"]:
    """Log of how large a share each completion has in a group's softmax of scores, on average."""
    share = (_reward_of(problem)[groups.which] / _ALPHA).softmax(dim=1)
    law = torch.zeros_like(problem.reference)
    weighted = groups.weight[:, None] * share
    return law.index_add(0, groups.which.flatten(), weighted.flatten()).log()


def _nca_minimum(groups: GroupDraws, problem: FiniteProblem, beta: float) -> Minimum:
    loss = expected_group_loss(nca_rw_loss, problem, groups, alpha=_ALPHA, beta=beta)
    # The law that large groups lead to is near the minimizer, which saves steps.
    start = tilted_reference(problem.reference, _reward_of(problem) / _ALPHA)
    return minimize(loss, start)


def nca_rw_learns_the_expected_share() -> Evidence:
    """Minimizers of NCA on scored groups, at beta = 1 and beside it."""
    residuals: list[float] = []
    controls: list[float] = []
    for seed in _SEEDS:
        problem = bradley_terry_problem(_NUM_COMPLETIONS, seed)
        for group_size in (2, 3, 4):
            groups = every_group(problem.reference, group_size)
            claimed = _share_law(groups, problem)
            found = _nca_minimum(groups, problem, 1.0)
            residuals.append(distance_of_minimum(found, claimed, uncertified=math.inf))
            # At another beta a completion's implicit reward would be its share's log-ratio.
            scaled = tilted_reference(problem.reference, (claimed - problem.reference) / _BETA)
            other = _nca_minimum(groups, problem, _BETA)
            controls.append(distance_of_minimum(other, scaled, uncertified=0.0))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"Y = {_NUM_COMPLETIONS}, K = 2, 3 and 4, alpha = {_ALPHA:g}: TV at most "
        f"{max(residuals):.1e} at beta = 1; at beta = {_BETA:g} {min(controls):.2g} to "
        f"{max(controls):.2g} from the law with that ratio to the power 1 / beta, normalized",
    )


def nca_rw_needs_large_groups() -> Evidence:
    """Distance of NCA's minimizer from the tilted reference, by group size and beta."""
    slopes: dict[float, list[float]] = {1.0: [], _BETA: []}
    curves = []
    for seed in _SEEDS[:2]:
        problem = bradley_terry_problem(3, seed)
        for beta in slopes:
            tilted = tilted_reference(problem.reference, _reward_of(problem) / (_ALPHA * beta))
            distances = [
                distance_of_minimum(
                    _nca_minimum(every_group(problem.reference, size), problem, beta),
                    tilted,
                    uncertified=math.nan,
                )
                for size in _SIZES
            ]
            slope = fitted_slope(_SIZES[_LARGE:], [[distance] for distance in distances[_LARGE:]])
            slopes[beta].append(slope.value)
            points = tuple(zip(map(float, _SIZES), distances, strict=True))
            name = f"beta {beta:g}, seed {seed}: slope {slope.value:.2f}"
            curves.append(Curve(name, points, "marked"))
    seen = "; ".join(
        f"at beta = {beta:g} {', '.join(f'{slope:.3f}' for slope in found)}"
        for beta, found in slopes.items()
    )
    return Evidence(
        largest_residual(abs(slope + 1) for slope in slopes[1.0]),
        smallest_control(abs(slope + 1) for slope in slopes[_BETA]),
        f"Y = 3, alpha = {_ALPHA:g}, every group: slopes from K = {_SIZES[_LARGE]} to "
        f"{_SIZES[-1]} {seen}; TV at K = 2 {min(c.points[0][1] for c in curves):.2f} to "
        f"{max(c.points[0][1] for c in curves):.2f}",
        plots=(
            Plot(
                "NCA on scored groups against the tilted reference",
                "completions in a group K",
                "total variation",
                tuple(curves),
                log_x=True,
                log_y=True,
                note="Small groups do not tell the whole of the reward. At a beta other than 1 a "
                "distance is left.",
            ),
        ),
    )


_NCA = "Chen et al. 2024, arXiv:2402.05369"
_DPO = "Rafailov et al. 2023, arXiv:2305.18290, appendix A.3"

THEOREMS: tuple[Theorem, ...] = (
    Theorem(
        name="plackett_luce_tilts_the_reference",
        claim="On rankings drawn by Plackett-Luce, DPO on rankings converges to the reference "
        "tilted by exp(reward / beta), whatever groups are ranked.",
        control="It converges to that of another beta.",
        source=_DPO,
        methods=("plackett_luce",),
        tolerance=1e-8,
        check=plackett_luce_tilts_the_reference,
    ),
    Theorem(
        name="certain_rankings_have_no_minimizer",
        claim="On rankings by the reward itself, DPO on rankings has no minimizer and gives all "
        "probability to the best completion.",
        control="It does so on rankings drawn by Plackett-Luce.",
        source=f"derived here from {_DPO}",
        methods=("plackett_luce",),
        tolerance=1e-9,
        check=certain_rankings_have_no_minimizer,
    ),
    Theorem(
        name="all_pairs_of_a_ranking_are_fair",
        claim="On all pairs of rankings drawn by Plackett-Luce, DPO converges to the reference "
        "tilted by exp(reward / beta).",
        control="It does so on the best of each group against the worst.",
        source="derived here: Plackett-Luce pairs are Bradley-Terry pairs, selected ones are not",
        methods=("dpo",),
        tolerance=1e-8,
        check=all_pairs_of_a_ranking_are_fair,
    ),
    Theorem(
        name="infonca_tilts_the_reference",
        claim="At any size of groups InfoNCA converges to the reference tilted by "
        "exp(reward / (alpha beta)).",
        control="It converges to the reference tilted by exp(reward / alpha), as NCA aims to.",
        source=_NCA,
        methods=("infonca",),
        tolerance=1e-8,
        check=infonca_tilts_the_reference,
    ),
    Theorem(
        name="nca_rw_learns_the_expected_share",
        claim="At beta = 1 NCA on groups of K converges to the reference times K times a "
        "completion's expected share in the softmax of a group's scores.",
        control="At another beta it converges to the reference times that ratio to the power "
        "1 / beta, normalized.",
        source=f"{_NCA}; for finite groups derived here",
        methods=("nca_rw",),
        tolerance=1e-8,
        check=nca_rw_learns_the_expected_share,
    ),
    Theorem(
        name="nca_rw_needs_large_groups",
        claim="That law comes as near as 1 / K to the reference tilted by exp(score / alpha) as "
        "groups grow.",
        control="At beta = 1/2 NCA comes as near as 1 / K to the reference tilted by exp(score / "
        "(alpha beta)).",
        source=f"{_NCA}; the rate is measured here",
        methods=("nca_rw",),
        tolerance=0.04,
        check=nca_rw_needs_large_groups,
    ),
)
