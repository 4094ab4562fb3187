"""Items made ahead in a background thread, so that whoever takes them need not wait."""

import queue
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

import torch

ItemT = TypeVar("ItemT")


class Prefetch(Generic[ItemT]):
    """The items of an iterable, in order, a few of them made before they are asked for.

    One thread makes them all, so they are what they would be without it, as long as the iterable
    shares nothing that changes with whoever takes them. What the iterable raises is raised behind
    the items before it. To be used in a `with`, whose end stops the thread.

    The thread computes on one core. With a team of OpenMP of its own, however short its work, the
    process would have more threads than cores, and OpenMP then lets every thread sleep between two
    operations: a step on a processor took half as long again.

    Args:
        items: What is to be made ahead.
        depth: Items that are held ready, at least 1; one more may be in the making.

    Example:
        >>> with Prefetch(n * n for n in range(4)) as squares:
        ...     list(squares)
        [0, 1, 4, 9]
    """

    def __init__(self, items: Iterable[ItemT], *, depth: int = 2) -> None:
        assert depth >= 1, "an item must have a place"
        self._ready: queue.Queue[tuple[ItemT] | BaseException | None] = queue.Queue(depth)
        self._stopped, self._is_alone = threading.Event(), threading.Event()
        self._is_over = False
        # A daemon, so that a program that fails elsewhere can end.
        self._thread = threading.Thread(target=self._make, args=(items,), daemon=True)
        num_threads = torch.get_num_threads()
        self._thread.start()
        self._is_alone.wait()
        # The number that the thread chose for itself has become that of all later threads.
        torch.set_num_threads(num_threads)

    def __iter__(self) -> Iterator[ItemT]:
        return self

    def __next__(self) -> ItemT:
        if self._is_over:
            raise StopIteration
        made = self._ready.get()
        if isinstance(made, tuple):
            return made[0]
        self._is_over = True
        self._thread.join()
        if made is None:
            raise StopIteration
        raise made

    def __enter__(self) -> "Prefetch[ItemT]":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop making items, wait for the one in the making, and forget the others."""
        self._is_over = True
        self._stopped.set()
        # The thread may wait for a place, and sees that it is stopped once it has one.
        while self._thread.is_alive():
            try:
                self._ready.get_nowait()
            except queue.Empty:
                self._thread.join(timeout=0.01)

    def _make(self, items: Iterable[ItemT]) -> None:
        # A thread's first look at the number sets it; only what comes later stays.
        torch.get_num_threads()
        torch.set_num_threads(1)
        self._is_alone.set()
        last: BaseException | None = None
        try:
            for item in items:
                self._ready.put((item,))
                if self._stopped.is_set():
                    return
        except BaseException as error:
            last = error
        self._ready.put(last)
