import math
from pathlib import Path

import pytest

from veritune.reports.run_folder import RunFolder
from veritune.reports.verdict import ends, run_findings, tenths


def run_of(**series) -> RunFolder:
    """A run with these values, one for each step; `__` stands for `/`."""
    named = {
        name.replace("__", "/"): tuple((float(i), v) for i, v in enumerate(values, start=1))
        for name, values in series.items()
    }
    steps = tuple(range(1, 1 + max((len(v) for v in named.values()), default=0)))
    return RunFolder(Path("run"), {}, {}, named, steps, ())


def finding(run: RunFolder, word: str) -> str:
    (sentence,) = [sentence for sentence in run_findings(run) if word in sentence]
    return sentence


def test_tenths_compare_the_means_of_the_first_and_the_last_tenth():
    change = tenths(tuple((float(i), float(i)) for i in range(20)))
    assert (change.first, change.last) == ((0 + 1) / 2, (18 + 19) / 2)
    assert change.first_steps == "the mean of the first 2 steps"


def test_tenths_and_ends_need_two_values():
    one = ((1.0, 0.5), (2.0, math.nan))
    assert tenths(one) is None
    assert ends(one) is None
    assert tenths(()) is None


def test_tenths_know_a_trend_from_noise():
    noise = tuple((float(i), float(i % 2) + (0.01 if i > 50 else 0.0)) for i in range(100))
    trend = tuple((x, y + x / 50) for x, y in noise)
    assert tenths(noise).is_noise
    assert not tenths(trend).is_noise


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0.7, 0.5], "fell from 0.700 (the first step) to 0.500 (the last)"),
        ([0.5, 0.7], "rose from 0.500 (the first step) to 0.700 (the last)"),
        ([0.5, 0.5], "stayed at 0.500"),
    ],
)
def test_the_training_loss_is_told_by_its_direction(values, words):
    assert words in finding(run_of(loss=values), "training loss")


def test_a_loss_within_its_noise_is_said_to_be():
    noise = [float(i % 2) + (0.01 if i > 50 else 0.0) for i in range(100)]
    assert "within the noise" in finding(run_of(loss=noise), "training loss")


def test_one_step_has_no_trend():
    assert "0.700, of one step" in finding(run_of(loss=[0.7]), "training loss")


def test_steps_without_a_number_are_counted_and_the_first_is_named():
    sentence = finding(run_of(loss=[0.7, math.nan, 0.6, math.inf]), "finite")
    assert "2 steps of 4, first at step 2" in sentence


def test_accuracies_are_told_as_shares():
    sentence = finding(run_of(loss=[1.0, 1.0], rewards__accuracies=[0.49, 0.71]), "training exam")
    assert "rose from 49%" in sentence
    assert "71%" in sentence


def test_a_held_out_loss_that_turns_up_names_the_best_step():
    turning = run_of(loss=[1.0] * 4, eval__loss=[0.7, 0.5, 0.6, 0.65])
    assert "lowest, 0.500, at step 2" in finding(turning, "lowest")
    falling = run_of(loss=[1.0] * 4, eval__loss=[0.7, 0.65, 0.6, 0.5])
    assert not any("lowest" in sentence for sentence in run_findings(falling))


def test_nothing_held_out_is_said():
    assert "overfitting" in finding(run_of(loss=[0.7, 0.6]), "held out")


def test_both_log_probabilities_falling_is_told_with_its_meaning():
    run = run_of(loss=[1.0, 0.9], logps__chosen=[-10.0, -12.0], logps__rejected=[-10.0, -30.0])
    sentence = finding(run, "Both chosen")
    assert "by 2 and 20 nats" in sentence
    assert "training" in sentence


@pytest.mark.parametrize(
    ("chosen", "rejected"), [([-10.0, -9.0], [-10.0, -30.0]), ([-10.0, -11.0], [-10.0, -9.0])]
)
def test_one_of_both_rising_is_no_finding(chosen, rejected):
    run = run_of(loss=[1.0, 0.9], logps__chosen=chosen, logps__rejected=rejected)
    assert not any("Both chosen" in sentence for sentence in run_findings(run))


def test_held_out_log_probabilities_are_preferred_to_those_of_training():
    run = run_of(
        loss=[1.0, 0.9],
        logps__chosen=[-10.0, -12.0],
        logps__rejected=[-10.0, -30.0],
        eval__logps__chosen=[-10.0, -9.0],
        eval__logps__rejected=[-10.0, -11.0],
    )
    assert not any("Both chosen" in sentence for sentence in run_findings(run))


def test_an_empty_run_has_no_findings():
    assert run_findings(run_of()) == ()
