"""The order of records: a fresh permutation per epoch, and a position is all there is to it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veritune.batches.order import RecordOrder


@given(num_records=st.integers(1, 60), seed=st.integers(0, 5), epoch=st.integers(0, 4))
def test_every_epoch_is_a_permutation(num_records: int, seed: int, epoch: int):
    order = RecordOrder(num_records, seed)

    records = order.slice(epoch * num_records, (epoch + 1) * num_records)

    assert sorted(records) == list(range(num_records))


@given(labels=st.lists(st.booleans(), min_size=1, max_size=60), epoch=st.integers(0, 3))
def test_every_epoch_of_labelled_data_is_a_permutation(labels: list[bool], epoch: int):
    order = RecordOrder(len(labels), 0, np.array(labels))

    records = order.slice(epoch * len(labels), (epoch + 1) * len(labels))

    assert sorted(records) == list(range(len(labels)))


def test_epochs_and_seeds_have_different_orders():
    order = RecordOrder(50, 0)

    orders = {tuple(order.slice(50 * epoch, 50 * epoch + 50)) for epoch in range(5)}
    orders |= {tuple(RecordOrder(50, seed).slice(0, 50)) for seed in range(1, 5)}

    assert len(orders) == 9
    assert tuple(range(50)) not in orders


@given(positions=st.lists(st.integers(0, 200), min_size=1, max_size=20))
def test_a_position_alone_decides_the_record(positions: list[int]):
    """Whatever was asked for before, in whatever order, and in whatever pieces."""
    used = RecordOrder(17, 3)
    stream = RecordOrder(17, 3).slice(0, 201)

    assert [used[position] for position in positions] == [stream[p] for p in positions]
    assert used.slice(30, 60) == stream[30:60]


@given(
    num_desirable=st.integers(0, 40),
    num_undesirable=st.integers(0, 40),
    seed=st.integers(0, 3),
    start=st.integers(0, 80),
    length=st.integers(1, 40),
)
def test_every_stretch_holds_both_classes_in_the_proportion_of_the_data(
    num_desirable: int, num_undesirable: int, seed: int, start: int, length: int
):
    total = num_desirable + num_undesirable
    if total == 0:
        return
    labels = np.array([True] * num_desirable + [False] * num_undesirable)
    start, stop = start % total, min(start % total + length, total)

    records = RecordOrder(total, seed, labels).slice(start, stop)

    # Rounding: less than one too many or too few at each end of the stretch.
    expected = len(records) * num_desirable / total
    assert abs(labels[records].sum() - expected) < 2


def test_without_strata_a_stretch_departs_from_the_proportion_of_the_data():
    """The control of the test above."""
    labels = np.array([True] * 100 + [False] * 100)
    order = RecordOrder(200, 0)

    departures = [abs(labels[order.slice(i, i + 40)].sum() - 20) for i in range(160)]

    assert max(departures) >= 4


def test_within_a_class_the_order_is_random():
    labels = np.array([True] * 30 + [False] * 30)

    records = RecordOrder(60, 0, labels).slice(0, 60)

    desirable = [r for r in records if labels[r]]
    assert desirable != sorted(desirable)
    assert len({RecordOrder(60, seed, labels)[0] for seed in range(12)}) > 4


def test_either_class_may_come_first():
    labels = np.array([True] * 30 + [False] * 30)

    assert {bool(labels[RecordOrder(60, seed, labels)[0]]) for seed in range(12)} == {True, False}


@pytest.mark.parametrize("labels", [[True] * 5, [False] * 5])
def test_one_class_alone_is_an_order_too(labels: list[bool]):
    assert sorted(RecordOrder(5, 0, np.array(labels)).slice(0, 5)) == list(range(5))


def test_an_order_of_one_record_repeats_it():
    assert RecordOrder(1, 0).slice(0, 3) == [0, 0, 0]
