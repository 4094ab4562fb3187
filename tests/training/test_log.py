import json
import math
from pathlib import Path

import pytest

from veritune.training.log import RunLog, read_metrics


def written(run: Path, steps: range, *, after_step: int = 0) -> None:
    log = RunLog(run, after_step=after_step)
    for step in steps:
        log.write({"step": step, "loss": step / 3})
    log.close()


def steps_in(run: Path) -> list[int]:
    return [line["step"] for line in read_metrics(run / "metrics.jsonl")]


def test_lines_come_back_as_they_were_written(tmp_path: Path) -> None:
    written(tmp_path, range(1, 4))
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert lines == [{"step": s, "loss": s / 3} for s in (1, 2, 3)]


def test_a_resumed_log_forgets_the_lines_behind_its_checkpoint(tmp_path: Path) -> None:
    written(tmp_path, range(1, 8))
    written(tmp_path, range(5, 7), after_step=4)
    assert steps_in(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_a_log_from_the_beginning_forgets_everything(tmp_path: Path) -> None:
    written(tmp_path, range(0, 5))
    written(tmp_path, range(1, 3))
    assert steps_in(tmp_path) == [1, 2]


@pytest.mark.parametrize("after_step", [0, 3])
def test_only_a_run_that_continues_keeps_its_tensorboard_folder(
    tmp_path: Path, after_step: int
) -> None:
    old = tmp_path / "tensorboard" / "events.old"
    old.parent.mkdir()
    old.write_text("curves")
    RunLog(tmp_path, after_step=after_step).close()
    assert old.exists() == (after_step > 0)


def test_a_resumed_log_keeps_the_measurement_of_its_checkpoint_and_of_step_zero(
    tmp_path: Path,
) -> None:
    written(tmp_path, range(0, 4))
    log = RunLog(tmp_path, after_step=3)
    log.close()
    assert steps_in(tmp_path) == [0, 1, 2, 3]


def test_a_line_that_a_crash_cut_is_left_out(tmp_path: Path) -> None:
    written(tmp_path, range(1, 4))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert steps_in(tmp_path) == [1, 2, 3]
    written(tmp_path, range(4, 5), after_step=3)
    assert steps_in(tmp_path) == [1, 2, 3, 4]


def test_a_number_that_is_not_finite_is_written_as_null(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.write({"step": 1, "loss": math.nan, "gradient_norm": math.inf, "tokens": 3})
    log.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=lambda _: 1 / 0) == {
        "step": 1,
        "loss": None,
        "gradient_norm": None,
        "tokens": 3,
    }


def test_every_line_is_on_disk_when_write_returns(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.write({"step": 1})
    assert steps_in(tmp_path) == [1]
    log.close()
