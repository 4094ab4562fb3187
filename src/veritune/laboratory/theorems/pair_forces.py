"""The force of EXO, DPO-rw and DPO on one pair, by its margin, and where it comes to rest."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from veritune.laboratory.distances import total_variation
from veritune.laboratory.extremes import largest_residual, smallest_control
from veritune.laboratory.minimize import is_certified, minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import bradley_terry_problem
from veritune.laboratory.theorem import Curve, Evidence, Plot, Theorem
from veritune.logprobs import CompletionLogProbs, PairedLogProbs, ScoredLogProbs
from veritune.objectives.optimum import FiniteProblem
from veritune.objectives.paired.dpo import dpo_loss, dpo_optimum
from veritune.objectives.paired.exo_pref import exo_pref_loss
from veritune.objectives.paired.exo_pref_official import exo_pref_official_loss
from veritune.objectives.scored.dpo_rw import dpo_rw_loss
from veritune.objectives.scored.exo_rw import exo_rw_loss

_OFFICIAL_MARGIN = 10.0
"""The logit of the released code's label, (0, -10)."""


def _contest(win_probability: float) -> FiniteProblem:
    """Two completions, equally likely under the reference; the first wins this often."""
    wins = torch.tensor([[0.5, win_probability], [1 - win_probability, 0.5]], dtype=torch.float64)
    return FiniteProblem(
        reference=torch.full((2,), 0.5, dtype=torch.float64).log(),
        preferences=wins,
        pair_law=torch.full((2, 2), 0.25, dtype=torch.float64),
    )


def exo_pref_stretches_the_win_rate() -> Evidence:
    """The margin at which EXO on pairs rests, one comparison repeated."""
    beta = 0.5
    cases: list[tuple[Callable[..., Tensor], float, dict[str, Any]]] = [
        (exo_pref_loss, math.log((1 - epsilon) / epsilon), {"beta": beta, "epsilon": epsilon})
        for epsilon in (1e-3, 1e-2)
    ]
    cases.append((exo_pref_official_loss, _OFFICIAL_MARGIN, {"beta_pi": beta}))
    residuals, controls, seen = [], [], []
    for loss, largest, hyperparameters in cases:
        for win_probability in (0.6, 0.75, 0.9, 1.0):
            problem = _contest(win_probability)
            expected = population_loss(loss, problem, **hyperparameters)
            found = minimize(expected, problem.reference)
            margin = beta * float(found.policy[0] - found.policy[1])
            claimed = (2 * win_probability - 1) * largest
            residuals.append(abs(margin - claimed) if is_certified(found) else math.inf)
            if win_probability < 1:
                logit = math.log(win_probability / (1 - win_probability))
                controls.append(abs(margin - logit))
            if hyperparameters.get("epsilon") == 1e-3:
                seen.append(f"{margin:.4f} at p = {win_probability:g}")
    many = bradley_terry_problem(5, seed=0)
    found = minimize(population_loss(exo_pref_loss, many, beta=0.5, epsilon=1e-3), many.reference)
    away = total_variation(found.policy, dpo_optimum(many, beta=0.5))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"epsilon = 0.001: {', '.join(seen)}; also 0.01 and the released label of -10; on all "
        f"pairs of five completions the minimizer is TV {away:.2f} from DPO's",
    )


def _paired_force(
    loss: Callable[..., Tensor], margins: Tensor, scale: str, **others: float
) -> Tensor:
    """Derivative of a loss with respect to `scale` times the log-ratio margin."""
    beta = 0.5
    chosen = (margins / beta).requires_grad_()
    zero, one = torch.zeros_like(margins), torch.ones_like(margins, dtype=torch.long)
    pairs = PairedLogProbs(
        CompletionLogProbs(chosen, one, zero), CompletionLogProbs(zero, one, zero)
    )
    total = loss(pairs, **{scale: beta}, **others).sum()
    return torch.autograd.grad(total, chosen)[0] / beta


def _scored_force(loss: Callable[..., Tensor], margins: Tensor, reward_margin: float) -> Tensor:
    """The same on groups of two whose scores differ by this, at beta_r = beta_pi = 0.5."""
    beta = 0.5
    policy = torch.stack([margins / beta, torch.zeros_like(margins)], dim=1).requires_grad_()
    scores = torch.zeros_like(policy).detach()
    scores[:, 0] = beta * reward_margin
    groups = ScoredLogProbs(
        CompletionLogProbs(
            policy,
            torch.ones_like(scores, dtype=torch.long),
            torch.zeros_like(scores),
        ),
        scores,
        torch.ones_like(scores, dtype=torch.bool),
    )
    total = loss(groups, beta_pi=beta, beta_r=beta).sum()
    return torch.autograd.grad(total, policy)[0][:, 0] / beta


