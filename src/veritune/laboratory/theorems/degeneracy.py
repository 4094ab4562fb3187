"""Who collapses: where objectives end when every preference is possible, cyclic, or certain.

With ever more data an objective sees the population, and these are the policies that training on it
leads to: at rest, without some completions, or with all probability on one.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from veritune.laboratory.distances import total_variation
from veritune.laboratory.endings import (
    AT_REST,
    Ending,
    Kind,
    ending,
    ending_with_kinks,
    follow,
)
from veritune.laboratory.extremes import largest_residual, smallest_control
from veritune.laboratory.outcomes import distinct_pairs, with_labels
from veritune.laboratory.population import PopulationLoss, population_loss
from veritune.laboratory.problems import (
    bradley_terry_problem,
    cyclic_problem,
    deterministic_problem,
)
from veritune.laboratory.theorem import Curve, Evidence, Plot, Theorem
from veritune.objectives.catalog import CATALOG
from veritune.objectives.optimum import FiniteProblem
from veritune.objectives.paired.rdpo import rdpo_loss
from veritune.seeds import stream

NUM_COMPLETIONS = 5
SCALE = 0.5
"""beta, gamma or tau of every objective that has one: the optimum under Bradley-Terry preferences
is then neither near the reference nor near one completion."""

SETTINGS: dict[str, dict[str, Any]] = {
    "dpo": {"beta": SCALE},
    "rso_sigmoid_norm": {"gamma": SCALE},
    "robust_dpo": {"beta": SCALE, "epsilon": 0.1},
    "rdpo": {"beta": SCALE, "epsilon": 0.1},
    "ipo": {"tau": SCALE},
    "exo_pref": {"beta": SCALE, "epsilon": 1e-3},
    "exo_pref_official": {"beta_pi": SCALE},
    "ada_dpo": {"beta": SCALE},
    "ada_dpo_quadratic": {"beta": SCALE},
    "minor_dpo": {"beta": SCALE},
    "rpo": {"beta": SCALE, "eta": 0.005},
    "bco_pair": {"beta": SCALE},
    "nca": {"beta": SCALE},
    "sppo": {"beta": SCALE},
    "hinge_norm": {"gamma": SCALE},
    "slic": {"gamma": SCALE},
    "slic_hf": {"delta": 1.0, "sft_weight": 0.1},
    "pmle": {"gamma": SCALE},
    "pmle_kl": {"gamma": SCALE, "kl_weight": 0.1},
    "simpo": {"beta": SCALE, "gamma": 1.0},
    "orpo": {"odds_weight": 0.1},
    "mpo": {"reference_weight": 0.1},
    "chosen_nll": {},
    "kto": {"beta": SCALE},
    "bco": {"beta": SCALE},
    "rdro": {"alpha": 0.5},
    "ddro": {"t": 0.5},
}
"""The objectives that are looked at. Completions have one token, so that those per token are left
out: `ipo_mean` ends where `ipo` does, and so on. Variants of RDRO and DDRO have their theorems."""

MAKERS: dict[str, Callable[[int, int], FiniteProblem]] = {
    "bradley_terry": bradley_terry_problem,
    "cyclic": cyclic_problem,
    "deterministic": deterministic_problem,
}
"""Preferences that follow a reward, that go around a circle, and of which the better side always
wins."""

_WITH_KINKS = frozenset({"minor_dpo", "hinge_norm", "slic", "slic_hf"})
_CLAIMED_FOR_ALL_PREFERENCES = frozenset({"ipo", "chosen_nll", "rdro", "ddro"})
_FINDS_THE_BEST = (
    "dpo",
    "rso_sigmoid_norm",
    "pmle",
    "simpo",
    "rdpo",
    "ada_dpo",
)
_RESTS = ("ipo", "sppo", "robust_dpo", "exo_pref", "exo_pref_official", "slic", "hinge_norm")
_LOSES_THE_WORST = ("chosen_nll", "slic_hf", "orpo", "mpo", "nca", "minor_dpo", "rdro")
_KEEPS_WHAT_CAN_WIN = tuple(name for name in SETTINGS if name not in ("kto", "rdpo"))
_PLOTTED = ("dpo", "bco_pair", "pmle", "rpo", "exo_pref", "robust_dpo", "rdro", "nca", "ipo")


@dataclasses.dataclass(frozen=True)
class EndingRow:
    """Where one objective ends under one kind of preferences."""

    objective: str
    """Its name in the catalog."""

    preferences: str
    """`bradley_terry`, `cyclic` or `deterministic`."""

    ending: Kind
    """`rests` at a policy that keeps every completion, `drops` some of them, `collapses` on one."""

    largest_probability: float
    """Of the most probable completion at the end."""

    num_kept: int
    """Completions whose probability does not go to zero."""

    distance_to_claim: float | None
    """Total variation from the optimum that the objective's card claims for these preferences; None
    if it claims none."""


def where_each_ends(seed: int = 0) -> tuple[EndingRow, ...]:
    """Every objective of `SETTINGS` under each kind of preferences, trained from the reference.

    Pairs are of two different completions out of five, and the reference is the law of a completion
    in the data; for an objective on labels the chosen sides are desirable and the rejected ones
    undesirable.
    """
    return tuple(_row(name, preferences, seed) for name in SETTINGS for preferences in MAKERS)


def data_of(preferences: str, seed: int) -> FiniteProblem:
    """Pairs and labels under one kind of preferences."""
    problem = with_labels(distinct_pairs(MAKERS[preferences](NUM_COMPLETIONS, seed)))
    # Only Bradley-Terry preferences follow from a reward as optima take them to.
    reward = problem.reward if preferences == "bradley_terry" else None
    return dataclasses.replace(problem, reward=reward)


def loss_on(name: str, problem: FiniteProblem) -> PopulationLoss:
    """The population loss of an objective with the settings of this page."""
    return population_loss(CATALOG[name].loss, problem, **SETTINGS[name])


@cache
def ending_under(name: str, preferences: str, seed: int) -> Ending:
    """Where an objective ends when it is trained from the reference."""
    problem = data_of(preferences, seed)
    find = ending_with_kinks if name in _WITH_KINKS else ending
    return find(loss_on(name, problem), problem.reference)


def _row(name: str, preferences: str, seed: int) -> EndingRow:
    found = ending_under(name, preferences, seed)
    return EndingRow(
        objective=name,
        preferences=preferences,
        ending=found.kind,
        largest_probability=found.largest_probability,
        num_kept=int(found.kept.sum()),
        distance_to_claim=_distance_to_claim(name, preferences, seed, found),
    )


def _distance_to_claim(name: str, preferences: str, seed: int, found: Ending) -> float | None:
    # rDPO claims its optimum for labels that were flipped, and these were not.
    optimum = CATALOG[name].optimum if name != "rdpo" else None
    is_claimed = preferences == "bradley_terry" or name in _CLAIMED_FOR_ALL_PREFERENCES
    if optimum is None or not is_claimed:
        return None
    problem = data_of(preferences, seed)
    if name == "ipo":
        # A pair of equal completions has no margin, so its optimum is that of independent pairs.
        independent = MAKERS[preferences](NUM_COMPLETIONS, seed).pair_law
        problem = dataclasses.replace(problem, pair_law=independent)
    return total_variation(found.policy, optimum(problem, **SETTINGS[name]))


def _by_strength(seed: int) -> Tensor:
    """Completions of the deterministic problem, the one that never wins first."""
    reward = deterministic_problem(NUM_COMPLETIONS, seed).reward
    assert reward is not None, "who wins is a matter of rewards"
    return reward.argsort()


def _always_gains_by_the_best(name: str, seed: int) -> bool:
    """Whether the loss falls as the best completion's logit rises, at policies near and far."""
    problem = data_of("deterministic", seed)
    generator = stream(seed, "laboratory", "policies near and far")
    size = torch.logspace(-1, 1.5, 200, dtype=torch.float64)[:, None]
    drawn = torch.randn(200, NUM_COMPLETIONS, generator=generator, dtype=torch.float64)
    logits = (size * drawn).requires_grad_()
    of_all = torch.func.vmap(loss_on(name, problem))
    (gradient,) = torch.autograd.grad(of_all(logits.log_softmax(dim=1)).sum(), logits)
    best = int(_by_strength(seed)[-1])
    return bool((gradient[:, best] < 0).all())


