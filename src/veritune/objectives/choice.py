"""Which objective a run has: one of the catalog, one of the user's own, or a weighted sum."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict

from veritune.config import Config
from veritune.errors import SettingsError
from veritune.objectives.card import Card
from veritune.objectives.catalog import find_card, settings_of
from veritune.objectives.combine import WEIGHT, combine
from veritune.objectives.custom import (
    custom_file,
    declare_what_is_read,
    is_custom,
    load_card,
    on_a_small_example,
)
from veritune.objectives.laws import LAWS, breaches
from veritune.ranges import Positive


class PartConfig(Config):
    """One part of a combination, and its hyper-parameters beside the name."""

    model_config = ConfigDict(extra="allow")
    SHORTHAND: ClassVar[str | None] = "name"

    name: str
    """A name that `veritune objectives` lists, or `path/to/my_loss.py:my_loss`."""

    weight: Positive = 1.0
    """What the loss of this part is multiplied by."""


class ObjectiveConfig(Config):
    """Which objective, and its hyper-parameters beside the name."""

    model_config = ConfigDict(extra="allow")
    SHORTHAND: ClassVar[str | None] = "name"

    name: str | None = None
    """A name that `veritune objectives` lists, or `path/to/my_loss.py:my_loss`."""

    combine: tuple[PartConfig, ...] | None = None
    """Instead of a name: objectives on one kind of records whose losses are added,
    `[{name: dpo, beta: 0.1}, {name: chosen_nll, weight: 0.01}]`."""


@dataclass(frozen=True)
class Choice:
    """An objective with every hyper-parameter."""

    card: Card
    hyperparameters: dict[str, float]
    config: ObjectiveConfig
    """The settings that give this very objective, defaults included."""

    files: tuple[Path, ...] = ()
    """The user's own files that it is made from."""

    @property
    def file_hashes(self) -> dict[str, str]:
        """What each of these files held, by name."""
        return {
            str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(self.files)
        }


def choose(config: ObjectiveConfig, *, data_fraction: float | None) -> Choice:
    """The objective that the settings name.

    Args:
        config: A name with hyper-parameters, or a combination.
        data_fraction: Share of desirable examples in the training data, or None if unknown.

    Raises:
        SettingsError: There is no such objective, or a hyper-parameter is wrong.
    """
    given = dict(config.model_extra or {})
    if config.combine is None:
        if config.name is None:
            raise SettingsError(
                "no objective is named",
                where="objective",
                got=given,
                fix="name one, objective=rdro, or combine two (veritune objectives)",
            )
        card, settings = _one(config.name, given, data_fraction)
        files = (custom_file(config.name),) if is_custom(config.name) else ()
        return Choice(card, settings, _named(config.name, settings), files)
    if config.name is not None or given:
        raise SettingsError(
            "a combination has no name or hyper-parameters of its own",
            where="objective",
            got={"name": config.name, **given},
            fix="give them to its parts: "
            "objective.combine='[{name: dpo, beta: 0.1}, {name: chosen_nll, weight: 0.01}]'",
        )
    return _combination(config.combine, data_fraction)


def law_breaches(choice: Choice) -> list[str]:
    """What a function of the user's own breaks; empty for what the catalog is made of.

    Raises:
        SettingsError: It breaks a law that training presupposes, or fails on a small example.
    """
    if not choice.files:
        return []
    found = on_a_small_example(
        lambda: list(breaches(choice.card, choice.hyperparameters)), choice.card
    )
    for law, what in found:
        if law.is_essential:
            raise SettingsError(
                f"the objective breaks a law that training presupposes ({law.name}): {what}",
                where="objective",
                got=choice.card.name,
                why="a step is the mean of such losses over the global batch, however it is cut",
                fix=law.remedy,
            )
    return [f"{law.name}: {what}" for law, what in found]


def num_laws() -> int:
    """How many laws there are."""
    return len(LAWS)


def _one(
    name: str, given: Mapping[str, object], data_fraction: float | None
) -> tuple[Card, dict[str, float]]:
    if not is_custom(name):
        card = find_card(name)
        return card, settings_of(card, given, data_fraction=data_fraction)
    card, is_own = load_card(name)
    settings = settings_of(card, given, data_fraction=data_fraction)
    # A card that the file brings itself is taken at its word, and held to it by the laws.
    return (card if is_own else declare_what_is_read(card, settings)), settings


def _named(name: str, settings: Mapping[str, float]) -> ObjectiveConfig:
    return ObjectiveConfig.model_validate({"name": name, **settings})


def _combination(parts: tuple[PartConfig, ...], data_fraction: float | None) -> Choice:
    cards: list[Card] = []
    settings: dict[str, float] = {}
    configs: list[PartConfig] = []
    for part in parts:
        card, own = _one(part.name, part.model_extra or {}, data_fraction)
        cards.append(card)
        settings |= {f"{card.name}.{key}": value for key, value in own.items()}
        settings[f"{card.name}.{WEIGHT}"] = part.weight
        configs.append(PartConfig.model_validate({"name": part.name, "weight": part.weight, **own}))
    files = tuple(custom_file(part.name) for part in parts if is_custom(part.name))
    return Choice(combine(cards), settings, ObjectiveConfig(combine=tuple(configs)), files)
