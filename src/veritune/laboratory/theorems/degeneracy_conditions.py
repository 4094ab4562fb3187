"""What an objective needs to keep completions: unsure labels, a baseline that stays, real flips."""

import dataclasses
import math

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.laboratory.distances import total_variation
from veritune.laboratory.endings import AT_REST, Ending, ending
from veritune.laboratory.extremes import largest_residual, smallest_control
from veritune.laboratory.labels import class_laws
from veritune.laboratory.population import population_loss
from veritune.laboratory.theorem import Evidence, Theorem
from veritune.laboratory.theorems.degeneracy import data_of, ending_under
from veritune.logprobs import PairedLogProbs, UnpairedLogProbs
from veritune.objectives.optimum import FiniteProblem
from veritune.objectives.paired.bco_pair import bco_pair_loss
from veritune.objectives.paired.pmle_kl import pmle_kl_loss
from veritune.objectives.paired.rdpo import rdpo_loss
from veritune.objectives.unpaired.bco import bco_loss

_SEEDS = (0, 1, 2)
_BETA = 0.5


def _comparison(win_probability: float) -> FiniteProblem:
    """Two completions that are compared with each other; the first wins this often."""
    return FiniteProblem(
        reference=torch.tensor([0.4, 0.6], dtype=torch.float64).log(),
        preferences=torch.tensor(
            [[0.5, win_probability], [1 - win_probability, 0.5]], dtype=torch.float64
        ),
        pair_law=torch.tensor([[0.0, 0.5], [0.5, 0.0]], dtype=torch.float64),
    )


def sure_winners_mislead_ddro() -> Evidence:
    """Distance to the law of desirable completions where the best one is never undesirable.

    DDRO's force back is in its undesirable examples; without any, nothing stops the ratio at 1 / t.
    """
    residuals: list[float] = []
    controls: list[float] = []
    ratios: list[float] = []
    for seed in _SEEDS:
        problem = data_of("deterministic", seed)
        laws = class_laws(problem)
        for name, distances in (("rdro", residuals), ("ddro", controls)):
            found = ending_under(name, "deterministic", seed)
            distances.append(total_variation(found.policy, laws.desirable))
        never_undesirable = laws.undesirable == -math.inf
        ratios.append(float((found.policy - problem.reference)[never_undesirable].exp()))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"alpha = t = 1/2: TV at most {max(residuals):.0e} for RDRO, {min(controls):.2f} to "
        f"{max(controls):.2f} for DDRO, whose ratio on the completion that always wins is "
        f"{min(ratios):.2f} to {max(ratios):.2f} and not 1 / t = 2",
    )


def _on_the_minority(found: Ending, problem: FiniteProblem) -> float:
    """Probability of completions that are undesirable more often than desirable."""
    laws = class_laws(problem)
    return float(found.policy[laws.desirable < laws.undesirable].exp().sum())


def kto_leaves_the_minority() -> Evidence:
    """Probability at the end of completions that lose more comparisons than they win."""
    residuals: list[float] = []
    controls: list[float] = []
    closest = 1.0
    for seed in _SEEDS:
        for preferences in ("bradley_terry", "cyclic"):
            problem = data_of(preferences, seed)
            for name, values in (("kto", residuals), ("bco", controls)):
                values.append(_on_the_minority(ending_under(name, preferences, seed), problem))
            laws = class_laws(problem)
            share = torch.sigmoid(laws.desirable - laws.undesirable)
            closest = min(closest, float((0.5 - share)[share < 0.5].min()))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"weights 1, beta = {_BETA:g}, the closest at {50 - 100 * closest:.1f} % desirable: at "
        f"most {max(residuals):.0e} at time 1e12; under BCO {min(controls):.2g} to "
        f"{max(controls):.2g}",
    )


def _bco_pair_from_zero(pairs: PairedLogProbs, *, beta: float) -> Float[Tensor, " B"]:
    """BCO on pairs as some toolkits have it: the reward is counted from zero."""
    zero = torch.zeros_like(pairs.chosen.policy[0])
    return bco_pair_loss(dataclasses.replace(pairs, mean_log_ratio=zero), beta=beta)


def _bco_from_zero(labels: UnpairedLogProbs, *, beta: float) -> Float[Tensor, " B"]:
    """The same on labels."""
    zero = torch.zeros_like(labels.completion.policy[0])
    return bco_loss(dataclasses.replace(labels, mean_log_ratio=zero), beta=beta)


def bco_falls_with_its_baseline() -> Evidence:
    """What is left for all but the best completion, with the running mean and without."""
    residuals: list[float] = []
    controls: list[float] = []
    for seed in _SEEDS:
        problem = data_of("deterministic", seed)
        for name, from_zero in (("bco_pair", _bco_pair_from_zero), ("bco", _bco_from_zero)):
            found = ending_under(name, "deterministic", seed)
            rest = _all_but_the_first(found)
            residuals.append(rest if found.kind == "collapses" else math.inf)
            loss = population_loss(from_zero, problem, beta=_BETA)
            fixed = ending(loss, problem.reference)
            controls.append(_all_but_the_first(fixed) if fixed.kind == "drops" else 0.0)
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"beta = {_BETA:g}: at most {max(residuals):.0e} at time 1e12; counted from zero only the "
        f"completion that never wins is dropped, and {min(controls):.2f} to {max(controls):.2f} "
        "are left for all but the most probable",
    )


