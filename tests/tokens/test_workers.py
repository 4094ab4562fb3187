"""Processes do what one process does, in its order, and say so when they fail."""

import math
import operator
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import pytest

from veritune.errors import RecordError, RunError
from veritune.records.kinds import Origin
from veritune.tokens.workers import in_order, num_cores


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_outcomes_come_in_the_order_of_the_tasks(num_workers: int):
    tasks = [20_000, 1, 10_000, 2, 3, 4, 5]

    found = list(in_order(math.factorial, tasks, num_workers=num_workers))

    assert found == [math.factorial(n) for n in tasks]


def test_the_work_is_told_once_and_may_be_an_object():
    assert list(in_order(partial(operator.add, 5), [1, 2], num_workers=1)) == [6, 7]


def test_tasks_are_drawn_only_a_few_ahead():
    drawn: list[int] = []

    def tasks() -> Iterator[int]:
        for n in range(100):
            drawn.append(n)
            yield n

    outcomes = in_order(math.factorial, tasks(), num_workers=1)
    next(outcomes)

    assert len(drawn) <= 4
    outcomes.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_the_work_raises_is_raised_behind_the_outcomes_before_it(num_workers: int):
    outcomes = in_order(math.factorial, [3, -1, 4], num_workers=num_workers)

    assert next(outcomes) == 6
    with pytest.raises(ValueError, match="negative"):
        next(outcomes)


def test_an_error_of_this_package_arrives_whole():
    code = "from veritune.errors import *; raise RecordError('bad', where='a', got=[1], fix='mend')"

    with pytest.raises(RecordError) as caught:
        list(in_order(exec, [code], num_workers=1))

    assert (caught.value.where, caught.value.got, caught.value.fix) == ("a", [1], "mend")
    assert str(caught.value) == str(RecordError("bad", where="a", got=[1], fix="mend"))


def test_a_worker_that_dies_is_named_and_nothing_hangs():
    with pytest.raises(RunError, match="ended before its work was done") as caught:
        list(in_order(os._exit, [7, 7, 7], num_workers=2))

    assert "exit code 7" in str(caught.value)


def test_what_a_library_prints_is_no_outcome(capfd: pytest.CaptureFixture[str]):
    found = list(in_order(exec, ["print('noise', flush=True)", "pass"], num_workers=1))

    assert found == [None, None]
    assert "noise" in capfd.readouterr().err


def test_a_worker_sees_no_device_and_is_another_process():
    names = ["CUDA_VISIBLE_DEVICES", "TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS"]

    assert list(in_order(os.getenv, names, num_workers=1)) == ["", "false", "1"]
    (parent,) = in_order(eval, ["__import__('os').getppid()"], num_workers=1)
    assert parent == os.getpid()


def test_objects_of_this_package_travel():
    (origin,) = in_order(Origin("a.jsonl", 3).__eq__, [Origin("a.jsonl", 3)], num_workers=1)

    assert origin is True


def test_a_program_without_a_main_guard_may_start_workers():
    code = (
        "import math\n"
        "from veritune.tokens.workers import in_order\n"
        "print(list(in_order(math.factorial, [3, 4], num_workers=2)))\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)

    assert done.stdout.strip() == "[6, 24]", done.stderr


def test_there_is_a_core():
    assert num_cores() >= 1
