import json
import math
import re

import pytest
import yaml

from veritune.reports.run import run_report

HOSTILE = "<script>alert(1)</script>"
SETTINGS = {
    "model": "Qwen/Qwen2.5-0.5B-Instruct",
    "data": "pairs.jsonl",
    "objective": {"name": "dpo", "beta": 0.1},
    "output": "runs/first",
    "train": {"steps": 3, "batch_size": 16, "learning_rate": 5e-7},
}


def step_line(step: int, **more) -> dict:
    return {
        "step": step,
        "loss": 0.7 - step / 100,
        "learning_rate": 5e-7,
        "gradient_norm": 1.5,
        "tokens": 1000,
        "seconds": 0.5,
        "waited": 0.1,
        **more,
    }


@pytest.fixture
def report(tmp_path):
    """Writes a run folder and returns the text of its report."""

    def write(lines, settings=SETTINGS, provenance=None):
        folder = tmp_path / "first"
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        text = json.dumps({"torch": "2.13.0"} if provenance is None else provenance)
        (folder / "provenance.json").write_text(text, encoding="utf-8")
        rows = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(rows, encoding="utf-8")
        file = run_report(folder)
        assert file == folder / "report.html"
        return file.read_text("utf-8")

    return write


def captions(html: str) -> list[str]:
    return re.findall(r"<figcaption>(.*?)</figcaption>", html)


def fact(html: str, name: str) -> str:
    return re.search(rf"<dt>{name}</dt><dd>(.*?)</dd>", html)[1]


def test_the_headline_sums_tokens_and_seconds_of_the_steps(report):
    html = report([step_line(step) for step in (1, 2, 3)])
    assert fact(html, "Objective") == "dpo, beta = 0.1"
    assert fact(html, "Steps") == "3"
    assert fact(html, "Tokens") == "3,000"
    assert fact(html, "Time in steps") == "1.5 s"
    assert fact(html, "Waited for batches") == "0.30 s"
    assert fact(html, "Tokens per second") == "2,000"
    assert "direct preference optimization" in html


def test_what_an_evaluation_costs_is_not_counted_as_training(report):
    html = report([step_line(1), {"step": 1, "eval/loss": 0.6, "seconds": 50.0, "tokens": 9000}])
    assert fact(html, "Tokens per second") == "2,000"


def test_training_and_held_out_values_are_in_one_picture(report):
    html = report(
        [step_line(1), {"step": 1, "eval/loss": 0.6}, step_line(2), {"step": 2, "eval/loss": 0.5}]
    )
    assert captions(html).count("Loss") == 1
    assert "training: from 0.690 to 0.680" in html
    assert "held-out: from 0.600 to 0.500" in html


def test_the_number_of_held_out_records_is_a_fact_and_no_chart(report):
    html = report([step_line(1), {"step": 1, "eval/loss": 0.6, "eval/records": 64}])
    assert fact(html, "Held-out records") == "64"
    assert not any("records" in caption for caption in captions(html))


def test_the_loss_of_the_reference_is_drawn_where_it_is_known(report):
    lines = [step_line(1), step_line(2)]
    assert "log 2: policy equals reference" in report(lines)
    # 1 / (4 tau^2) with tau = 0.5.
    ipo = SETTINGS | {"objective": {"name": "ipo", "tau": 0.5}}
    assert "1: policy equals reference" in report(lines, ipo)
    # Nor where it depends on the pair.
    by_pair = ("length_regularized_dpo", "ld_dpo_policy")
    for objective in ("simulated", {"name": "dpo", "beta": -1}, "kto", None, *by_pair):
        other = report(lines, SETTINGS | {"objective": objective})
        assert "policy equals reference" not in other


def test_unknown_names_are_drawn_grouped_by_prefix(report):
    more = {"memory/peak": 3.0, "memory/now": 2.0, "entropy": 1.0, "log_ratios/max_abs": 4.0}
    html = report([step_line(1, **more), {"step": 1, "eval/win/rate": 0.5}])
    assert {
        "memory/peak",
        "memory/now",
        "entropy",
        "log_ratios/max_abs",
        "Held-out: win/rate",
    } <= set(captions(html))
    headings = re.findall(r"<h2>(.*?)</h2>", html)
    assert headings.count("Further: memory") == 1
    assert {"Further: log_ratios", "Further: win", "Further measurements"} <= set(headings)


def test_settings_and_provenance_are_folded_away_complete(report):
    html = report([step_line(1)], provenance={"data": {"hash": "3f5a"}, "torch": "2.13.0"})
    folded = html[html.index("<details>") :]
    for text in ("train.batch_size", "16", "objective.beta", "data.hash", "3f5a", "2.13.0"):
        assert f"<code>{text}</code>" in folded


def test_a_run_that_ended_early_is_said_to_be(report):
    assert "set to 3 steps; its numbers end at step 2" in report([step_line(1), step_line(2)])
    assert "its numbers end" not in report([step_line(3)])


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [{"step": 1}],
        [{"step": 1, "loss": math.nan}],
        [step_line(1)],
        [step_line(step, loss=math.nan, gradient_norm=math.inf) for step in (1, 2)],
        [step_line(1, seconds=0.0, tokens=None)],
        [{"step": 5, "eval/loss": 0.5}],
        [{"step": 0, "gradient_norm": 0.0}, {"step": 1, "gradient_norm": 1e9}],
    ],
)
def test_a_report_survives_whatever_the_metrics_lack(report, lines):
    html = report(lines)
    assert "</html>" in html
    assert not re.search(r'[ ",M](nan|inf)[ ",]', html, re.IGNORECASE)


@pytest.mark.parametrize("settings", [{}, {"model": None, "data": [], "train": 3}, {"data": {}}])
def test_a_report_survives_whatever_the_settings_lack(report, settings):
    assert "1 optimizer step." in report([step_line(1)], settings)


def test_an_empty_folder_gets_a_report_that_says_what_is_missing(tmp_path):
    html = run_report(tmp_path).read_text("utf-8")
    for name in ("config.yaml", "provenance.json", "metrics.jsonl"):
        assert f"{name} is missing" in html


def test_hostile_names_and_values_stay_text(report):
    html = report(
        [step_line(1, **{HOSTILE: 1.0, f"a/{HOSTILE}": 2.0}), {"step": 1, f"eval/{HOSTILE}": 1.0}],
        {"model": HOSTILE, "data": [HOSTILE], "objective": {"name": HOSTILE, HOSTILE: HOSTILE}},
        {HOSTILE: HOSTILE},
    )
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 10


def test_a_report_needs_nothing_from_outside(report):
    html = report([step_line(step, **{"rewards/accuracies": 0.5}) for step in range(30)])
    assert not re.search(r"https?:|\bsrc=|\bhref=|@import|url\(|<link|<script", html)


def test_a_long_run_has_a_small_report(report):
    html = report([step_line(step, **{"rewards/accuracies": step % 7 / 7}) for step in range(9000)])
    assert len(html) < 400_000