def certain_pairs_have_no_minimizer() -> Evidence:
    """What is left for all but the best completion where training ends."""
    residuals: list[float] = []
    controls: list[float] = []
    for seed in (0, 1):
        best = _by_strength(seed)[-1]
        for name in _FINDS_THE_BEST:
            found = ending_under(name, "deterministic", seed)
            has_no_rest = found.kind == "collapses" and _always_gains_by_the_best(name, seed)
            residuals.append(_others(found, best) if has_no_rest else float("inf"))
        for name in ("ipo", "sppo", "robust_dpo"):
            found = ending_under(name, "deterministic", seed)
            controls.append(_others(found, best) if found.kind == "rests" else 0.0)
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"Y = {NUM_COMPLETIONS}, scale {SCALE:g}: the loss falls with the best completion's logit "
        "at 200 policies, near and far; at time 1e12 the others have "
        f"{max(residuals):.0e} together, under IPO, SPPO and robust DPO {min(controls):.2f} to "
        f"{max(controls):.2f}",
        plots=(_collapse_plot(),),
    )


def _others(found: Ending, best: Tensor) -> float:
    is_other = torch.arange(NUM_COMPLETIONS) != best
    return float(found.policy[is_other].exp().sum())


def _collapse_plot() -> Plot:
    problem = data_of("deterministic", 0)
    curves = []
    for name in _PLOTTED:
        path = follow(loss_on(name, problem), problem.reference, until=1e6, growth=1.25)
        largest = path.policies.exp().amax(dim=1).tolist()
        curves.append(Curve(name, tuple(zip(path.times[1:], largest[1:], strict=True))))
    return Plot(
        "The most probable completion when the better one always wins",
        "learning rate times gradient steps",
        "largest probability",
        tuple(curves),
        log_x=True,
        note="Some tend to one and never arrive; the others settle, EXO-pref next to one.",
    )


