"""Objectives on pairs that read lengths: where they end on completions of several lengths."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.laboratory.distances import total_variation
from veritune.laboratory.extremes import largest_residual, smallest_control
from veritune.laboratory.lengths import with_lengths
from veritune.laboratory.minimize import Minimum, is_certified, minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import bradley_terry_problem, cyclic_problem
from veritune.laboratory.theorem import Evidence, Theorem
from veritune.laboratory.tilts import tilted_per_token
from veritune.objectives.optimum import FiniteProblem, tilted_reference
from veritune.objectives.paired.chosen_nll import chosen_nll_loss, chosen_nll_optimum
from veritune.objectives.paired.chosen_nll_mean import chosen_nll_mean_loss
from veritune.objectives.paired.dpo import dpo_loss
from veritune.objectives.paired.dpo_mean import dpo_mean_loss
from veritune.objectives.paired.length_regularized_dpo import length_regularized_dpo_loss
from veritune.objectives.paired.rpo import rpo_loss
from veritune.objectives.paired.rpo_mean import rpo_mean_loss

_SEEDS = (0, 1, 2)
_LENGTH = torch.tensor([1, 2, 3, 5, 8])
_NUM_COMPLETIONS = len(_LENGTH)
_LENGTHS = f"lengths {', '.join(str(length) for length in _LENGTH.tolist())}"


def _found(
    loss: Callable[..., Tensor], problem: FiniteProblem, **hyperparameters: float
) -> Minimum:
    """The minimizer where completions have their lengths."""
    expected = population_loss(
        with_lengths(loss, _LENGTH), problem, group_size=2, behavior=None, **hyperparameters
    )
    return minimize(expected, problem.reference)


def _distance(found: Minimum, claimed: Float[Tensor, " Y"]) -> float:
    """Total variation from what is claimed; infinite without a certificate."""
    return total_variation(found.policy, claimed) if is_certified(found) else math.inf


def _away(found: Minimum, claimed: Float[Tensor, " Y"]) -> float:
    """The same for a control, which shows nothing without a certificate."""
    return total_variation(found.policy, claimed) if is_certified(found) else 0.0


def _rewarded(seed: int) -> tuple[FiniteProblem, Float[Tensor, " Y"]]:
    problem = bradley_terry_problem(_NUM_COMPLETIONS, seed)
    assert problem.reward is not None, "a Bradley-Terry problem has a reward"
    return problem, problem.reward


def _per_token(law: Float[Tensor, " Y"]) -> Float[Tensor, " Y"]:
    """The law with each completion weighted by 1 / length."""
    return torch.log_softmax(law - _LENGTH.to(law.dtype).log(), dim=0)


def dpo_mean_tilts_by_length() -> Evidence:
    """Minimizers of DPO per token against the tilt whose constant counts per token."""
    residuals: list[float] = []
    controls: list[float] = []
    for seed in _SEEDS:
        problem, reward = _rewarded(seed)
        for beta in (1.0, 2.0, 5.0):
            found = _found(dpo_mean_loss, problem, beta=beta)
            claimed = tilted_per_token(problem.reference, reward / beta, _LENGTH)
            residuals.append(_distance(found, claimed))
            plain = tilted_reference(problem.reference, _LENGTH * reward / beta)
            controls.append(_away(found, plain))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"{_LENGTHS}, beta = 1, 2 and 5: TV at most {max(residuals):.0e}; without the constant "
        f"{min(controls):.2g} or more",
    )


def regularized_dpo_prices_tokens() -> Evidence:
    """Minimizers of R-DPO and of DPO against the tilt by reward less the price of its tokens."""
    residuals: list[float] = []
    controls: list[float] = []
    for seed in _SEEDS:
        problem, reward = _rewarded(seed)
        for beta in (0.3, 1.0):
            without = _found(dpo_loss, problem, beta=beta)
            for alpha in (0.1, 0.3):
                found = _found(length_regularized_dpo_loss, problem, beta=beta, alpha=alpha)
                net = reward - alpha * _LENGTH.to(reward.dtype)
                claimed = tilted_reference(problem.reference, net / beta)
                residuals.append(_distance(found, claimed))
                controls.append(_away(without, claimed))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"{_LENGTHS}, beta = 0.3 and 1, alpha = 0.1 and 0.3: TV at most {max(residuals):.0e}; DPO "
        f"ends {min(controls):.2g} or more away",
    )


def mean_likelihood_favors_the_short() -> Evidence:
    """Minimizers of the likelihood per token and per completion against the weighted law."""
    residuals: list[float] = []
    controls: list[float] = []
    for seed in _SEEDS:
        for maker in (bradley_terry_problem, cyclic_problem):
            problem = maker(_NUM_COMPLETIONS, seed)
            weighted = _per_token(chosen_nll_optimum(problem))
            residuals.append(_distance(_found(chosen_nll_mean_loss, problem), weighted))
            controls.append(_away(_found(chosen_nll_loss, problem), weighted))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"{_LENGTHS}, preferences by a reward and around a cycle: TV at most {max(residuals):.0e}; "
        f"the likelihood of whole completions ends {min(controls):.2g} or more away",
    )


def rpo_mean_lies_between() -> Evidence:
    """Minimizers of RPO per token with a vanishing and with an overwhelming likelihood."""
    beta = 0.3
    residuals: list[float] = []
    controls: list[float] = []
    for seed in _SEEDS:
        problem, reward = _rewarded(seed)
        weighted = _per_token(chosen_nll_optimum(problem))
        for weight, claimed in (
            (1e-8, tilted_reference(problem.reference, reward / beta)),
            (1e6, weighted),
        ):
            found = _found(rpo_mean_loss, problem, beta=beta, sft_weight=weight)
            residuals.append(_distance(found, claimed))
            between = _found(rpo_mean_loss, problem, beta=beta, sft_weight=beta)
            controls.append(_away(between, claimed))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"{_LENGTHS}, beta = {beta}: TV at most {max(residuals):.0e} at weights of 1e-8 and 1e6; "
        f"at a weight of {beta} it ends {min(controls):.2g} or more from either",
    )


def rpo_mean_is_rpo_of_one_length() -> Evidence:
    """Losses of RPO per token and of RPO, where all completions have four tokens and where not."""
    beta, weight, common = 0.3, 0.2, 4
    residuals: list[float] = []
    controls: list[float] = []
    for seed in _SEEDS:
        problem, _ = _rewarded(seed)
        policy = bradley_terry_problem(_NUM_COMPLETIONS, seed + 100).reference
        whole = population_loss(rpo_loss, problem, beta=beta, eta=weight / (common * beta))(policy)
        for length, values in (
            (torch.full_like(_LENGTH, common), residuals),
            (_LENGTH, controls),
        ):
            loss = with_lengths(rpo_mean_loss, length)
            mean = population_loss(loss, problem, beta=beta, sft_weight=weight)(policy)
            values.append(float((mean - whole).abs()))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"beta = {beta}, weight {weight}, completions of {common} tokens: expected losses differ "
        f"by at most {max(residuals):.0e}; {_LENGTHS}: by {min(controls):.2g} or more",
    )


_CHOSEN = "derived here; Hong, Lee and Thorne 2024, arXiv:2403.07691, for the likelihood"
_RPO = "derived here for the form of TRL and OpenRLHF; Liu et al. 2024, arXiv:2405.16436"

THEOREMS: tuple[Theorem, ...] = (
    Theorem(
        name="dpo_mean_tilts_by_length",
        claim="Under Bradley-Terry preferences DPO per token converges to the reference tilted by "
        "exp(length (reward / beta + c)), with c such that it sums to one.",
        control="It is tilted by exp(length * reward / beta), normalized.",
        source="derived here; Lambert et al. 2024, arXiv:2411.15124, eq. 6, for the loss",
        methods=("dpo_mean",),
        tolerance=1e-8,
        check=dpo_mean_tilts_by_length,
    ),
    Theorem(
        name="regularized_dpo_prices_tokens",
        claim="Under Bradley-Terry preferences R-DPO converges to the reference tilted by "
        "exp((reward - alpha * length) / beta).",
        control="So does DPO.",
        source="Park et al. 2024, arXiv:2403.19159",
        methods=("length_regularized_dpo",),
        contrasts=("dpo",),
        tolerance=1e-8,
        check=regularized_dpo_prices_tokens,
    ),
    Theorem(
        name="mean_likelihood_favors_the_short",
        claim="The likelihood per token of chosen completions is largest at their law, each "
        "weighted by 1 / length.",
        control="So is the likelihood of whole completions.",
        source=_CHOSEN,
        methods=("chosen_nll_mean",),
        contrasts=("chosen_nll",),
        tolerance=1e-8,
        check=mean_likelihood_favors_the_short,
    ),
    Theorem(
        name="rpo_mean_lies_between",
        claim="As the weight of the likelihood falls to 0, RPO per token converges to the optimum "
        "of DPO; as it grows, to the law of chosen completions, each weighted by 1 / length.",
        control="It ends at either for a weight of beta, too.",
        source=_RPO,
        methods=("rpo_mean",),
        tolerance=1e-5,
        check=rpo_mean_lies_between,
    ),
    Theorem(
        name="rpo_mean_is_rpo_of_one_length",
        claim="Where all completions have L tokens, RPO per token is RPO with eta = sft_weight / "
        "(L beta).",
        control="It is so for completions of several lengths.",
        source=_RPO,
        methods=("rpo_mean", "rpo"),
        tolerance=1e-12,
        check=rpo_mean_is_rpo_of_one_length,
    ),
)
