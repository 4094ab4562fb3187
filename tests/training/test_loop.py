import os
import signal
import threading
from pathlib import Path

import pytest
from run_world import World, lines, same_weights

from veritune.models.forward import CausalModel
from veritune.training.loop import Interrupted

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
