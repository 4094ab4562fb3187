"""Where training starts: the loss of every objective while the policy is still the reference."""

import dataclasses
import math
from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float64
from torch import Tensor

from veritune.laboratory.comparisons import pairs_of
from veritune.laboratory.extremes import largest_residual, smallest_control
from veritune.laboratory.labels import one_class
from veritune.laboratory.theorem import Evidence, Theorem
from veritune.objectives.card import Card
from veritune.objectives.catalog import CATALOG, hyperparameters
from veritune.objectives.laws import Trial
from veritune.objectives.paired.dpo import dpo_loss
from veritune.objectives.paired.exo_pref import exo_pref_loss
from veritune.objectives.unpaired.kto import kto_loss
from veritune.objectives.unpaired.rdro import rdro_loss

_CARDS = tuple(card for card in CATALOG.values() if card.initial_loss is not None)
_WITHOUT_DEFAULT = 0.4
_SCALES = (1.0, 0.5)
_LOG_TWO = math.log(2)


def _settings(card: Card) -> Iterator[dict[str, float]]:
    """The defaults, and half of each, which stays in every range there is."""
    values = {
        name: _WITHOUT_DEFAULT if parameter.default is None else parameter.default
        for name, parameter in hyperparameters(card).items()
    }
    for scale in _SCALES:
        yield {name: scale * value for name, value in values.items()}


def _distance_to_card(card: Card, settings: Mapping[str, float], *, starts: bool) -> float:
    """Largest relative difference between the loss and what the card says of its start.

    At the start policy and reference are equal, and so far no mean log-ratio was anything but zero;
    else the policy is up to half a nat away.
    """
    assert card.initial_loss is not None, "only cards that say something are asked"
    trial = Trial(card, settings)
    tables = trial.tables()
    assert tables.reference is not None, "a trial has a reference"
    tables = dataclasses.replace(
        tables,
        policy=tables.reference if starts else tables.policy,
        mismatched_log_ratio=0.0,
        mean_log_ratio=0.0,
    )
    # A policy that is not a number shows that the closed form does not read it.
    blank = dataclasses.replace(tables, policy=torch.full_like(tables.policy, torch.nan))
    claimed = card.initial_loss(trial.data(blank), **settings)
    return float(((trial.loss(tables) - claimed).abs() / (1 + claimed.abs())).max())


def cards_say_where_training_starts() -> Evidence:
    """Losses of every objective with a closed form against that form."""
    residuals: list[float] = []
    controls: list[float] = []
    for card in _CARDS:
        for settings in _settings(card):
            residuals.append(_distance_to_card(card, settings, starts=True))
            controls.append(_distance_to_card(card, settings, starts=False))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"{len(_CARDS)} objectives, default hyper-parameters and half of each: relative difference "
        f"at most {max(residuals):.1e}; with the policy up to half a nat away at least "
        f"{min(controls):.1e}",
    )


def _published(log_ratio: Float64[Tensor, " B"]) -> Iterator[tuple[str, Tensor, float]]:
    """Losses of examples whose first side has these log-ratios, and the number at their start."""
    pairs = pairs_of(log_ratio, torch.zeros_like(log_ratio))
    for beta in (0.01, 0.1, 1.0):
        yield "DPO", dpo_loss(pairs, beta=beta), _LOG_TWO
        for epsilon in (1e-3, 0.1):
            claimed = -_LOG_TWO - 0.5 * math.log(epsilon * (1 - epsilon))
            yield "EXO", exo_pref_loss(pairs, beta=beta, epsilon=epsilon), claimed
    for is_desirable in (True, False):
        labels = one_class(log_ratio, is_desirable=is_desirable)
        for alpha in (0.2, 0.39, 0.5, 0.8):
            claimed = (1 + alpha if is_desirable else 1 - alpha) * _LOG_TWO
            yield "RDRO", rdro_loss(labels, alpha=alpha), claimed
        labels = dataclasses.replace(labels, mismatched_log_ratio=log_ratio.new_tensor(0.0))
        yield "KTO", kto_loss(labels, beta=0.1), 0.5


def papers_say_where_training_starts() -> Evidence:
    """Losses against the numbers that follow from the papers' formulas."""
    residuals, controls = (
        [
            float((losses - claimed).abs().max())
            for _, losses, claimed in _published(torch.tensor([away], dtype=torch.float64))
        ]
        for away in (0.0, -0.5)
    )
    at_reference = _published(torch.zeros(1, dtype=torch.float64))
    seen = {name: f"{name} {float(losses):.4f}" for name, losses, _ in at_reference}
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"{len(residuals)} losses, among them {', '.join(seen.values())}: difference at most "
        f"{max(residuals):.1e}; half a nat away at least {min(controls):.1e}",
    )


THEOREMS: tuple[Theorem, ...] = (
    Theorem(
        name="initial_losses_of_the_papers",
        claim="While the policy is the reference the loss of DPO is log 2, that of EXO on pairs "
        "-log 2 - log(epsilon (1 - epsilon)) / 2, that of RDRO (1 + alpha) log 2 for a desirable "
        "and (1 - alpha) log 2 for an undesirable completion, and that of KTO 1/2.",
        control="They are the same where the policy has moved by half a nat.",
        source="derived here from arXiv:2305.18290, arXiv:2402.00856, arXiv:2604.04410 and "
        "arXiv:2402.01306",
        methods=("dpo", "exo_pref", "rdro", "kto"),
        tolerance=1e-13,
        check=papers_say_where_training_starts,
    ),
    Theorem(
        name="initial_losses_are_known",
        claim="While the policy is the reference the loss of every objective on given data that "
        "reads a reference is the closed form on its card.",
        control="It is so where the policy is elsewhere.",
        source="derived here, objective by objective",
        methods=tuple(card.name for card in _CARDS),
        tolerance=1e-12,
        check=cards_say_where_training_starts,
    ),
)
