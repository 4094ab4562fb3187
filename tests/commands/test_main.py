import re
import signal
import warnings

import pytest

from veritune import __version__
from veritune.commands import main as command_line
from veritune.errors import RunError, VerituneWarning
from veritune.training.loop import Interrupted

COMMANDS = ("check", "train", "settings", "objectives", "tiny", "demo")


def flat(text: str) -> str:
    """The text without the frames and line ends of a help page."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_help_lists_every_command(words, veritune):
    outcome = veritune(*words)
    assert outcome.code == (0 if words else 2)
    assert outcome.err == ""
    for command in COMMANDS:
        assert f" {command} " in flat(outcome.out)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_has_an_example(command, veritune):
    outcome = veritune(command, "--help")
    assert outcome.code == 0
    assert re.search(rf"Examples?: veritune {command} \S", flat(outcome.out))
    assert all(len(line) <= 100 for line in outcome.out.splitlines())


@pytest.mark.parametrize("command", ["check", "train", "tiny"])
def test_a_command_that_needs_words_shows_its_help_without_them(command, veritune):
    outcome = veritune(command)
    assert outcome.code == 2
    assert f"veritune {command}" in flat(outcome.out)
    assert outcome.err == ""


def test_version_is_printed(veritune):
    assert veritune("--version") == (0, f"veritune {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["chek", "a.jsonl"], "No such command 'chek'. Did you mean 'check'?"),
        (["--vers"], "--version"),
        (["settings", "chek"], "'check'"),
        (["train", "--overwite"], "neither a YAML file nor key=value"),
        (["train", "model=m", "--overwite"], "an override is not of the form key=value"),
        (["train", "pairs.jsonl"], "data=pairs.jsonl"),
    ],
)
def test_a_wrong_word_is_named(words, told, veritune):
    outcome = veritune(*words)
    assert outcome.code == 2
    assert told in outcome.err
    assert "Traceback" not in outcome.err


def test_settings_may_be_written_with_dashes(place, veritune):
    (place / "a.jsonl").write_text('{"prompt": "p", "completion": "c"}\n')
    assert veritune("check", "a.jsonl", "--examples=1").code == 0
    assert veritune("check", "a.jsonl", "--examples", "1").code == 0
    assert "no-such-model" in veritune("check", "a.jsonl", "--model", "./no-such-model").err
    assert "unknown setting exmples" in veritune("check", "a.jsonl", "--exmples=1").err


@pytest.fixture
def failing(monkeypatch, veritune):
    """Runs `veritune check` where the work itself raises an error."""

    def call(error: BaseException):
        def fail(*_):
            raise error

        monkeypatch.setattr(command_line, "check", fail)
        return veritune("check", "a.jsonl")

    return call


def test_a_failed_run_leaves_with_exit_code_1_and_its_message(failing):
    outcome = failing(RunError("the loss is not a number", where="step 3"))
    assert (outcome.code, outcome.err) == (1, "RunError: step 3: the loss is not a number.\n")


def test_an_unforeseen_error_leaves_with_exit_code_1_and_a_traceback(failing):
    outcome = failing(ZeroDivisionError("division by zero"))
    assert outcome.code == 1
    assert outcome.err.startswith("Traceback")
    assert outcome.err.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_where_it_continues(number, code, failing, place):
    outcome = failing(Interrupted(number, place / "step-4"))
    assert outcome.code == code
    assert f"stopped by {number.name}; continues from {place / 'step-4'}" in outcome.err


def test_an_interruption_before_the_first_step_leaves_with_exit_code_130(failing):
    outcome = failing(KeyboardInterrupt())
    assert outcome.code == 130
    assert "Traceback" not in outcome.err


def test_warnings_of_the_package_are_told_and_those_of_libraries_are_not(
    monkeypatch, veritune, capsys
):
    def warn(*_):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            # pytest collects warnings in its own way; the command's way was set before the call.
            warnings.showwarning = shown
            warnings.warn("rows are padded", VerituneWarning, stacklevel=1)
            warnings.warn("this will change", FutureWarning, stacklevel=1)
        raise RunError("enough")

    shown = command_line._show_warning
    monkeypatch.setattr(command_line, "check", warn)
    assert veritune("check", "a.jsonl").err == "warning: rows are padded\nRunError: enough.\n"
