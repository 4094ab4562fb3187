"""Which records a step meets, and in which proportion."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veritune.batches.loader import Loader, num_steps
from veritune.batches.order import RecordOrder


@given(
    num_good=st.integers(1, 40),
    num_bad=st.integers(1, 40),
    batch_size=st.integers(1, 25),
    seed=st.integers(0, 50),
)
def test_every_batch_of_labels_holds_both_classes_in_the_proportion_of_the_data(
    num_good: int, num_bad: int, batch_size: int, seed: int
) -> None:
    total = num_good + num_bad
    labels = np.arange(total) < num_good
    loader = Loader(RecordOrder(total, seed, labels), batch_size, 3 * total)
    start = 0
    for batch, stop in loader.batches():
        share = num_good / total
        excess = abs(sum(labels[list(batch.indices)]) - share * len(batch.indices))
        crosses = start // total != (stop - 1) // total
        # Within an epoch the number is right up to rounding; at a seam two roundings meet.
        assert excess < (2 if crosses else 1) + 1e-9
        start = stop


def test_an_order_that_ignores_labels_breaks_the_proportion() -> None:
    """Control: chance alone does not keep it."""
    labels = np.arange(60) < 20
    loader = Loader(RecordOrder(60, 0), 12, 60)
    excess = [abs(sum(labels[list(batch.indices)]) - 4) for batch, _ in loader.batches()]
    assert max(excess) >= 1


@pytest.mark.parametrize("labels", [None, np.arange(13) % 3 == 0])
def test_every_epoch_meets_every_record_once_in_another_order(
    labels: np.ndarray[tuple[int], np.dtype[np.bool_]] | None,
) -> None:
    order = RecordOrder(13, 5, labels)
    epochs = [order.slice(13 * n, 13 * (n + 1)) for n in range(4)]
    assert all(Counter(epoch) == Counter(range(13)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_batches_from_the_middle_are_those_of_the_whole_stream() -> None:
    prompts = [bytes([n // 2]) for n in range(13)]
    whole = list(Loader(RecordOrder(13, 3), 5, 32, prompts).batches())
    for place in range(len(whole)):
        begin = 0 if place == 0 else whole[place - 1][1]
        rest = list(Loader(RecordOrder(13, 3), 5, 32, prompts).batches(begin))
        assert rest == whole[place:]
    assert [len(batch.indices) for batch, _ in whole] == [5, 5, 5, 5, 5, 5, 2]


def test_epochs_and_batch_size_give_the_number_of_steps() -> None:
    assert num_steps(13, 5, 1) == 3
    assert num_steps(13, 5, 2) == 6
    assert num_steps(13, 5, 0.5) == 2
    assert num_steps(10, 5, 1) == 2
    assert num_steps(13, 100, 1) == 1
    assert num_steps(13, 5, 0.01) == 1


def test_a_mismatched_partner_is_the_next_record_of_the_batch_with_another_prompt() -> None:
    prompts = [bytes([n // 3]) for n in range(12)]
    for batch, _ in Loader(RecordOrder(12, 1), 4, 36, prompts).batches():
        for place, (index, partner) in enumerate(zip(batch.indices, batch.mismatched, strict=True)):
            following = [*batch.indices[place + 1 :], *batch.indices[:place]]
            others = [i for i in following if prompts[i] != prompts[index]]
            assert partner == others[0]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_mismatched_partner_never_has_the_same_prompt(batch_size: int) -> None:
    # One record in eight has another prompt than the rest.
    prompts = [b"often"] * 7 + [b"seldom"]
    for batch, _ in Loader(RecordOrder(8, 2), batch_size, 40, prompts).batches():
        for index, partner in zip(batch.indices, batch.mismatched, strict=True):
            assert partner is not None
            assert prompts[partner] != prompts[index]


def test_where_there_is_one_prompt_there_is_no_partner() -> None:
    batch, _ = next(Loader(RecordOrder(4, 0), 3, 4, [b"one"] * 4).batches())
    assert batch.mismatched == (None, None, None)
