"""List the objectives, or print the card of one: from the catalog, or from a user's own file."""

from itertools import groupby

from veritune.bridge import EVERY_THEOREM
from veritune.commands.display import Display
from veritune.laboratory.theorem import Theorem
from veritune.objectives.card import Card
from veritune.objectives.catalog import CATALOG, describe, find_card, hyperparameters, wrapped
from veritune.objectives.choice import ObjectiveConfig, choose, law_breaches, num_laws
from veritune.objectives.custom import is_custom, load_card


def show_objectives(name: str | None, display: Display) -> None:
    """The catalog by kind of data, or one card.

    Raises:
        SettingsError: There is no objective of this name.
    """
    if name is not None:
        _show_card(name, display)
        return
    for kind, group in groupby(CATALOG.values(), key=lambda card: card.kind):
        display.note(f"{kind} records" if kind != "sampled" else "sampled by the policy")
        for card in group:
            display.note(wrapped(_headline(card), first=2, hanging=6))
            display.note(wrapped(card.target, first=6, hanging=6))
    display.note(
        "\nOne card in full, with the formula: veritune objectives NAME"
        "\nIts theorems, checked here and now: veritune lab NAME"
        "\nWhich one to take: docs/choosing-an-objective.md"
    )


def theorems_about(name: str) -> list[Theorem]:
    """The theorems of the laboratory whose claim is about an objective."""
    return [theorem for theorem in EVERY_THEOREM if name in theorem.methods]


def theorems_against(name: str) -> list[Theorem]:
    """Those whose false claim alone is about it: others are held against it."""
    return [theorem for theorem in EVERY_THEOREM if name in theorem.contrasts]


def _show_card(name: str, display: Display) -> None:
    if is_custom(name):
        _show_own(name, display)
        return
    display.note(describe(find_card(name)))
    theorems = theorems_about(name)
    if theorems:
        display.note(f"theorems, checked by veritune lab {name}:")
        for theorem in theorems:
            display.note(wrapped(f"- {theorem.claim}", first=2, hanging=4))
    against = theorems_against(name)
    if against:
        names = ", ".join(theorem.name for theorem in against)
        display.note(wrapped(f"theorems held against it: {names}", first=0, hanging=2))


def _show_own(name: str, display: Display) -> None:
    """The card of a function of the user's own, and which laws it breaks."""
    card = load_card(name).card
    missing = [p.name for p in hyperparameters(card).values() if p.is_required]
    if missing:
        # What the function reads, and the laws, are found by calling it.
        display.note(describe(card))
        display.note(f"laws: not checked without a default of {', '.join(missing)}")
        return
    choice = choose(ObjectiveConfig(name=name), data_fraction=None)
    display.note(describe(choice.card))
    broken = law_breaches(choice) or [f"none; all {num_laws()} hold"]
    display.note("\n".join(["laws that it breaks:", *(f"  {what}" for what in broken)]))


def _headline(card: Card) -> str:
    """Name, title, what is peculiar, source, and how many theorems there are."""
    title = card.title if card.needs_reference else f"{card.title} (no reference)"
    count = len(theorems_about(card.name))
    checked = [f"{count} theorem{'s' if count > 1 else ''}"] if count else []
    return f"{card.name}  " + " · ".join([title, _short_source(card.source), *checked])


def _short_source(source: str) -> str:
    """The paper alone: `arXiv:2305.18290, eq. 7` is `arXiv:2305.18290`."""
    return source.replace(";", ",").partition(",")[0]
