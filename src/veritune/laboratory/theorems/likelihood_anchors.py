"""Objectives that hold the policy by the likelihood of given text: RPO's game, and both limits of
MPO.

RPO's loss is a game in disguise. A policy gains reward over the base policy, less a KL penalty, and
an opponent chooses the reward, paying for how badly it explains the preferences:

    value(policy, reward) = eta * (E_policy[reward] - E_base[reward] - beta * KL(policy||reference))
                            + E[-log sigmoid(reward(chosen) - reward(rejected))]

The game is played here in the space of rewards, where nothing is known of RPO's loss.
"""

import dataclasses
import math
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.laboratory.distances import total_variation
from veritune.laboratory.extremes import largest_residual, smallest_control
from veritune.laboratory.minimize import Minimum, is_certified, minimize
from veritune.laboratory.population import PopulationLoss, population_loss
from veritune.laboratory.problems import bradley_terry_problem, cyclic_problem
from veritune.laboratory.theorem import Curve, Evidence, Plot, Theorem
from veritune.objectives.optimum import FiniteProblem, tilted_reference
from veritune.objectives.paired.chosen_nll import chosen_nll_loss, chosen_nll_optimum
from veritune.objectives.paired.dpo import dpo_loss
from veritune.objectives.paired.mpo import mpo_loss
from veritune.objectives.paired.pmle import pmle_loss
from veritune.objectives.paired.rpo import rpo_loss
from veritune.objectives.sft import sft_loss

_SEEDS = (0, 1, 2)
_NUM_COMPLETIONS = 5
_PENALTIES = ((0.1, 0.05), (0.5, 0.2), (1.0, 0.5))
"""Pairs of beta and eta."""


def _is_certified(found: Minimum) -> bool:
    """As near a corner as small weights lead, a flat loss cannot tell a minimum from its limit."""
    return is_certified(found, may_lie_on_boundary=True)


def _problems() -> list[FiniteProblem]:
    """Preferences that follow a reward, and that follow none."""
    makers = (bradley_terry_problem, cyclic_problem)
    return [maker(_NUM_COMPLETIONS, seed) for maker in makers for seed in _SEEDS]


def _certified(found: Minimum) -> float:
    """The least loss; not a number where the certificate does not show that it is one."""
    return found.loss if _is_certified(found) else math.nan


def _distance(found: Minimum, claimed: Float[Tensor, " Y"]) -> float:
    """Total variation from what is claimed; not a number without a certificate."""
    return total_variation(found.policy, claimed) if _is_certified(found) else math.nan


class _Game(NamedTuple):
    """What a policy and a reward make of each other; the base law is that of chosen completions."""

    problem: FiniteProblem
    beta: float
    eta: float
    base: Float[Tensor, " Y"]
    misfit: PopulationLoss
    """How badly a reward explains the preferences."""

    def value(self, policy: Float[Tensor, " Y"], reward: Float[Tensor, " Y"]) -> Tensor:
        """What the policy wants large and the reward small."""
        law = policy.exp()
        penalty = self.beta * (law * (policy - self.problem.reference)).sum()
        gain = (law * reward).sum() - (self.base.exp() * reward).sum() - penalty
        return self.eta * gain + self.misfit(reward)

    def best_response(self, reward: Float[Tensor, " Y"]) -> Float[Tensor, " Y"]:
        """The policy that maximizes reward less penalty."""
        return tilted_reference(self.problem.reference, reward / self.beta)

    def worst_reward(self) -> Minimum:
        """The reward, up to a constant, against which the best response has the least value."""

        def least_value(reward: Tensor) -> Tensor:
            return self.value(self.best_response(reward), reward)

        return minimize(least_value, self.problem.reference)

    def worst_case(self, policy: Float[Tensor, " Y"]) -> Minimum:
        """The reward that leaves a policy with the least value."""
        return minimize(partial(self.value, policy), self.problem.reference)

    def best_case(self, reward: Float[Tensor, " Y"]) -> Minimum:
        """The policy that makes the most of a reward, by search; its loss is minus the value."""
        return minimize(lambda policy: -self.value(policy, reward), self.problem.reference)

    def policy_of_rpo(self) -> Minimum:
        """The minimizer of RPO's loss on the same data."""
        expected = population_loss(rpo_loss, self.problem, beta=self.beta, eta=self.eta)
        return minimize(expected, self.problem.reference)

    def policy_of_dpo(self) -> Minimum:
        """The minimizer of DPO's loss on the same data."""
        return minimize(
            population_loss(dpo_loss, self.problem, beta=self.beta), self.problem.reference
        )


