"""Weighted sums of objectives on the same data."""

from collections.abc import Sequence

from torch import Tensor

from veritune.errors import SettingsError
from veritune.logprobs import LogProbs
from veritune.objectives.card import Card

WEIGHT = "weight"
"""What the factor of a part is called; no objective has a hyper-parameter of this name."""


def combine(cards: Sequence[Card]) -> Card:
    """The card of a weighted sum: `loss = sum over parts of weight * loss of the part`.

    The hyper-parameters of a part carry its name: `dpo.beta`, and `dpo.weight` for its factor. No
    target is claimed, also where the parts have one: a sum of losses has its minimum elsewhere.

    Args:
        cards: At least two, of one kind of data, all different.

    Raises:
        SettingsError: The parts cannot be added.
    """
    names = [card.name for card in cards]
    _check(cards, names)

    def loss(data: LogProbs, **settings: float) -> Tensor:
        return _weighted(cards, [card.loss for card in cards], data, settings)

    def initial_loss(data: LogProbs, **settings: float) -> Tensor:
        closed_forms = [card.initial_loss for card in cards]
        return _weighted(cards, [f for f in closed_forms if f is not None], data, settings)

    loss.__name__ = "+".join(names) + "_loss"
    loss.__doc__ = (
        f"Weighted sum of {', '.join(names)}.\n\n"
        f"    loss = {' + '.join(f'{name}.{WEIGHT} * {name}' for name in names)}\n\n"
        f"Source:\n    {'; '.join(card.source for card in cards)}.\n"
    )
    return Card(
        loss=loss,
        data=cards[0].data,
        source="; ".join(card.source for card in cards),
        title=" and ".join(card.title for card in cards),
        target="none claimed for the sum",
        initial_loss=initial_loss if all(card.initial_loss for card in cards) else None,
        needs_reference=any(card.needs_reference for card in cards),
        needs_mismatched=any(card.needs_mismatched for card in cards),
        needs_mean_log_ratio=any(card.needs_mean_log_ratio for card in cards),
        needs_common_length=any(card.needs_common_length for card in cards),
        needs_advantages=any(card.needs_advantages for card in cards),
        normalizer=cards[0].normalizer,
        finite_everywhere=all(card.finite_everywhere for card in cards),
        data_fraction=_first([(card.name, card.data_fraction) for card in cards]),
        reward_scale=_first([(card.name, card.reward_scale) for card in cards]),
    )


def _check(cards: Sequence[Card], names: Sequence[str]) -> None:
    fix = "choose parts that can be added (veritune objectives)"
    where = "objective.combine"
    if len(cards) < 2:
        raise SettingsError(
            "a combination has at least two parts", where=where, got=list(names), fix=fix
        )
    if len(set(names)) < len(names):
        raise SettingsError(
            "an objective stands twice in a combination",
            where=where,
            got=list(names),
            why="the settings of a part are told apart by its name",
            fix="name it once, with the sum of the weights",
        )
    for what, values in (
        ("take different kinds of records", [card.kind for card in cards]),
        ("are averaged over different things", [card.normalizer for card in cards]),
    ):
        if len(set(values)) > 1:
            told = [f"{name}: {value}" for name, value in zip(names, values, strict=True)]
            raise SettingsError(
                f"the parts of a combination {what}",
                where=where,
                got=", ".join(told),
                why="their losses are added example by example",
                fix=fix,
            )


def _weighted(
    cards: Sequence[Card],
    functions: Sequence[object],
    data: LogProbs,
    settings: dict[str, float],
) -> Tensor:
    terms = []
    for card, function in zip(cards, functions, strict=True):
        prefix = f"{card.name}."
        own = {k.removeprefix(prefix): v for k, v in settings.items() if k.startswith(prefix)}
        weight = own.pop(WEIGHT)
        assert callable(function), "a loss is a function"
        terms.append(weight * function(data, **own))
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    assert isinstance(total, Tensor), "a loss is a tensor"
    return total


def _first(settings: Sequence[tuple[str, str | None]]) -> str | None:
    """The first hyper-parameter that is named, as the combination calls it."""
    return next((f"{name}.{own}" for name, own in settings if own is not None), None)
