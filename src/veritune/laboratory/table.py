"""Every theorem, run: one result each."""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait

import torch

from veritune.errors import SettingsError, nearest_name
from veritune.laboratory.theorem import Result, Theorem, run_check


def select(theorems: Sequence[Theorem], name: str | None) -> list[Theorem]:
    """The theorems about a method or held against it, or the one of this name; all for None.

    Raises:
        SettingsError: There is none; the message gives the nearest name.
    """
    if name is None:
        return list(theorems)
    found = [t for t in theorems if name in (t.name, *t.methods, *t.contrasts)]
    if found:
        return found
    methods = sorted({method for t in theorems for method in (*t.methods, *t.contrasts)})
    near = nearest_name(name, [*methods, *(theorem.name for theorem in theorems)])
    raise SettingsError(
        "no theorem is about a method of this name",
        where="veritune lab",
        got=name,
        fix=(f"did you mean {near}? " if near else "") + f"There are theorems on: "
        f"{', '.join(methods)}",
    )


def run_all(theorems: Sequence[Theorem], *, num_processes: int) -> Iterator[Result]:
    """Check theorems, each in one thread, and yield results as they come.

    The numbers do not depend on the number of processes or on the order.
    """
    if num_processes == 1 or len(theorems) == 1:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield from map(run_check, theorems)
        finally:
            torch.set_num_threads(before)
        return
    names = [theorem.name for theorem in theorems]
    assert len(set(names)) == len(names), "a theorem is known by its name"
    # A forked child of a process that has used torch's threads may hang; a spawned one does not.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        num_processes, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        running = {pool.submit(run_check, theorem) for theorem in theorems}
        try:
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        finally:
            for future in running:
                future.cancel()
