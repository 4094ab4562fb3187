"""Work spread over processes: results come in the order of the tasks, whichever is done first.

A worker is a fresh Python that imports this package and is told by pipe what to call. It inherits
no threads, no locks and no device, and the program that starts it need not guard its main module.
"""

import os
import pickle
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from veritune.errors import RunError

TaskT = TypeVar("TaskT")
OutcomeT = TypeVar("OutcomeT")

_AHEAD = 2
"""Tasks that wait or whose results wait, for every worker: so many are in memory at a time."""

_START = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from veritune.tokens.workers import serve; serve()"
)
_ENVIRONMENT = {
    # One process for each core, and no device in any of them.
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(
    work: Callable[[TaskT], OutcomeT], tasks: Iterable[TaskT], *, num_workers: int
) -> Iterator[OutcomeT]:
    """What `work` makes of each task, in the order of the tasks.

    Args:
        work: A function, or an object that can be called; it, tasks and outcomes can be pickled.
        tasks: Drawn as they are needed, a few ahead.
        num_workers: Most processes; none does the work here.

    Raises:
        RunError: A worker ended before its work was done.
        Exception: Whatever the work raises, for the first task for which it does.
    """
    if num_workers == 0:
        yield from map(work, tasks)
        return
    told = pickle.dumps(sys.path) + pickle.dumps(work, pickle.HIGHEST_PROTOCOL)
    workers: list[_Worker] = []
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    waiting: deque[Future[OutcomeT]] = deque()

    def run(task: TaskT) -> OutcomeT:
        worker = idle.get()
        try:
            outcome: OutcomeT = worker(task)
            return outcome
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(num_workers) as threads:
        try:
            for task in tasks:
                if len(workers) < num_workers:
                    workers.append(_Worker(told))
                    idle.put(workers[-1])
                waiting.append(threads.submit(run, task))
                if len(waiting) > _AHEAD * num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            for worker in workers:
                worker.close()


def serve() -> None:
    """What a worker does: a function and then tasks from standard input, until it ends."""
    # An interrupt reaches every process of the terminal; the one that began this ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    outcomes = os.fdopen(os.dup(1), "wb")
    # Whatever a library prints must not be taken for an outcome.
    os.dup2(2, 1)
    tasks = sys.stdin.buffer
    work = pickle.load(tasks)
    while True:
        try:
            task = pickle.load(tasks)
        except EOFError:
            return
        outcome: Any
        try:
            outcome = _Done(work(task))
        except Exception as error:
            outcome = error
        pickle.dump(outcome, outcomes, pickle.HIGHEST_PROTOCOL)
        outcomes.flush()


@dataclass(frozen=True)
class _Done(Generic[OutcomeT]):
    outcome: OutcomeT


class _Worker:
    """A process that is asked one thing at a time."""

    def __init__(self, told: bytes) -> None:
        self._told = told
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ENVIRONMENT},
        )

    def __call__(self, task: Any) -> Any:
        sent, received = self._process.stdin, self._process.stdout
        assert sent is not None, "the pipe was asked for"
        assert received is not None, "the pipe was asked for"
        try:
            sent.write(self._told)
            self._told = b""
            pickle.dump(task, sent, pickle.HIGHEST_PROTOCOL)
            sent.flush()
            answer = pickle.load(received)
        except (EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
            raise RunError(
                "a worker process ended before its work was done",
                where="preparing data",
                got=f"exit code {self._process.wait()}",
                why="its part of the data would be missing",
                fix="look above for what it said; if it was killed, free memory and start again",
            ) from error
        if isinstance(answer, _Done):
            return answer.outcome
        raise answer

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    # What was not yet sent is wanted by nobody.
                    continue
