"""Two processes against one: the same records, metrics and weights."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from processes import TWO_RANKS, VERITUNE, finish, start, wait_for_lines
from run_world import Listener, World, largest_difference, lines

from veritune.errors import VerituneWarning

# Batches that two ranks cannot share evenly; the batch of one leaves the second rank idle.
RUNS: dict[str, dict[str, Any]] = {
    "dpo": {"objective": "dpo", "evaluation__fraction": 0.3, "evaluation__every": 2},
    "kto": {"objective": "kto", "evaluation__fraction": 0.3},
    # Praise weighs so much that all log-ratios rise, and the clamp of the baseline is open.
    "kto-rising": {
        "objective": "kto",
        "objective__lambda_desirable": 9,
        "objective__beta": 0.5,
        "train__learning_rate": 6e-3,
    },
    "rdro": {"objective": "rdro", "train__batch_size": 7},
    "sft": {"objective": "sft"},
    "exo_rw": {"objective": "exo_rw", "train__batch_size": 3},
    "one-pair": {"objective": "dpo", "train__batch_size": 1},
    "one-label": {"objective": "kto", "train__batch_size": 1},
    "adapter": {"objective": "dpo", "adapter": "{rank: 4}"},
    "small-rows": {"objective": "dpo", "train__tokens_per_row": 1},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world in which each run was made by one process, and by two."""
    world = World(tmp_path_factory.mktemp("world"))
    several = []
    for name, settings in RUNS.items():
        changes = {key: value for key, value in settings.items() if key != "objective"}
        world.train(settings["objective"], f"{name}-one", **changes)
        changes["cache"] = world.folder / "their cache"
        several.append((False, world.words(settings["objective"], f"{name}-two", **changes)))
    again = world.words("sft", "again")
    several += [(False, world.words("sft", "again", train__seed=4)), (True, again), (False, again)]
    file = world.folder / "several.json"
    file.write_text(json.dumps(several))
    script = Path(__file__).parents[1] / "worlds" / "train_several.py"
    code, _, err = finish(start([*TWO_RANKS, script, file]))
    assert code == 0, err
    return world


def assert_same(one: Path, two: Path) -> None:
    expected, got = lines(one), lines(two)
    assert [line["step"] for line in got] == [line["step"] for line in expected]
    for a, b in zip(expected, got, strict=True):
        # Sums over ranks round otherwise; at the first step every reward is zero but for that.
        for line in (a, b):
            if line["step"] <= 1:
                line.pop("rewards/accuracies", None)
                line.pop("eval/rewards/accuracies", None)
        assert b == pytest.approx(a, rel=1e-3, abs=1e-4)
    assert largest_difference(one, two) < 2e-4


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_make_the_run_of_one(name: str, world: World) -> None:
    assert_same(world.folder / f"{name}-one", world.folder / f"{name}-two")
    provenance = json.loads((world.folder / f"{name}-two" / "provenance.json").read_text())
    assert provenance["processes"] == 2
    assert provenance["finished"]


def test_the_comparison_tells_runs_apart(world: World) -> None:
    """Control: another batch size is another trajectory."""
    with pytest.raises(AssertionError):
        assert_same(world.folder / "dpo-one", world.folder / "small-rows-two")
    world.train("sft", "sft-other", train__batch_size=4)
    with pytest.raises(AssertionError):
        assert_same(world.folder / "sft-one", world.folder / "sft-other")


def test_the_command_runs_under_torchrun_and_one_rank_speaks(world: World) -> None:
    words = world.words("kto", "command", evaluation__fraction=0.3)
    code, out, err = finish(start([*TWO_RANKS, "-m", *VERITUNE[2:], "train", *words]))
    assert code == 0, err
    assert_same(world.folder / "kto-one", world.folder / "command")
    assert out.count("step 6/6") == 1
    assert "2 processes" in out
    assert out.count("step 0: log-ratios") == 1


def test_two_processes_overwrite_a_run_and_leave_a_finished_one_alone(world: World) -> None:
    assert_same(world.folder / "sft-one", world.folder / "again")


def test_two_processes_that_a_signal_stops_leave_a_checkpoint_that_one_continues(
    world: World,
) -> None:
    settings = {"train__steps": 150, "train__checkpoint_every": 150, "train__learning_rate": 1e-5}
    run = world.folder / "stopped"
    words = world.words("rdro", "stopped", **settings)
    process = start([*TWO_RANKS, "-m", *VERITUNE[2:], "train", *words])
    wait_for_lines(process, run / "metrics.jsonl", 10)
    process.send_signal(signal.SIGTERM)
    _, _, err = finish(process)
    assert "stopped by SIGTERM; continues from" in err
    (newest,) = (run / "checkpoints").iterdir()
    assert newest.name == f"step-{lines(run)[-1]['step']}"
    display = Listener()
    with pytest.warns(VerituneWarning, match="processes 2 there, 1 now"):
        world.train("rdro", "stopped", display=display, **settings)
    assert display.told(f"continuing behind {newest.name.replace('-', ' ')} ")
    world.train("rdro", "unstopped", **settings)
    assert_same(world.folder / "unstopped", run)