def bounded_targets_keep_everything() -> Evidence:
    """Distance to the rest point under certain preferences."""
    residuals = [
        ending_under(name, "deterministic", seed).distance for name in _RESTS for seed in (0, 1)
    ]
    controls = [
        ending_under(name, "deterministic", seed).distance
        for name in ("dpo", "pmle")
        for seed in (0, 1)
    ]
    largest = ", ".join(
        f"{name} {ending_under(name, 'deterministic', 0).largest_probability:.6g}"
        for name in _RESTS
    )
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"nats of the logits to where the gradient is zero: at most {max(residuals):.0e}, under "
        f"DPO and PMLE {min(controls):.1f} after any time; largest probability {largest}",
    )


def likelihood_loses_the_worst() -> Evidence:
    """Probability of the completion that never wins, and of the next one."""
    residuals: list[float] = []
    controls: list[float] = []
    for seed in (0, 1):
        worst, next_worst = _by_strength(seed)[:2].tolist()
        for name in _LOSES_THE_WORST:
            found = ending_under(name, "deterministic", seed)
            loses_one = found.kind == "drops" and int(found.kept.sum()) == NUM_COMPLETIONS - 1
            probability = found.policy.exp()
            residuals.append(float(probability[worst]) if loses_one else float("inf"))
            controls.append(float(probability[next_worst]))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"Y = {NUM_COMPLETIONS}: at most {max(residuals):.0e} for the completion that never wins "
        f"and still falling; {min(controls):.4f} to {max(controls):.2f} for the one that beats "
        "only that",
    )


