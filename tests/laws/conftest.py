"""Data of the right form for any card, from one table of log-probabilities."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from veritune.logprobs import (
    CompletionLogProbs,
    DemonstrationLogProbs,
    LogProbs,
    PairedLogProbs,
    ScoredLogProbs,
    UnpairedLogProbs,
)
from veritune.objectives.card import Card
from veritune.objectives.catalog import CATALOG, settings_of

NUM_COLUMNS = {"demonstration": 1, "paired": 2, "scored": 3, "unpaired": 1}
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
def num_columns(card: Card) -> int:
    """Completions of one example."""
    return NUM_COLUMNS[card.kind]


@pytest.fixture
def data_of(card: Card) -> Callable[..., LogProbs]:
    return lambda policy, reference, mismatched=0.3: _data(card, policy, reference, mismatched)


def _data(card: Card, policy: Tensor, reference: Tensor | None, mismatched: float) -> LogProbs:
    """The form of the card from (B, columns) log-probabilities.

    Labels alternate, the counts of the global batch are those of a larger one, and every second
    scored group lacks its last completion.
    """
    num_examples = len(policy)
    is_even = torch.arange(num_examples) % 2 == 0
    if card.kind == "paired":
        return PairedLogProbs(_column(policy, reference, 0), _column(policy, reference, 1))
    if card.kind == "demonstration":
        return DemonstrationLogProbs(_column(policy, reference, 0))
    if card.kind == "unpaired":
        return UnpairedLogProbs(
            completion=_column(policy, reference, 0),
            desirable=is_even,
            num_desirable=39,
            num_undesirable=61,
            mismatched_log_ratio=policy.new_tensor(mismatched),
        )
    present = torch.ones_like(policy, dtype=torch.bool)
    present[~is_even, -1] = False
    row = policy.new_tensor([0.7, -1.1, 0.4])
    scores = (row.roll(1) + torch.outer(is_even.to(row), row)).where(present, 0)
    length = torch.full_like(present, 5, dtype=torch.long)
    return ScoredLogProbs(CompletionLogProbs(policy, length, reference), scores, present)


def _column(policy: Tensor, reference: Tensor | None, column: int) -> CompletionLogProbs:
    return CompletionLogProbs(
        policy=policy[:, column],
        length=torch.full((len(policy),), 5),
        reference=None if reference is None else reference[:, column],
    )
