"""Processes that are stopped or killed, and continue in another process."""

import random
import signal
from pathlib import Path

import pytest
from processes import VERITUNE, finish, start, wait_for_lines
from run_world import World, lines, same_weights

NUM_STEPS = 200
SETTINGS = {
    "num_records": 7,
    "train__steps": NUM_STEPS,
    "train__batch_size": 3,
    "train__learning_rate": 1e-3,
    "train__checkpoint_every": 9,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world with a run that nobody interrupted."""
    world = World(tmp_path_factory.mktemp("world"))
    world.train("dpo", "whole", **SETTINGS)
    return world


def assert_ends_as_the_whole(world: World, run: Path) -> None:
    world.train("dpo", run.name, **SETTINGS)
    assert same_weights(world.folder / "whole", run)
    assert lines(run) == lines(world.folder / "whole")
    assert [line["step"] for line in lines(run)] == list(range(1, NUM_STEPS + 1))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_run_that_a_signal_stops_writes_a_checkpoint_and_continues(
    number: signal.Signals, code: int, world: World
) -> None:
    run = world.folder / number.name
    process = start([*VERITUNE, "train", *world.words("dpo", run.name, **SETTINGS)])
    wait_for_lines(process, run / "metrics.jsonl", 20)
    process.send_signal(number)
    returned, _, err = finish(process)
    assert returned == code, err
    (newest,) = (run / "checkpoints").iterdir()
    assert f"stopped by {number.name}; continues from {newest}" in err
    assert "Traceback" not in err
    # The checkpoint is behind the very step in which the signal came.
    assert newest.name == f"step-{lines(run)[-1]['step']}"
    assert not (run / "model").exists()
    assert_ends_as_the_whole(world, run)


def test_a_run_that_is_killed_at_random_moments_continues(world: World) -> None:
    run = world.folder / "killed"
    draw = random.Random()
    done = 0
    for _ in range(2):
        done += draw.randrange(1, 80)
        process = start([*VERITUNE, "train", *world.words("dpo", run.name, **SETTINGS)])
        wait_for_lines(process, run / "metrics.jsonl", done)
        process.kill()
        returned, _, _ = finish(process)
        assert returned == -signal.SIGKILL, f"killed behind {done} lines"
    assert_ends_as_the_whole(world, run)