def possible_upsets_keep_everything() -> Evidence:
    """Distance to the rest point where every completion can win.

    rDPO takes away the upsets that it expects, so that a comparison which is lost less often than
    it expects is to it one that cannot be lost.
    """
    # Cyclic preferences are the same for every seed.
    problems = (*(("bradley_terry", seed) for seed in (0, 1, 2)), ("cyclic", 0))
    residuals = [
        ending_under(name, *problem).distance
        for name in _KEEPS_WHAT_CAN_WIN
        for problem in problems
    ]
    of_kto = [ending_under("kto", *problem).distance for problem in problems]
    of_rdpo = []
    for seed in (0, 1, 2):
        problem = data_of("bradley_terry", seed)
        loss = population_loss(rdpo_loss, problem, beta=SCALE, epsilon=0.3)
        of_rdpo.append(ending(loss, problem.reference).distance)
    return Evidence(
        largest_residual(residuals),
        smallest_control([*of_kto, *of_rdpo]),
        f"Bradley-Terry preferences of 3 seeds and cyclic ones, Y = {NUM_COMPLETIONS}: "
        f"{len(_KEEPS_WHAT_CAN_WIN)} objectives within {max(residuals):.0e} nats of a rest point, "
        "1e-4 being the radius of the sphere for those with kinks; KTO's next step has "
        f"{min(of_kto):.1f} nats for ever; rDPO with epsilon = 0.3 has "
        + ("no rest point" if min(of_rdpo) == math.inf else f"one {min(of_rdpo):.1f} nats away"),
    )


THEOREMS: tuple[Theorem, ...] = (
    Theorem(
        name="certain_pairs_have_no_minimizer",
        claim="Where the better of two completions always wins, the losses of DPO, PMLE, SimPO and "
        "their kin have no minimizer: at every policy a larger logit of the best completion lowers "
        "them, and training gives it all probability.",
        control="IPO, SPPO and DPO with smoothed labels give it all, too.",
        source="derived here; for DPO noted by Azar et al. 2023, arXiv:2310.12036, section 4",
        methods=_FINDS_THE_BEST,
        contrasts=("ipo", "sppo", "robust_dpo"),
        tolerance=1e-9,
        check=certain_pairs_have_no_minimizer,
    ),
    Theorem(
        name="bounded_targets_keep_everything",
        claim="On the same data objectives that ask for finite margins come to rest and keep every "
        "completion: IPO, SPPO, DPO with smoothed labels, EXO on pairs, and both hinges.",
        control="DPO and PMLE come to rest.",
        source="derived here; for IPO Azar et al. 2023, arXiv:2310.12036, section 4",
        methods=_RESTS,
        contrasts=("dpo", "pmle"),
        tolerance=AT_REST,
        check=bounded_targets_keep_everything,
    ),
    Theorem(
        name="likelihood_loses_the_worst",
        claim="On the same data the likelihood of chosen completions, alone or in SLiC-HF, ORPO "
        "and MPO, and NCA, MinorDPO and RDRO give up only the completion that never wins.",
        control="They give up the next one, too.",
        source="derived here",
        methods=_LOSES_THE_WORST,
        tolerance=1e-6,
        check=likelihood_loses_the_worst,
    ),
    Theorem(
        name="possible_upsets_keep_everything",
        claim="Where every completion can win every comparison, by a reward or around a cycle, "
        "objectives on pairs except rDPO, and RDRO, DDRO and BCO on the two sides of pairs, come "
        "to rest and keep every completion.",
        control="KTO and rDPO do, too.",
        source="derived here",
        methods=_KEEPS_WHAT_CAN_WIN,
        contrasts=("kto", "rdpo"),
        tolerance=AT_REST,
        check=possible_upsets_keep_everything,
    ),
)
