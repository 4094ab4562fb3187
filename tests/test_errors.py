import inspect
import pickle
import re

import pytest

from veritune import errors
from veritune.errors import (
    DataError,
    Problems,
    RecordError,
    SettingsError,
    VerituneError,
    join_problems,
    nearest_name,
    shorten,
)
from veritune.records.kinds import Origin

CLASSES = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, VerituneError)
]


def test_a_message_says_where_what_got_why_and_fix_in_this_order():
    error = RecordError(
        '"chosen" equals "rejected"',
        where="train.jsonl, line 3",
        got="the same",
        why="there is no preference",
        fix="remove the row",
    )
    assert str(error) == (
        'train.jsonl, line 3: "chosen" equals "rejected".\n'
        "  got: 'the same'\n"
        "  why: there is no preference.\n"
        "  fix: remove the row."
    )


def test_what_is_not_known_is_left_out():
    assert str(DataError("the file is empty")) == "the file is empty."


@pytest.mark.parametrize("got", [0, False, "", [], 0.0])
def test_a_received_value_is_shown_though_it_is_false(got):
    assert f"got: {got!r}" in str(SettingsError("wrong", got=got))


def test_a_question_gets_no_full_stop():
    error = SettingsError("is it so?", fix="did you mean beta?")
    assert str(error) == "is it so?\n  fix: did you mean beta?"


@pytest.mark.parametrize("kind", CLASSES)
def test_the_exit_code_tells_the_users_mistakes_from_failures_of_a_run(kind):
    assert kind.exit_code == (2 if issubclass(kind, errors.InputError) else 1)


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_on_purpose_is_also_a_built_in_one(kind):
    if kind in (VerituneError, errors.InputError):
        return
    assert issubclass(kind, ValueError | RuntimeError)


def test_the_tree_in_the_docstring_has_every_class_below_its_parent():
    parents: dict[int, str] = {}
    drawn = {}
    for line in errors.__doc__.splitlines():
        match = re.match(r"^([│├└─ ]*)(Veritune\w*|\w+Error)\b", line)
        if match:
            depth = len(match[1]) // 4
            parents[depth] = match[2]
            drawn[match[2]] = parents.get(depth - 1)
    assert set(drawn) == {kind.__name__ for kind in CLASSES} | {"VerituneWarning"}
    for kind in CLASSES:
        if kind is not VerituneError:
            assert drawn[kind.__name__] == kind.__bases__[0].__name__


def test_a_short_value_is_shown_as_python_writes_it():
    assert shorten("a\nb") == r"'a\nb'"
    assert shorten([1, None]) == "[1, None]"


def test_a_long_value_keeps_its_ends_and_stays_on_one_line():
    text = shorten("start" + "\n" * 500 + "end")
    assert text.startswith(r"'start\n")
    assert text.endswith(r"\nend'")
    assert " … " in text
    assert len(text) <= 120
    assert "\n" not in text


def test_the_first_twenty_problems_are_joined_and_the_total_is_told():
    problems = [RecordError("bad", where=f"line {i}") for i in range(25)]
    joined = join_problems(problems)
    assert joined.count("RecordError: line") == 20
    assert "line 19: bad." in joined
    assert "line 20:" not in joined
    assert joined.endswith("… and 5 more (total 25).")
    assert "more" not in join_problems(problems[:20])
    assert join_problems(problems[:2], total=9).endswith("… and 7 more (total 9).")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("lerning_rate", "learning_rate"), ("bta", "beta"), ("zzz", None), ("", None)],
)
def test_the_nearest_name_is_like_the_given_one_or_none_is(name, nearest):
    assert nearest_name(name, ["learning_rate", "beta", "data"]) == nearest


def test_no_name_is_near_where_there_are_none():
    assert nearest_name("beta", []) is None


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_from_another_process_is_the_same_error(kind):
    error = kind("bad", where=Origin("a.jsonl", 3), got=["x"], why="it is")

    again = pickle.loads(pickle.dumps(error))

    assert type(again) is kind
    assert str(again) == str(error)
    assert (again.where, again.got, again.why, again.fix) == (error.where, ["x"], "it is", None)


def test_problems_are_counted_and_told_as_if_all_were_kept():
    made = [RecordError("bad", where=f"line {i}") for i in range(25)]
    first, later = Problems(), Problems()
    for problem in made[:7]:
        first.add(problem)
    for problem in made[7:]:
        later.add(problem)

    first.join(later)

    assert len(first) == 25
    assert len(first.shown) == 20
    assert str(first) == join_problems(made)
    assert not Problems()