def _misfit(problem: FiniteProblem) -> PopulationLoss:
    """The loss of DPO where the reward is the log-ratio and beta is one."""
    flat = dataclasses.replace(problem, reference=torch.zeros_like(problem.reference))
    return population_loss(dpo_loss, flat, beta=1.0)


def _games() -> list[_Game]:
    return [
        _Game(problem, beta, eta, chosen_nll_optimum(problem), _misfit(problem))
        for problem in _problems()
        for beta, eta in _PENALTIES
    ]


_GAMES = (
    f"Bradley-Terry and cyclic preferences, Y = {_NUM_COMPLETIONS}, (beta, eta) = "
    f"{', '.join(map(str, _PENALTIES))}"
)


def rpo_answers_the_worst_reward() -> Evidence:
    """RPO's minimizer against the best response to the worst reward."""
    residuals: list[float] = []
    controls: list[float] = []
    for game in _games():
        found = game.policy_of_rpo()
        other = game._replace(base=game.problem.reference)
        for played, values in ((game, residuals), (other, controls)):
            worst = played.worst_reward()
            claimed = played.best_response(worst.policy)
            values.append(_distance(found, claimed) if _is_certified(worst) else math.nan)
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"{_GAMES}: TV at most {max(residuals):.1e}; where the base policy is the reference "
        f"{min(controls):.4f} to {max(controls):.4f}",
    )


def _duality_gap(game: _Game, minimax: float, policy: Minimum) -> float:
    """How far the worst case of a policy is below the value of the game."""
    worst = game.worst_case(policy.policy)
    return abs(_certified(worst) - minimax) if _is_certified(policy) else math.nan


def rpo_loss_is_the_value_of_the_game() -> Evidence:
    """Minimax and maximin values, and RPO's least loss."""
    residuals: list[float] = []
    controls: list[float] = []
    values: list[float] = []
    for game in _games():
        worst, rpo = game.worst_reward(), game.policy_of_rpo()
        minimax = _certified(worst)
        values.append(minimax)
        # RPO leaves out the likelihood of the base law under the reference, which is fixed.
        constant = game.eta * game.beta * float((game.base.exp() * game.problem.reference).sum())
        residuals += [
            abs(_certified(rpo) + constant - minimax),
            abs(-_certified(game.best_case(worst.policy)) - minimax),
            _duality_gap(game, minimax, rpo),
        ]
        controls.append(_duality_gap(game, minimax, game.policy_of_dpo()))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"{_GAMES}: values {min(values):.3f} to {max(values):.3f}; RPO's loss, the worst case of "
        f"its policy and the best of the worst reward differ from them by at most "
        f"{max(residuals):.1e}; the worst case of DPO's policy is {min(controls):.1e} to "
        f"{max(controls):.1e} lower",
    )


def _with_text(loss: PopulationLoss, text: PopulationLoss, weight: float) -> PopulationLoss:
    return lambda policy: loss(policy) + weight * text(policy)


def _other_text(problem: FiniteProblem, seed: int) -> FiniteProblem:
    """The same preferences, and demonstrations from a law of their own."""
    law = bradley_terry_problem(_NUM_COMPLETIONS, seed + 100).reference
    return dataclasses.replace(problem, desirable=law)


def anchors_hold_at_the_text() -> Evidence:
    """Minimizers of RPO and of MPO with a large weight on the likelihood of text."""
    weight = 1e5
    residuals: list[float] = []
    controls: list[float] = []
    seen: list[float] = []
    for number, problem in enumerate(_problems()):
        chosen = chosen_nll_optimum(problem)
        own = _other_text(problem, number)
        assert own.desirable is not None, "the text has a law"
        preference = population_loss(mpo_loss, problem, reference_weight=0.0)
        for loss, text in (
            (population_loss(mpo_loss, problem, reference_weight=weight), chosen),
            (population_loss(rpo_loss, problem, beta=0.5, eta=weight / 0.5), chosen),
            (_with_text(preference, population_loss(sft_loss, own), weight), own.desirable),
        ):
            # The gradient grows with the weight, and so does its rounding.
            found = minimize(_scaled(loss, 1 / weight), problem.reference)
            residuals.append(_distance(found, text))
            controls.append(_distance(found, problem.reference))
        seen.append(_distance(_mpo(problem, 3.0), chosen))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"weight {weight:g}; RPO and MPO with the chosen completions as text, and MPO with "
        f"demonstrations: TV at most {max(residuals):.1e}; from the reference {min(controls):.2f} "
        f"to {max(controls):.2f}; at weight 3 MPO is TV {min(seen):.3f} to {max(seen):.3f} from "
        "the law of chosen completions",
    )


def _scaled(loss: PopulationLoss, factor: float) -> PopulationLoss:
    return lambda policy: factor * loss(policy)


