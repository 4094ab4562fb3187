"""What an objective needs to keep completions: unsure labels, a baseline that stays, real flips."""

import dataclasses
import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from veritune.laboratory.distances import total_variation
from veritune.laboratory.endings import Ending, ending
from veritune.laboratory.extremes import largest_residual, smallest_control
from veritune.laboratory.labels import class_laws
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import mixture
from veritune.laboratory.theorem import Evidence, Theorem
from veritune.laboratory.theorems.degeneracy import data_of, ending_under, loss_on
from veritune.logprobs import PairedLogProbs, UnpairedLogProbs
from veritune.objectives.optimum import FiniteProblem
from veritune.objectives.paired.bco_pair import bco_pair_loss
from veritune.objectives.paired.pmle_kl import pmle_kl_loss
from veritune.objectives.paired.rdpo import rdpo_loss
from veritune.objectives.unpaired.bco import bco_loss

_SEEDS = (0, 1, 2)
_BETA = 0.5
_SURENESS = (0.1, 0.01, 0.001)
_KL_WEIGHTS = (1.0, 0.3, 0.1, 0.05)
_DEEPEST = 30.0
"""Minus the log of the smallest probability at which float64 holds the slope of the penalty: it is
the rest of two that are sixty."""


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
        for name, distances, uncertified in (
            ("rdro", residuals, math.inf),
            ("ddro", controls, 0.0),
        ):
            found = ending_under(name, "deterministic", seed)
            distance = total_variation(found.policy, laws.desirable)
            distances.append(distance if found.kind != "unclear" else uncertified)
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


def _with_unsure_labels(problem: FiniteProblem, sureness: float) -> FiniteProblem:
    """The problem with its labels kept with this probability and drawn by a fair coin otherwise."""
    laws = class_laws(problem)
    desirable = mixture(laws.desirable, problem.reference, sureness)
    undesirable = mixture(laws.undesirable, problem.reference, sureness)
    return dataclasses.replace(problem, desirable=desirable, undesirable=undesirable)


def kto_leaves_the_minority() -> Evidence:
    """Probability at the end of completions that lose more comparisons than they win."""
    residuals: list[float] = []
    controls: list[float] = []
    shares: list[float] = []
    for seed in _SEEDS:
        for preferences in ("bradley_terry", "cyclic"):
            clear = data_of(preferences, seed)
            for problem in (clear, *(_with_unsure_labels(clear, part) for part in _SURENESS)):
                dropped, kept = (
                    ending(loss_on(name, problem), problem.reference) for name in ("kto", "bco")
                )
                residuals.append(_on_the_minority(dropped, problem))
                is_at_rest = kept.kind == "rests"
                controls.append(_on_the_minority(kept, problem) if is_at_rest else 0.0)
                laws = class_laws(problem)
                share = torch.sigmoid(laws.desirable - laws.undesirable)
                shares.append(float(share[share < 0.5].max()))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"weights 1, beta = {_BETA:g}, the closest minorities {100 * min(shares):.1f} to "
        f"{100 * max(shares):.4f} % desirable: at most {max(residuals):.0e} at time 1e12; at "
        f"BCO's rest point {min(controls):.2g} to {max(controls):.2g}",
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


def _slope_by_margin(gamma: float, kl_weight: float, depth: float) -> float:
    """Derivative of PMLE with a KL penalty by the margin over a completion that always loses.

    Args:
        gamma: Of the loss.
        kl_weight: Of the loss.
        depth: Minus the logarithm of the loser's probability.
    """
    loss = population_loss(pmle_kl_loss, _comparison(1.0), gamma=gamma, kl_weight=kl_weight)
    margin = torch.tensor(depth + math.log(-math.expm1(-depth)), dtype=torch.float64)
    margin.requires_grad_()
    # By the margin and not by logits, where a small loser's slope drowns in the winner's rounding.
    policy = torch.stack([logsigmoid(margin), logsigmoid(-margin)])
    (slope,) = torch.autograd.grad(loss(policy), margin)
    return float(slope)


def _depth_at_rest(gamma: float, kl_weight: float) -> float:
    """Minus the logarithm of the loser's probability where pull and push are equal."""
    low, high = 1.0, _DEEPEST
    for _ in range(60):
        middle = (low + high) / 2
        is_pushed = _slope_by_margin(gamma, kl_weight, middle) < 0
        low, high = (middle, high) if is_pushed else (low, middle)
    return low


def kl_penalty_needs_sharp_pairs() -> Evidence:
    """Part of the push on a completion that always loses which PMLE's KL penalty does not undo.

    With q the probability of the loser, r that in the reference and w the weight of the penalty,
    the comparison pushes the margin up with gamma q^gamma and the penalty pulls it down with
    w q log(r / q) / (2 r), up to factors that tend to one and constants beside the logarithm. So
    the ratio of pull and push grows without end as q falls if gamma is 1 or more, and fades if it
    is less. At gamma = 1 it is one where q is about r exp(-2 r / w).
    """
    left: dict[float, list[float]] = {}
    reference = _comparison(1.0).reference[1]
    for gamma in (1.0, 1.5, 2.0, 0.7, 0.5):
        for kl_weight in _KL_WEIGHTS:
            least = 2 * float(reference.exp()) / kl_weight - float(reference)
            parts = [
                _slope_by_margin(gamma, kl_weight, depth) / _slope_by_margin(gamma, 0.0, depth)
                for depth in torch.linspace(least, _DEEPEST, 20).tolist()
            ]
            left.setdefault(gamma, []).append(max(parts))
    rests = ", ".join(f"e^-{_depth_at_rest(1.0, weight):.1f}" for weight in _KL_WEIGHTS)
    return Evidence(
        largest_residual(part for gamma, parts in left.items() if gamma >= 1 for part in parts),
        smallest_control(part for gamma, parts in left.items() if gamma < 1 for part in parts),
        "reference 0.6, gamma = 1, 1.5 and 2 against 0.7 and 1/2, weights "
        + ", ".join(f"{weight:g}" for weight in _KL_WEIGHTS)
        + f", from that probability down to e^-{_DEEPEST:g}; at gamma = 1 the loser rests at "
        + rests,
    )


THEOREMS: tuple[Theorem, ...] = (
    Theorem(
        name="sure_winners_mislead_ddro",
        claim="RDRO ends at the law of desirable completions also where a completion is never "
        "undesirable.",
        control="DDRO does, too.",
        source="derived here from Takahashi et al. 2026, arXiv:2604.04410, and Higuchi and Suzuki "
        "2025, arXiv:2505.07558",
        methods=("rdro",),
        contrasts=("ddro",),
        tolerance=1e-9,
        check=sure_winners_mislead_ddro,
    ),
    Theorem(
        name="kto_leaves_the_minority",
        claim="KTO with equal weights gives no probability, in the end, to a completion that is "
        "undesirable more often than desirable, however small the majority, if another is "
        "desirable more often.",
        control="Neither does BCO.",
        source="derived here from Ethayarajh et al. 2024, arXiv:2402.01306",
        methods=("kto",),
        contrasts=("bco",),
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
        claim="If gamma is 1 or more, PMLE's KL penalty of any weight keeps a completion that "
        "always loses, but a light one at gamma = 1 at a probability of about reference "
        "exp(-2 reference / weight): below it the pull exceeds the push.",
        control="It does so at gamma = 0.7 and 1/2.",
        source="derived here for the penalty of arXiv:2506.01523",
        methods=("pmle_kl",),
        tolerance=1e-9,
        check=kl_penalty_needs_sharp_pairs,
    ),
)