def exo_force_has_a_fixed_point() -> Evidence:
    """Forces on a pair against their closed forms, and the point where EXO's turns."""
    margins = torch.linspace(-30, 30, 121, dtype=torch.float64)
    policy = torch.sigmoid(margins)
    epsilon, reward_margin = 1e-3, 3.0
    label = math.log((1 - epsilon) / epsilon)
    found = {
        "EXO on pairs": (_paired_force(exo_pref_loss, margins, "beta", epsilon=epsilon), label),
        "EXO on pairs, as released": (
            _paired_force(exo_pref_official_loss, margins, "beta_pi"),
            _OFFICIAL_MARGIN,
        ),
        "EXO on scored pairs": (_scored_force(exo_rw_loss, margins, reward_margin), reward_margin),
    }
    residuals, controls = [], []
    for force, fixed in found.values():
        reverse = policy * (1 - policy) * (margins - fixed)
        forward = policy - 1 / (1 + math.exp(-fixed))
        residuals.append(float((force - reverse).abs().max()))
        controls.append(float((force - forward).abs().max()))
    # The forward KL has that other force.
    other = _scored_force(dpo_rw_loss, margins, reward_margin)
    expected = policy - 1 / (1 + math.exp(-reward_margin))
    residuals.append(float((other - expected).abs().max()))
    curves = [
        (name, force)
        for name, force in (
            *((name, force) for name, (force, _) in found.items()),
            ("DPO-rw on scored pairs", other),
            ("DPO", _paired_force(dpo_loss, margins, "beta")),
        )
    ]
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"margins from -30 to 30; EXO's forces vanish at {label:.3f}, {_OFFICIAL_MARGIN:g} and "
        f"{reward_margin:g}; largest error {max(residuals):.1e}",
        (
            Plot(
                "Force on a pair",
                "margin z, in nats",
                "d loss / dz",
                tuple(
                    Curve(name, tuple(zip(margins.tolist(), force.tolist(), strict=True)))
                    for name, force in curves
                ),
                note="Where a curve is negative the margin is pushed up. EXO lets go of pairs that "
                "are ranked wrongly with confidence, DPO pulls at them with all its force.",
            ),
        ),
    )


def exo_lets_go_of_misranked_pairs() -> Evidence:
    """Forces on a pair that is ranked wrongly by many nats."""
    margins = torch.tensor([-40.0, -60.0, -100.0], dtype=torch.float64)
    forces = [
        _paired_force(exo_pref_loss, margins, "beta", epsilon=1e-3),
        _paired_force(exo_pref_official_loss, margins, "beta_pi"),
        _scored_force(exo_rw_loss, margins, 3.0),
    ]
    others = [
        _paired_force(dpo_loss, margins, "beta"),
        _scored_force(dpo_rw_loss, margins, 3.0),
    ]
    largest = max(float(force.abs().max()) for force in forces)
    smallest = min(float(force.abs().min()) for force in others)
    return Evidence(
        largest,
        smallest,
        f"wrong by 40, 60 and 100 nats: at most {largest:.1e}; DPO and DPO-rw at least "
        f"{smallest:.2f}",
    )


_EXO = "Ji et al. 2024, arXiv:2402.00856"

THEOREMS: tuple[Theorem, ...] = (
    Theorem(
        name="exo_pref_stretches_the_win_rate",
        claim="On a comparison won with probability p, EXO on pairs rests at the margin "
        "(2p - 1) log((1 - epsilon) / epsilon).",
        control="It rests at logit(p), as an estimator of a Bradley-Terry reward would.",
        source="derived from eq. 16 of arXiv:2402.00856",
        methods=("exo_pref", "exo_pref_official"),
        tolerance=1e-6,
        check=exo_pref_stretches_the_win_rate,
    ),
    Theorem(
        name="exo_force_has_a_fixed_point",
        claim="EXO's force on a pair is q (1 - q) (z - a), with q = sigmoid(z): it turns at the "
        "label's margin a. DPO-rw's is q - sigmoid(a).",
        control="EXO's is q - sigmoid(a), too.",
        source="derived from arXiv:2402.00856",
        methods=("exo_pref", "exo_pref_official", "exo_rw", "dpo_rw"),
        tolerance=1e-12,
        check=exo_force_has_a_fixed_point,
    ),
    Theorem(
        name="exo_lets_go_of_misranked_pairs",
        claim="EXO's force fades on pairs that are ranked wrongly with confidence.",
        control="DPO's does.",
        source="derived from arXiv:2402.00856",
        methods=("exo_pref", "exo_pref_official", "exo_rw"),
        contrasts=("dpo", "dpo_rw"),
        tolerance=1e-12,
        check=exo_lets_go_of_misranked_pairs,
    ),
)
