"""Relatives of DPO, pair by pair: MinorDPO, which is DPO until a rejected completion has become
unlikely, and BCO, whose loss is never below that of DPO."""

import dataclasses

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from veritune.laboratory.comparisons import pair_forces, pairs_of
from veritune.laboratory.extremes import largest_residual, smallest_control
from veritune.laboratory.labels import one_class
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import bradley_terry_problem
from veritune.laboratory.theorem import Evidence, Theorem
from veritune.objectives.paired.bco_pair import bco_pair_loss
from veritune.objectives.paired.dpo import dpo_loss, dpo_optimum
from veritune.objectives.paired.minor_dpo import minor_dpo_loss
from veritune.objectives.unpaired.bco import bco_loss
from veritune.seeds import stream

_SEEDS = (0, 1, 2)
_BETAS = (0.05, 0.3, 1.0)
_NUM_PAIRS = 2000


def _log_ratios(what: str, spread: float) -> Float64[Tensor, "2 B"]:
    """Log-ratios of chosen and of rejected completions, evenly between plus and minus `spread`."""
    generator = stream(0, "laboratory", what)
    drawn = torch.rand(2, _NUM_PAIRS, generator=generator, dtype=torch.float64)
    return spread * (2 * drawn - 1)


def minor_dpo_lets_go() -> Evidence:
    """Forces on rejected completions that are less likely than under the reference."""
    chosen, rejected = _log_ratios("minor dpo", 4.0)
    unlikely = -rejected.abs() - 1e-6
    residuals: list[float] = []
    controls: list[float] = []
    for beta in _BETAS:
        for loss, values in ((minor_dpo_loss, residuals), (dpo_loss, controls)):
            force = pair_forces(loss, chosen, unlikely, beta=beta)[1].abs()
            values.append(float(force.max() if loss is minor_dpo_loss else force.min()))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"{_NUM_PAIRS} pairs, rejected log-ratios from -4 to -1e-6, beta = 0.05, 0.3 and 1: force "
        f"{max(residuals):g}; that of DPO at least {min(controls):.1e}",
    )


def minor_dpo_is_dpo_while_likely() -> Evidence:
    """Losses and forces of MinorDPO and DPO where rejected completions are likely, and not."""
    chosen, rejected = _log_ratios("minor dpo", 4.0)
    # At the reference itself there is a kink; the slope there is the one from above.
    likely = rejected.abs() * (torch.arange(_NUM_PAIRS) > 0)
    residuals: list[float] = []
    controls: list[float] = []
    for beta in _BETAS:
        for given, values in ((likely, residuals), (-likely, controls)):
            pairs = pairs_of(chosen, given)
            losses = minor_dpo_loss(pairs, beta=beta) - dpo_loss(pairs, beta=beta)
            forces = [
                pair_forces(loss, chosen, given, beta=beta) for loss in (minor_dpo_loss, dpo_loss)
            ]
            values.append(float(torch.cat([losses[None], forces[0] - forces[1]]).abs().max()))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"{_NUM_PAIRS} pairs, rejected log-ratios from 0 to 4, beta = 0.05, 0.3 and 1: losses and "
        f"forces differ by at most {max(residuals):.1e}, where less likely by {min(controls):.2f} "
        f"to {max(controls):.2f}",
    )


def tilted_reference_is_no_rest_for_minor_dpo() -> Evidence:
    """Gradients of the expected losses of DPO and MinorDPO at the optimum of DPO."""
    residuals: list[float] = []
    controls: list[float] = []
    for seed in _SEEDS:
        problem = bradley_terry_problem(5, seed)
        for beta in (0.3, 1.0):
            logits = dpo_optimum(problem, beta=beta).requires_grad_()
            for loss, values in ((dpo_loss, residuals), (minor_dpo_loss, controls)):
                expected = population_loss(loss, problem, beta=beta)
                (gradient,) = torch.autograd.grad(expected(logits.log_softmax(dim=0)), logits)
                values.append(float(gradient.norm()))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"Y = 5, beta = 0.3 and 1: gradient norm of DPO at most {max(residuals):.1e}, of MinorDPO "
        f"{min(controls):.3f} to {max(controls):.3f}",
    )


def _labelled_losses(
    chosen: Float[Tensor, " B"],
    rejected: Float[Tensor, " B"],
    *,
    beta: float,
    shifts: tuple[float, float],
) -> Float[Tensor, " B"]:
    """BCO's losses of the two sides as single labels, each with a mean log-ratio of its own."""
    total = torch.zeros_like(chosen)
    for log_ratio, is_desirable, shift in zip(
        (chosen, rejected), (True, False), shifts, strict=True
    ):
        labels = one_class(log_ratio, is_desirable=is_desirable)
        labels = dataclasses.replace(labels, mean_log_ratio=log_ratio.new_tensor(shift))
        total = total + bco_loss(labels, beta=beta)
    return total


