from types import SimpleNamespace

import pytest

from veritune.commands import display
from veritune.commands.display import Display, duration, step_in_words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.4, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (2 * 3600 + 5 * 60 + 59, "2 h 05 min"),
    ],
)
def test_a_duration_reads_as_a_person_would_say_it(seconds, words):
    assert duration(seconds) == words


def test_a_step_shows_what_is_worth_watching():
    line = {
        "loss": 0.69314718,
        "rewards/accuracies": 0.5,
        "rewards/margins": -0.00012345,
        "learning_rate": 1e-6,
        "tokens": 5000,
        "seconds": 2.0,
    }
    assert step_in_words(line) == "loss 0.6931  accuracies 0.5  margins -0.0001234  2,500 tokens/s"


def test_a_step_of_no_measured_time_shows_no_speed():
    assert step_in_words({"loss": 1.0, "tokens": 5, "seconds": 0.0}) == "loss 1"


def test_a_header_stands_in_two_columns(capsys):
    Display().header({"a": "one", "longer": "two"})
    assert capsys.readouterr().out == "a       one\nlonger  two\n"


def test_text_of_the_user_is_shown_as_it_is(capsys):
    text = "[bold]x[/bold] :smile: [/] " + "long " * 60
    Display().note(text)
    Display().header({"name": text})
    assert capsys.readouterr().out == f"{text}\nname  {text}\n"


def test_a_quiet_display_says_nothing(capsys):
    shown = Display(quiet=True)
    shown.note("x")
    shown.header({"a": "b"})
    assert capsys.readouterr().out == ""


def test_progress_in_a_file_is_a_line_for_the_first_and_the_last_step(capsys):
    with Display().training(5, 0) as update:
        for step in range(1, 6):
            update({"step": step, "loss": 1.0 / step})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[:2] for line in lines] == [
        ["step 1/5", "loss 1"],
        ["step 5/5", "loss 0.2"],
    ]
    assert lines[-1].endswith("0 s left")


def test_progress_in_a_file_is_a_line_now_and_then(capsys, monkeypatch):
    clock = iter(range(0, 10_000, 4))
    monkeypatch.setattr(display, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    with Display().counting("tokens") as update:
        for done in range(1, 8):
            update(done, 7)
    # A call every 4 seconds, a line when more than 10 have passed: at 12 and 24 seconds.
    # 12 seconds for 3 of 7 leave 16; 24 seconds for 6 leave 4.
    assert capsys.readouterr().out.splitlines() == [
        "tokens: 3/7, 0.25 a second, 16 s left",
        "tokens: 6/7, 0.25 a second, 4 s left",
    ]


def test_progress_of_an_unknown_amount_of_work_has_a_rate_and_no_end(capsys, monkeypatch):
    clock = iter(range(0, 10_000, 4))
    monkeypatch.setattr(display, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    with Display().counting("tokens") as update:
        for done in range(512, 512 * 4, 512):
            update(done, None)
    assert capsys.readouterr().out.splitlines() == ["tokens: 1536, 128 a second"]