def mpo_without_text_keeps_the_best() -> Evidence:
    """What MPO leaves to all completions but the best when text hardly counts, and PMLE leaves."""
    weight, num_starts = 1e-7, 5
    residuals: list[float] = []
    controls: list[float] = []
    seen: list[float] = []
    for seed in _SEEDS:
        problem = bradley_terry_problem(_NUM_COMPLETIONS, seed)
        text = population_loss(chosen_nll_loss, problem)
        likelihood = _with_text(population_loss(pmle_loss, problem, gamma=1.0), text, weight)
        probability = population_loss(mpo_loss, problem, reference_weight=weight)
        # MPO's loss is not convex, so it is searched from several laws.
        for number in range(num_starts):
            start = bradley_terry_problem(_NUM_COMPLETIONS, 100 + number).reference
            for loss, values in ((probability, residuals), (likelihood, controls)):
                values.append(_lost_by_the_best(problem, minimize(loss, start)))
        seen.append(1 - _lost_by_the_best(problem, _mpo(problem, 1e-4)))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"weight {weight:g}, from {num_starts} laws each: the others have at most "
        f"{max(residuals):.1e}, under PMLE {min(controls):.2f} to {max(controls):.2f}; at 1e-4 the "
        f"best has {min(seen):.3f} to {max(seen):.3f}",
        (_weight_plot(),),
    )


def _mpo(problem: FiniteProblem, weight: float) -> Minimum:
    expected = population_loss(mpo_loss, problem, reference_weight=weight)
    return minimize(expected, problem.reference)


def _lost_by_the_best(problem: FiniteProblem, found: Minimum) -> float:
    """Probability of all completions but the one of largest reward."""
    assert problem.reward is not None, "the best is the one of largest reward"
    others = torch.arange(problem.num_completions) != problem.reward.argmax()
    return float(found.policy[others].exp().sum()) if _is_certified(found) else math.nan


def _weight_plot() -> Plot:
    problem = bradley_terry_problem(_NUM_COMPLETIONS, seed=0)
    text = chosen_nll_optimum(problem)
    weights = [10 ** (power / 2) for power in range(-12, 5)]
    minima = [_mpo(problem, weight) for weight in weights]
    lost = [_lost_by_the_best(problem, found) for found in minima]
    away = [_distance(found, text) for found in minima]
    return Plot(
        "MPO between the best completion and the text",
        "weight of the text",
        "probability",
        (
            Curve("of all but the best completion", tuple(zip(weights, lost, strict=True))),
            Curve("TV from the law of the text", tuple(zip(weights, away, strict=True))),
        ),
        log_x=True,
        log_y=True,
        note="Each end is reached in proportion to the weight, or to one over it.",
    )


_RPO = "Liu et al. 2024, arXiv:2405.16436"
_MPO = "Jiang, Huang & Wei 2023, arXiv:2312.16430"

THEOREMS: tuple[Theorem, ...] = (
    Theorem(
        name="rpo_answers_the_worst_reward",
        claim="RPO converges to the best response to the worst reward that still explains the "
        "preferences, relative to the policy of the chosen completions.",
        control="It does so relative to the reference.",
        source=f"{_RPO}, the minimax problem and its closed form",
        methods=("rpo",),
        tolerance=1e-8,
        check=rpo_answers_the_worst_reward,
    ),
    Theorem(
        name="rpo_is_a_minimax_policy",
        claim="RPO's least loss is the value of its game, minimax and maximin are equal, and no "
        "policy has a better worst case than RPO's.",
        control="DPO's policy has the same worst case.",
        source=f"{_RPO}, equivalence of maximin and minimax",
        methods=("rpo",),
        contrasts=("dpo",),
        tolerance=1e-10,
        check=rpo_loss_is_the_value_of_the_game,
    ),
    Theorem(
        name="text_anchors_hold_at_the_text",
        claim="As the weight of their likelihood term grows, RPO and MPO converge to the law of "
        "the text in it.",
        control="They converge to the reference, as with a KL penalty.",
        source=f"{_RPO}; {_MPO}; limits derived here",
        methods=("rpo", "mpo", "sft"),
        tolerance=1e-5,
        check=anchors_hold_at_the_text,
    ),
    Theorem(
        name="mpo_without_text_keeps_the_best",
        claim="As the weight of the text falls to 0, MPO gives all probability to the most "
        "preferred completion.",
        control="So does the logarithm of the same comparison, which is PMLE.",
        source=f"{_MPO}, the abstract; derived here",
        methods=("mpo",),
        contrasts=("pmle",),
        tolerance=1e-3,
        check=mpo_without_text_keeps_the_best,
    ),
)