def bco_bounds_dpo() -> Evidence:
    """The largest amount by which a loss of DPO is above that of BCO."""
    residuals: list[float] = []
    controls: list[float] = []
    gaps: list[float] = []
    for spread in (3.0, 30.0):
        chosen, rejected = _log_ratios("bco", spread)
        for beta in _BETAS:
            dpo = dpo_loss(pairs_of(chosen, rejected), beta=beta)
            for shift in (-spread, -0.3 * spread, 0.0, 0.3 * spread, spread):
                pairs = pairs_of(chosen, rejected, mean_log_ratio=shift)
                for bound in (
                    bco_pair_loss(pairs, beta=beta),
                    _labelled_losses(chosen, rejected, beta=beta, shifts=(shift, shift)),
                ):
                    residuals.append(float((dpo - bound).max()))
                    gaps.append(float((bound - dpo).mean()))
            # Rewards of the two sides are counted from -5 and 5.
            apart = _labelled_losses(chosen, rejected, beta=beta, shifts=(-5 / beta, 5 / beta))
            controls.append(float((dpo - apart).max()))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"{_NUM_PAIRS} pairs with log-ratios up to 3 and up to 30 nats, five shifts, beta = 0.05, "
        f"0.3 and 1: BCO is above DPO by {min(gaps):.2f} to {max(gaps):.2f} nats in the mean; with "
        f"two shifts DPO is above by up to {max(controls):.2f}",
    )


def _bound(chosen: Tensor, rejected: Tensor, *, beta: float, shift: float) -> float:
    pairs = pairs_of(chosen, rejected, mean_log_ratio=shift)
    return float(bco_pair_loss(pairs, beta=beta))


def bco_is_tightest_at_the_mean() -> Evidence:
    """How much lower the bound of a pair becomes at another shift than the mean of the two."""
    chosen, rejected = _log_ratios("bco shift", 3.0)[:, :20, None]
    shifts = torch.linspace(-6, 6, 121).tolist()
    residuals: list[float] = []
    controls: list[float] = []
    for beta in _BETAS:
        gains = []
        for pair in zip(chosen, rejected, strict=True):
            lowest = min(_bound(*pair, beta=beta, shift=shift) for shift in shifts)
            mean = float(pair[0] + pair[1]) / 2
            residuals.append(_bound(*pair, beta=beta, shift=mean) - lowest)
            gains.append(_bound(*pair, beta=beta, shift=0.0) - lowest)
        controls.append(max(gains))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        "20 pairs with log-ratios up to 3 nats, 121 shifts from -6 to 6, beta = 0.05, 0.3 and 1: "
        f"none is lower than the mean of the two; at 0 the bound is up to {max(controls):.2f} nats "
        "looser",
    )


_MINOR = "Xie et al. 2024, arXiv:2408.09834"
_BCO = "Jung et al. 2024, arXiv:2404.04656"

THEOREMS: tuple[Theorem, ...] = (
    Theorem(
        name="minor_dpo_lets_go_of_the_rejected",
        claim="MinorDPO exerts no force on a rejected completion that is less likely than under "
        "the reference.",
        control="Neither does DPO.",
        source=f"{_MINOR}, the loss",
        methods=("minor_dpo",),
        contrasts=("dpo",),
        tolerance=1e-15,
        check=minor_dpo_lets_go,
    ),
    Theorem(
        name="minor_dpo_is_dpo_while_likely",
        claim="While a rejected completion is at least as likely as under the reference, MinorDPO "
        "has the loss and the forces of DPO.",
        control="It has them where the completion is less likely, too.",
        source=f"{_MINOR}, the loss",
        methods=("minor_dpo", "dpo"),
        tolerance=1e-14,
        check=minor_dpo_is_dpo_while_likely,
    ),
    Theorem(
        name="minor_dpo_is_no_reward_estimator",
        claim="Under Bradley-Terry preferences the gradient of DPO vanishes at the reference "
        "tilted by exp(reward / beta).",
        control="That of MinorDPO vanishes there, too.",
        source="Rafailov et al. 2023, arXiv:2305.18290, eq. 4; for MinorDPO derived here",
        methods=("dpo",),
        contrasts=("minor_dpo",),
        tolerance=1e-10,
        check=tilted_reference_is_no_rest_for_minor_dpo,
    ),
    Theorem(
        name="bco_bounds_dpo",
        claim="Whatever the reward is counted from, BCO's losses of a chosen and a rejected "
        "completion add up to no less than the loss of DPO on the two as a pair.",
        control="They do so if chosen and rejected completions are counted from different rewards.",
        source=f"{_BCO}, the theorem on binary cross-entropy",
        methods=("bco", "bco_pair", "dpo"),
        tolerance=1e-12,
        check=bco_bounds_dpo,
    ),
    Theorem(
        name="bco_is_tightest_at_the_mean",
        claim="For one pair BCO's bound on DPO is tightest if rewards are counted from the mean of "
        "the two.",
        control="It is tightest if they are counted from zero.",
        source=f"derived here; the shift is that of {_BCO}",
        methods=("bco_pair",),
        tolerance=1e-12,
        check=bco_is_tightest_at_the_mean,
    ),
)