def _all_but_the_first(found: Ending) -> float:
    """Probability of all but the most probable completion."""
    return float(found.policy.sort().values[:-1].exp().sum())


def rdpo_rests_where_labels_flip() -> Evidence:
    """Margins of one comparison under rDPO, won less and more often than it takes for possible."""
    residuals: list[float] = []
    controls: list[float] = []
    seen = []
    for epsilon in (0.1, 0.2):
        for share in (0.6, 0.7, 0.78):
            problem = _comparison(share)
            loss = population_loss(rdpo_loss, problem, beta=_BETA, epsilon=epsilon)
            found = ending(loss, problem.reference)
            margin = _BETA * float((found.policy - problem.reference).diff()[0].neg())
            clean = (share - epsilon) / (1 - 2 * epsilon)
            is_at_rest = found.kind == "rests"
            residuals.append(abs(margin - _logit(clean)) if is_at_rest else math.inf)
            controls.append(abs(margin - _logit(share)))
        for share in (1.02 - epsilon, 1.0):
            problem = _comparison(share)
            loss = population_loss(rdpo_loss, problem, beta=_BETA, epsilon=epsilon)
            found = ending(loss, problem.reference)
            residuals.append(0.0 if found.kind == "collapses" else math.inf)
            seen.append(f"{share:g} with epsilon {epsilon:g}")
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        "epsilon = 0.1 and 0.2, won with probability 0.6, 0.7 and 0.78: margins off by at most "
        f"{max(residuals):.0e} nats; won with {', '.join(seen)} the margin grows without end",
    )


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def kl_penalty_needs_sharp_pairs() -> Evidence:
    """Distance to the rest point of PMLE with a KL penalty when one completion always loses."""
    problem = _comparison(1.0)
    start = torch.tensor([1.0, 1e-6], dtype=torch.float64).log().log_softmax(dim=0)
    residuals: list[float] = []
    controls: list[float] = []
    smallest = []
    for kl_weight in (0.3, 1.0):
        for gamma, distances in ((1.0, residuals), (2.0, residuals), (0.5, controls)):
            loss = population_loss(pmle_kl_loss, problem, gamma=gamma, kl_weight=kl_weight)
            found = ending(loss, start)
            distances.append(found.distance)
            if gamma >= 1:
                smallest.append(float(found.policy[1].exp()))
            elif found.kind != "collapses":
                controls.append(0.0)
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        "gamma = 1 and 2, weights 0.3 and 1: from a probability of 1e-6 back to "
        f"{min(smallest):.2g} to {max(smallest):.2g}; gamma = 1/2: on to zero, the gradient's zero "
        f"{min(controls):.1f} nats away after any time",
    )


THEOREMS: tuple[Theorem, ...] = (
    Theorem(
        name="sure_winners_mislead_ddro",
        claim="RDRO ends at the law of desirable completions also where a completion is never "
        "undesirable.",
        control="DDRO does, too.",
        source="derived here from Takahashi et al. 2026, arXiv:2604.04410, and Higuchi and Suzuki "
        "2025, arXiv:2505.07558",
        methods=("rdro", "ddro"),
        tolerance=1e-9,
        check=sure_winners_mislead_ddro,
    ),
    Theorem(
        name="kto_leaves_the_minority",
        claim="KTO with equal weights gives no probability, in the end, to a completion that is "
        "undesirable more often than desirable, however small the majority.",
        control="Neither does BCO.",
        source="derived here from Ethayarajh et al. 2024, arXiv:2402.01306",
        methods=("kto", "bco"),
        tolerance=1e-9,
        check=kto_leaves_the_minority,
    ),
    Theorem(
        name="bco_falls_with_its_baseline",
        claim="Where the better of two completions always wins, BCO's running mean follows the "
        "completion that never wins down, and all others but the best follow the mean.",
        control="They do so if the reward is counted from zero.",
        source="derived here from Jung et al. 2024, arXiv:2404.04656",
        methods=("bco", "bco_pair"),
        tolerance=1e-6,
        check=bco_falls_with_its_baseline,
    ),
    Theorem(
        name="rdpo_rests_where_labels_flip",
        claim="A comparison that is won with probability p rests under rDPO at the margin "
        "logit((p - epsilon) / (1 - 2 epsilon)) if it is lost more often than epsilon, and grows "
        "without end if it is lost less often.",
        control="It rests at logit(p).",
        source="derived here from Chowdhury, Kini & Natarajan 2024, arXiv:2403.00409",
        methods=("rdpo",),
        tolerance=1e-9,
        check=rdpo_rests_where_labels_flip,
    ),
    Theorem(
        name="kl_penalty_needs_sharp_pairs",
        claim="If gamma is 1 or more, PMLE's KL penalty brings back a completion that always loses "
        "from however small a probability.",
        control="It does so at gamma = 1/2.",
        source="derived here for the penalty of arXiv:2506.01523",
        methods=("pmle_kl",),
        tolerance=AT_REST,
        check=kl_penalty_needs_sharp_pairs,
    ),
)
