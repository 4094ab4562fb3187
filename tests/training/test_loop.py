import itertools
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from run_world import World, lines, same_weights

from veritune.batches.loader import GlobalBatch
from veritune.models.forward import CausalModel
from veritune.training import loop
from veritune.training.log import read_metrics
from veritune.training.loop import Interrupted
from veritune.training.objective_pass import ObjectivePass, PreparedBatch
from veritune.training.step import TrainingStep

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def sender(number: signal.Signals, at: int, times: int = 1) -> object:
    """What sends this process a signal behind a step."""

    def measure(model: CausalModel, step: int) -> None:
        if step == at:
            for _ in range(times):
                os.kill(os.getpid(), number)

    return measure


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_the_run_behind_its_step_with_a_checkpoint(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    world = World(tmp_path)
    world.train("dpo", "whole")
    with pytest.raises(Interrupted, match=f"stopped by {number.name}") as caught:
        world.train("dpo", "run", measure=sender(number, 3), train__checkpoint_every=100)
    assert caught.value.exit_code == code
    assert caught.value.folder == tmp_path / "run" / "checkpoints" / "step-3"
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2, 3]
    world.train("dpo", "run", train__checkpoint_every=100)
    assert same_weights(tmp_path / "whole", tmp_path / "run")
    assert lines(tmp_path / "whole") == lines(tmp_path / "run")


def test_a_signal_in_the_last_step_does_not_keep_the_run_from_its_end(tmp_path: Path) -> None:
    World(tmp_path).train("dpo", "run", measure=sender(signal.SIGTERM, 6))
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_a_hangup_that_is_ignored_stays_so(tmp_path: Path) -> None:
    """As under `nohup`, which is there to let the run go on."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        World(tmp_path).train("dpo", "run", measure=sender(signal.SIGHUP, 3))
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_a_second_interrupt_does_not_wait_for_the_step_to_end(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        World(tmp_path).train("dpo", "run", measure=sender(signal.SIGINT, 3, times=2))


def test_the_handlers_of_the_caller_are_back_when_the_run_ends(tmp_path: Path) -> None:
    world = World(tmp_path)
    before = [signal.getsignal(number) for number in SIGNALS]
    world.train("dpo", "run")
    with pytest.raises(Interrupted):
        world.train("dpo", "stopped", measure=sender(signal.SIGTERM, 2))
    after = [signal.getsignal(number) for number in SIGNALS]
    assert after == before


def test_a_run_in_another_thread_leaves_signals_to_its_caller(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.train("dpo", "here")
    thread = threading.Thread(target=world.train, args=("dpo", "there"))
    thread.start()
    thread.join()
    assert same_weights(tmp_path / "here", tmp_path / "there")


@pytest.mark.parametrize(
    ("every", "keep", "found"),
    [
        (2, 1, ["step-6"]),
        (2, 9, ["step-2", "step-4", "step-6"]),
        (4, 9, ["step-4", "step-6"]),
        (100, 9, ["step-6"]),
    ],
)
def test_checkpoints_are_written_as_often_and_kept_as_long_as_asked(
    tmp_path: Path, every: int, keep: int, found: list[str]
) -> None:
    World(tmp_path).train("dpo", "run", train__checkpoint_every=every, train__keep_checkpoints=keep)
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(f.name for f in folder.glob("*")) == found


def test_a_run_of_one_step_and_one_record_works(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.train("dpo", "run", num_records=1, train__steps=1, train__batch_size=1)
    (line,) = lines(tmp_path / "run")
    assert line["loss"] == pytest.approx(0.693147, abs=1e-5)


def test_a_batch_is_prepared_while_the_step_before_it_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits for the other: one behind the other, neither would come to its end."""
    begun, ready = ([threading.Event() for _ in range(8)] for _ in range(2))
    begun[0].set()
    ready[7].set()
    numbers = itertools.count(1)
    prepare, run = ObjectivePass.prepare, TrainingStep.run

    def preparing(objective_pass: ObjectivePass, batch: GlobalBatch) -> PreparedBatch:
        number = next(numbers)
        assert begun[number - 1].wait(timeout=30), f"step {number - 1} does not begin"
        prepared = prepare(objective_pass, batch)
        ready[number].set()
        return prepared

    def running(step: TrainingStep, number: int, batch: Any) -> dict[str, float]:
        begun[number].set()
        assert ready[number + 1].wait(timeout=30), f"nothing is prepared while step {number} runs"
        return run(step, number, batch)

    monkeypatch.setattr(ObjectivePass, "prepare", preparing)
    monkeypatch.setattr(TrainingStep, "run", running)
    World(tmp_path).train("dpo", "run")
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_the_time_that_a_step_waited_for_its_batch_is_logged_beside_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    preparations = iter([5.0])
    prepare, run = ObjectivePass.prepare, TrainingStep.run

    def passes(seconds: float) -> None:
        nonlocal now
        now += seconds

    def preparing(objective_pass: ObjectivePass, batch: GlobalBatch) -> PreparedBatch:
        passes(next(preparations, 0.0))
        return prepare(objective_pass, batch)

    def running(step: TrainingStep, number: int, batch: Any) -> dict[str, float]:
        passes(2.0)
        return run(step, number, batch)

    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(ObjectivePass, "prepare", preparing)
    monkeypatch.setattr(TrainingStep, "run", running)
    # What an evaluation between two steps takes is neither.
    World(tmp_path).train("dpo", "run", measure=lambda *_: passes(1000.0))
    found = read_metrics(tmp_path / "run" / "metrics.jsonl")
    times = [(line["waited"], line["seconds"]) for line in found]
    assert times == [(5.0, 2.0), *[(0.0, 2.0)] * 5]
