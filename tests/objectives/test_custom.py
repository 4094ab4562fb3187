from pathlib import Path

import pytest

from veritune.errors import SettingsError
from veritune.logprobs import PairedLogProbs, UnpairedLogProbs
from veritune.objectives.catalog import hyperparameters
from veritune.objectives.custom import declare_what_is_read, is_custom, load_card
from veritune.objectives.paired.dpo import dpo_loss

SQUARED = '''
"""Losses of my own."""

from torch import Tensor

from veritune.logprobs import PairedLogProbs, UnpairedLogProbs
from veritune.ranges import Positive


def squared(pairs: PairedLogProbs, *, beta: Positive = 0.5, target: float = 1.0) -> Tensor:
    """Squared distance of the implicit reward margin from a target.

        loss = (beta * (log_ratio(chosen) - log_ratio(rejected)) - target)^2

    Args:
        pairs: Pairs.
        beta: Scale of the margin.
        target: Where the margin is pulled.

    Source:
        Made up for a test.
    """
    return (beta * (pairs.chosen.log_ratio - pairs.rejected.log_ratio) - target) ** 2


def bare(labels: UnpairedLogProbs, *, scale=2):
    return scale * (labels.completion.policy - labels.mismatched_log_ratio) ** 2


def positional(pairs: PairedLogProbs, beta: float = 0.1):
    return pairs.chosen.policy * beta


def unannotated(pairs):
    return pairs.chosen.policy


def with_a_word(pairs: PairedLogProbs, *, mode: str = "fast"):
    return pairs.chosen.policy


def failing(pairs: PairedLogProbs):
    return pairs.chosen.reward
'''


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "my_loss.py"
    path.write_text(SQUARED)
    return path


def test_a_file_and_a_function_are_told_from_a_name():
    assert is_custom("losses/mine.py:squared")
    assert not is_custom("dpo")
    assert not is_custom("mine.py")


def test_a_card_is_made_of_signature_and_docstring(file):
    card, is_own = load_card(f"{file}:squared")

    assert not is_own
    assert card.name == "squared"
    assert card.data is PairedLogProbs
    assert card.title == "Squared distance of the implicit reward margin from a target"
    assert card.source == "Made up for a test."
    assert card.reward_scale == "beta"
    assert hyperparameters(card)["target"].default == 1.0
    assert hyperparameters(card)["beta"].range == "greater than 0"


def test_a_trial_shows_what_the_function_reads(file):
    squared = declare_what_is_read(load_card(f"{file}:squared").card, {"beta": 0.5, "target": 1.0})
    bare = declare_what_is_read(load_card(f"{file}:bare").card, {"scale": 2.0})

    assert (squared.needs_reference, squared.needs_mismatched) == (True, False)
    assert (bare.needs_reference, bare.needs_mismatched) == (False, True)
    assert bare.data is UnpairedLogProbs


def test_a_function_without_annotations_of_its_numbers_or_a_docstring_is_taken(file):
    card = load_card(f"{file}:bare").card

    assert hyperparameters(card)["scale"].range == "any"
    assert "bare" in card.title


def test_a_card_of_the_file_is_taken_as_it_is(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("from veritune.objectives.paired.dpo import CARD, dpo_loss\n")

    card, is_own = load_card(f"{file}:dpo_loss")

    assert is_own
    assert card.loss is dpo_loss


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("missing", "squared, bare"),
        ("positional", r"write a \* before beta"),
        ("unannotated", "annotate it with one of DemonstrationLogProbs, PairedLogProbs"),
        ("with_a_word", "mode = 'fast'"),
    ],
)
def test_a_function_of_another_shape_is_refused_with_the_way_out(file, function, message):
    with pytest.raises(SettingsError, match=message):
        load_card(f"{file}:{function}")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SettingsError, match="there is no such file"):
        load_card(f"{tmp_path}/none.py:loss")


def test_a_file_that_cannot_be_imported_says_why(tmp_path):
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")

    with pytest.raises(SettingsError, match="nothing_of_this_name"):
        load_card(f"{tmp_path}/broken.py:loss")


def test_a_function_that_fails_is_named_with_its_exception(file):
    with pytest.raises(SettingsError, match="AttributeError"):
        declare_what_is_read(load_card(f"{file}:failing").card, {})
