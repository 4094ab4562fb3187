"""Items made ahead are the same items, and a thread that is no longer wanted ends."""

import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from veritune.batches.loader import Loader
from veritune.batches.order import RecordOrder
from veritune.batches.prefetch import Prefetch


@given(length=st.integers(0, 12), depth=st.integers(1, 4))
def test_items_come_in_their_order_and_end(length: int, depth: int):
    with Prefetch(range(length), depth=depth) as items:
        assert list(items) == list(range(length))
        assert next(items, None) is None


def test_batches_made_ahead_are_those_of_the_loader():
    def batches():
        return Loader(RecordOrder(13, 3), 5, 32).batches()

    with Prefetch(batches()) as ahead:
        assert list(ahead) == list(batches())


def test_so_many_items_are_made_before_the_first_is_asked_for_and_no_more():
    made: list[int] = []
    enough = threading.Event()

    def items() -> Iterator[int]:
        for n in range(20):
            made.append(n)
            if n == 3:
                enough.set()
            yield n

    with Prefetch(items(), depth=3):
        # Three lie ready and a fourth waits for a place.
        assert enough.wait(timeout=30)
        assert made == [0, 1, 2, 3]


def test_what_the_iterable_raises_comes_behind_the_items_before_it():
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("lost")

    with Prefetch(items()) as ahead:
        assert [next(ahead), next(ahead)] == [1, 2]
        with pytest.raises(KeyError, match="lost"):
            next(ahead)
        assert next(ahead, None) is None


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_the_thread_ends_with_the_block_however_many_items_were_taken(taken: int):
    before = threading.active_count()
    closed: list[bool] = []

    def items() -> Iterator[int]:
        try:
            n = 0
            while True:
                yield (n := n + 1)
        finally:
            closed.append(True)

    with Prefetch(items(), depth=1) as ahead:
        assert [next(ahead) for _ in range(taken)] == list(range(1, taken + 1))

    assert threading.active_count() == before
    assert closed == [True]
    assert next(ahead, None) is None


def test_the_thread_ends_where_the_block_fails():
    before = threading.active_count()

    with pytest.raises(ZeroDivisionError), Prefetch(range(100)):
        raise ZeroDivisionError

    assert threading.active_count() == before


def test_the_thread_computes_alone_and_leaves_the_cores_to_the_step():
    before = torch.get_num_threads()
    with Prefetch(torch.get_num_threads() for _ in range(2)) as numbers:
        assert list(numbers) == [1, 1]
    assert torch.get_num_threads() == before
    found: list[int] = []
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert found == [before]
