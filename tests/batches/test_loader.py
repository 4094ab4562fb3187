"""Batches of records from any position on, and mismatched partners."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veritune.batches.loader import GlobalBatch, Loader, num_steps
from veritune.batches.order import RecordOrder


def stream_of(batches: list[tuple[GlobalBatch, int]]) -> list[int]:
    return [index for batch, _ in batches for index in batch.indices]


@given(
    num_records=st.integers(1, 23),
    batch_size=st.integers(1, 9),
    last=st.integers(1, 60),
)
def test_the_records_met_do_not_depend_on_the_batch_size(
    num_records: int, batch_size: int, last: int
):
    order = RecordOrder(num_records, 0)

    batches = list(Loader(order, batch_size, last).batches())

    assert stream_of(batches) == order.slice(0, last)
    assert all(len(batch.indices) == batch_size for batch, _ in batches[:-1])
    assert batches[-1][1] == last


@given(
    num_records=st.integers(2, 23),
    batch_size=st.integers(1, 9),
    last=st.integers(2, 60),
    cut=st.integers(0, 20),
)
def test_a_loader_resumes_in_the_middle_of_an_epoch(
    num_records: int, batch_size: int, last: int, cut: int
):
    """Sizes that do not divide each other, epochs begun and not ended, partners included."""
    prompts = [bytes([i % 3]) for i in range(num_records)]

    def fresh() -> Loader:
        return Loader(RecordOrder(num_records, 5), batch_size, last, prompts)

    whole = list(fresh().batches())
    cut = min(cut, len(whole) - 1)
    position = 0 if cut == 0 else whole[cut - 1][1]

    assert list(fresh().batches(position)) == whole[cut:]


def test_a_finished_stream_has_no_batches():
    assert list(Loader(RecordOrder(5, 0), 2, 10).batches(10)) == []


@pytest.mark.parametrize(
    ("num_records", "batch_size", "epochs", "expected"),
    [
        (104, 16, 1.0, 7),  # 6 whole batches and one of 8
        (104, 16, 2.0, 13),  # 208 records: a batch crosses the epochs
        (104, 16, 0.5, 4),  # 52 records
        (10, 4, 1.25, 3),  # 12.5 records, rounded to 12
        (3, 16, 1.0, 1),
        (3, 16, 0.01, 1),
    ],
)
def test_steps_are_the_batches_that_the_epochs_fill(
    num_records: int, batch_size: int, epochs: float, expected: int
):
    assert num_steps(num_records, batch_size, epochs) == expected
    last = max(1, round(epochs * num_records))
    batches = list(Loader(RecordOrder(num_records, 0), batch_size, last).batches())
    assert len(batches) == expected
    assert len(stream_of(batches)) == last


@given(
    prompts=st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=1, max_size=14),
    batch_size=st.integers(1, 7),
    seed=st.integers(0, 4),
)
def test_partners_never_share_a_prompt_and_come_from_the_batch_where_it_has_another(
    prompts: list[bytes], batch_size: int, seed: int
):
    loader = Loader(RecordOrder(len(prompts), seed), batch_size, 2 * len(prompts), prompts)

    for batch, _ in loader.batches():
        assert len(batch.mismatched) == len(batch.indices)
        for index, partner in zip(batch.indices, batch.mismatched, strict=True):
            others = [i for i in batch.indices if prompts[i] != prompts[index]]
            if len(set(prompts)) == 1:
                assert partner is None
                continue
            assert partner is not None
            assert prompts[partner] != prompts[index]
            if others:
                assert partner in others


def test_a_lonely_record_of_another_prompt_is_found_in_the_next_epoch():
    """One epoch behind a position does not hold every record: this one was met already."""
    prompts = [b"a"] * 7 + [b"b"]
    for seed in range(20):
        loader = Loader(RecordOrder(8, seed), 1, 16, prompts)
        for batch, _ in loader.batches():
            if prompts[batch.indices[0]] == b"a":
                assert batch.mismatched == (7,)


def test_partners_differ_within_a_batch_of_different_prompts():
    prompts = [bytes([i]) for i in range(6)]

    batch, _ = next(Loader(RecordOrder(6, 0), 6, 6, prompts).batches())

    # The next of the batch, cyclically: each record is somebody's partner.
    assert batch.mismatched == (*batch.indices[1:], batch.indices[0])


def test_nobody_asks_for_partners_where_the_objective_needs_none():
    batch, _ = next(Loader(RecordOrder(6, 0), 3, 6).batches())

    assert batch.mismatched == ()
