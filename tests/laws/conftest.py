"""Every law is checked for every member of the catalog."""

import pytest

from veritune.objectives.card import Card
from veritune.objectives.catalog import CATALOG, settings_of
from veritune.objectives.laws import Trial

REQUIRED = {"pmle_kl": {"kl_weight": 0.2}}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A law that asks for `card` is checked for every member of the catalog."""
    if "card" in metafunc.fixturenames:
        metafunc.parametrize("card", CATALOG.values(), ids=CATALOG.keys())


@pytest.fixture
def settings(card: Card) -> dict[str, float]:
    """The defaults of the card, and one value for what has none."""
    return settings_of(card, REQUIRED.get(card.name, {}), data_fraction=0.39)


@pytest.fixture
def trial(card: Card, settings: dict[str, float]) -> Trial:
    return Trial(card, settings)
