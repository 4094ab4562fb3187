import json
import math

import pytest

from veritune.errors import RunFolderError
from veritune.reports.run_folder import flat_rows, read_run_folder


@pytest.fixture
def folder_of(tmp_path):
    """Writes a run folder with these lines of metrics and reads it."""

    def read(*lines):
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (tmp_path / "metrics.jsonl").write_text("\n".join(texts), encoding="utf-8")
        (tmp_path / "config.yaml").write_text("model: m\n", encoding="utf-8")
        (tmp_path / "provenance.json").write_text("{}", encoding="utf-8")
        return read_run_folder(tmp_path)

    return read


def test_training_and_evaluation_lines_become_series_by_name(folder_of):
    run = folder_of(
        {"step": 1, "loss": 0.7, "seconds": 1.0},
        {"step": 1, "eval/loss": 0.8, "seconds": 9.0},
        {"step": 2, "loss": 0.6, "seconds": 2.0},
    )
    assert run.values("loss") == ((1.0, 0.7), (2.0, 0.6))
    assert run.values("eval/loss") == ((1.0, 0.8),)
    assert run.values("seconds") == ((1.0, 1.0), (2.0, 2.0))
    assert run.steps == (1, 2)
    assert run.problems == ()


def test_a_step_measured_again_after_a_restart_counts_once(folder_of):
    run = folder_of({"step": 2, "loss": 2.0}, {"step": 1, "loss": 1.0}, {"step": 1, "loss": 3.0})
    assert run.values("loss") == ((1.0, 3.0), (2.0, 2.0))


def test_null_and_nan_are_gaps_and_words_are_no_measurements(folder_of):
    run = folder_of('{"step": 1, "loss": NaN, "b": null, "phase": "warm", "done": true}')
    assert math.isnan(run.values("loss")[0][1])
    assert math.isnan(run.values("b")[0][1])
    assert set(run.series) == {"loss", "b"}


def test_a_number_too_large_for_a_float_is_infinite(folder_of):
    run = folder_of('{"step": 1, "loss": 1' + "0" * 400 + "}")
    assert run.values("loss") == ((1.0, math.inf),)


def test_damaged_lines_are_left_out_counted_and_named(folder_of):
    run = folder_of({"step": 1, "loss": 1.0}, "[]", {"loss": 2.0}, {"step": None}, '{"step": 2, "l')
    assert run.values("loss") == ((1.0, 1.0),)
    (problem,) = run.problems
    assert "4 of 5 lines" in problem
    assert "line 2, 3, 4, 5" in problem


def test_an_empty_folder_says_all_that_is_missing(tmp_path):
    run = read_run_folder(tmp_path)
    assert [problem.split()[0] for problem in run.problems] == [
        "config.yaml",
        "provenance.json",
        "metrics.jsonl",
    ]
    assert run.steps == ()


def test_damaged_settings_and_provenance_are_named_and_do_not_stop(tmp_path):
    (tmp_path / "config.yaml").write_text("a: [", encoding="utf-8")
    (tmp_path / "provenance.json").write_text("{", encoding="utf-8")
    (tmp_path / "metrics.jsonl").write_text("", encoding="utf-8")
    problems = " ".join(read_run_folder(tmp_path).problems)
    assert "config.yaml cannot be read" in problems
    assert "provenance.json cannot be read" in problems
    assert "metrics.jsonl holds no step" in problems


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="no such run folder"):
        read_run_folder(tmp_path / "nowhere")


def test_nested_settings_become_dotted_rows_in_their_order():
    value = {"b": {"c": 1, "d": [1, "x"]}, "a": None, "e": {}, "f": "text"}
    assert flat_rows(value) == [
        ("b.c", "1"),
        ("b.d", '[1, "x"]'),
        ("a", "null"),
        ("e", "{}"),
        ("f", "text"),
    ]
