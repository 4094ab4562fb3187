"""Whether a loss comes to rest where its formula does, over all pairs of a small language.

The data are a batch that holds every pair of completions in proportion to how often it is
compared and won, so that the toolkit's own mean over the batch is the expectation. Completions
are single tokens, their law is a row of logits, and the toolkit's loss is a function of that row.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from peers.batches import Batch, Rows
from peers.checks import CannotFailError, Outcome
from peers.hyperparameters import BETA, FLIPS
from peers.implementation import Implementation
from veritune.laboratory.distances import total_variation
from veritune.laboratory.minimize import minimize
from veritune.objectives.optimum import FiniteProblem
from veritune.objectives.paired.dpo import dpo_optimum
from veritune.objectives.paired.ipo import ipo_optimum

_STRENGTHS = (1, 3, 1, 3)
"""Completion i is preferred to j with probability s_i / (s_i + s_j)."""

_COMPARISONS = 16
"""How often two different completions are compared; one with itself half as often, as two
independent draws from the uniform law would be."""


def _reference() -> Tensor:
    return torch.tensor([0.4, -0.3, 0.9, 0.1], dtype=torch.float64).log_softmax(dim=0)


def _win_probability(first: int, second: int, flips: float) -> float:
    clean = _STRENGTHS[first] / (_STRENGTHS[first] + _STRENGTHS[second])
    return (1 - flips) * clean + flips * (1 - clean)


def _pairs(flips: float) -> tuple[list[int], list[int]]:
    """Chosen and rejected completions of all comparisons."""
    chosen, rejected = [], []
    for first, second in itertools.combinations_with_replacement(range(len(_STRENGTHS)), 2):
        count = _COMPARISONS if first != second else _COMPARISONS // 2
        won = _win_probability(first, second, flips) * count
        assert won == int(won), "comparisons are counted in whole numbers"
        chosen += [first] * int(won) + [second] * (count - int(won))
        rejected += [second] * int(won) + [first] * (count - int(won))
    return chosen, rejected


def _problem() -> FiniteProblem:
    """The same as the laboratory states it."""
    uniform = torch.full((len(_STRENGTHS),) * 2, len(_STRENGTHS) ** -2.0, dtype=torch.float64)
    reward = torch.tensor(_STRENGTHS, dtype=torch.float64).log()
    return FiniteProblem(
        reference=_reference(),
        reward=reward,
        preferences=torch.sigmoid(reward[:, None] - reward[None, :]),
        pair_law=uniform,
    )


def expected_loss(
    mean_loss: Callable[[Batch], Tensor], *, flips: float = 0.0, dtype: torch.dtype = torch.float64
) -> Callable[..., Tensor]:
    """The loss over all comparisons as a function of one row of logits."""
    chosen, rejected = _pairs(flips)
    tokens = torch.tensor(chosen + rejected)[:, None]
    lengths = torch.ones(len(tokens), dtype=torch.long)
    reference = _reference().expand(len(tokens), 1, -1)

    def of_law(logits: Tensor) -> Tensor:
        policy = logits.expand(len(tokens), 1, -1)
        return mean_loss(Batch(Rows(policy, reference, tokens, lengths)).to(dtype))

    return of_law


def _claimed(implementation: Implementation) -> tuple[Tensor, str, float]:
    """Where the loss should rest, who says so, and the rate at which labels are flipped first."""
    problem, option = _problem(), implementation.option or implementation.where
    if option in ("sigmoid", "sigmoid_norm", "dpo") and implementation.where != "CPOTrainer":
        return dpo_optimum(problem, beta=BETA), "the reward-tilted reference of the paper", 0.0
    if option in ("ipo", "ipo_mean"):
        return ipo_optimum(problem, tau=BETA), "the paper's tilt by the win probability", 0.0
    if option in ("robust", "rdpo"):
        law = dpo_optimum(problem, beta=BETA)
        return law, f"DPO's on clean labels, from labels flipped at rate {FLIPS}", FLIPS
    found = minimize(expected_loss(implementation.formula.mean_loss), _reference())
    if found.gradient_norm > 1e-9:
        raise CannotFailError(f"{implementation.name}: the formula has no minimum to compare")
    return found.policy, "the minimizer of the formula", 0.0


def optimum(implementation: Implementation) -> Outcome | None:
    """The loss has no slope at the claimed law, and a search that starts at the reference ends
    there.

    None where the formula has no such law.
    """
    formula = implementation.formula
    if implementation.kind != "pairs" or not formula.takes_optimum:
        return None
    law, words, flips = _claimed(implementation)
    dtype = torch.float64 if implementation.accepts_double else torch.float32
    of_law = expected_loss(implementation.mean_loss, flips=flips, dtype=dtype)
    at_law, at_reference = (_slope(of_law, start) for start in (law, _reference()))
    tolerance = 1e-5 if implementation.in_single_precision else 1e-7
    if at_reference < 100 * tolerance:
        raise CannotFailError(f"{implementation.name}: the reference is at rest, too")
    measured = f"slope {at_law:.1e} at {words}, {at_reference:.1e} at the reference"
    if implementation.in_single_precision:
        # A fused loss computes its gradient going forward and has no second derivatives.
        return Outcome(at_law < tolerance, measured)
    found = minimize(of_law, _reference())
    distance = total_variation(found.policy, law)
    return Outcome(
        at_law < tolerance and distance < 1e-5,
        f"{measured}; found at total variation {distance:.1e} from it",
    )


def _slope(of_law: Callable[..., Tensor], law: Tensor) -> float:
    logits = law.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(of_law(logits), logits)
    return float(slope.norm())
