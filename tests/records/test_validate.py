import math

import pytest

from veritune.errors import RecordError
from veritune.records.kinds import (
    Demonstration,
    Message,
    Origin,
    Paired,
    Prompt,
    Scored,
    TokenIds,
    Unpaired,
)
from veritune.records.validate import check_completions_differ, is_empty, validate_record

AT = Origin("a.jsonl", 7)
SYSTEM, USER = Message("system", "s"), Message("user", "hi")
YES, NO = Message("assistant", "yes"), Message("assistant", "no")
CALL = Message("assistant", "", {"tool_calls": [{"function": {"name": "f"}}]})
FOUND = Message("tool", "found")


def labelled(label):
    """A record with a label of any type, past the check of types that runs while testing."""
    record = Unpaired("p", "c", True, AT)
    object.__setattr__(record, "desirable", label)
    return record


SOUND = {
    "plain pair": Paired("p", "c", "r", AT),
    "empty plain prompt": Demonstration("", "c", AT),
    "system first": Paired((SYSTEM, USER), (YES,), (NO,), AT),
    "developer first": Prompt((Message("developer", "s"), USER), AT),
    "tools in the completion": Demonstration((USER,), (CALL, FOUND, YES), AT),
    "prompt ends with a tool": Unpaired((USER, CALL, FOUND), (YES,), True, AT),
    "tool call alone": Demonstration((USER,), (CALL,), AT),
    "one scored completion": Scored("p", ("a",), (1.0,), AT),
    "equal scores": Scored("p", ("a", "b"), (1.0, 1.0), AT),
    "token ids": Paired(TokenIds((0,)), TokenIds((1,)), TokenIds((2,)), AT),
}

UNSOUND = {
    "unknown role": (Prompt((Message("narrator", "x"),), AT), "unknown role in the prompt"),
    "role of ShareGPT": (Prompt((Message("human", "x"),), AT), 'write "user"'),
    "two system turns": (Prompt((SYSTEM, SYSTEM, USER), AT), "two system turns"),
    "system and developer": (
        Prompt((SYSTEM, Message("developer", "d"), USER), AT),
        "two system turns",
    ),
    "late system turn": (Prompt((USER, SYSTEM), AT), "the system turn is not the first turn"),
    "system in the completion": (
        Demonstration((USER,), (YES, SYSTEM, YES), AT),
        "the system turn is not the first turn",
    ),
    "no prompt turns": (Demonstration((), (YES,), AT), "nothing is said before the completion"),
    "prompt ends with assistant": (Paired((USER, YES), (YES,), (NO,), AT), "the prompt ends with"),
    "no assistant turn": (Demonstration((USER,), (USER,), AT), "has no assistant turn"),
    "begins with user": (Demonstration((USER,), (USER, YES), AT), "does not begin with"),
    "ends with user": (Demonstration((USER,), (YES, USER), AT), "does not end with"),
    "no turns": (Demonstration((USER,), (), AT), "has no assistant turn"),
    "empty chosen": (Paired("p", "", "r", AT), "chosen is empty"),
    "blank rejected": (Paired("p", "c", " \n\t", AT), "rejected is empty"),
    "blank turn": (
        Unpaired((USER,), (Message("assistant", " "),), True, AT),
        "completion is empty",
    ),
    "one blank turn of two": (
        Demonstration((USER,), (Message("assistant", ""), USER, YES), AT),
        "completion is empty",
    ),
    "second completion empty": (Scored("p", ("a", ""), (1.0, 2.0), AT), "completion 2 is empty"),
    "no completions": (Scored("p", (), (), AT), "there are no completions"),
    "NaN": (Scored("p", ("a", "b"), (1.0, math.nan), AT), "the score of completion 2 is not a fin"),
    "infinity": (Scored("p", ("a",), (-math.inf,), AT), "got: -inf"),
    "lengths": (Scored("p", ("a", "b"), (1.0,), AT), "there are 1 scores for 2 completions"),
    "label": (labelled(1), "the label is not a truth value"),
    "no ids": (Demonstration(TokenIds((1,)), TokenIds(()), AT), "ids of the completion are empty"),
    "no prompt ids": (Prompt(TokenIds(()), AT), "ids of the prompt are empty"),
    "masked ids": (Prompt(TokenIds((-100, 1)), AT), "got: -100"),
    "half a character": (Prompt("a\ud83d", AT), "half of a surrogate pair"),
    "half a character in a turn": (Prompt((Message("user", "\ude00"),), AT), "half of a surrogate"),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_record_passes_every_check(name):
    validate_record(SOUND[name])


@pytest.mark.parametrize("name", UNSOUND)
def test_unsound_record_is_refused_with_its_line_and_a_way_out(name):
    record, told = UNSOUND[name]

    with pytest.raises(RecordError) as caught:
        validate_record(record)

    message = str(caught.value)
    assert message.startswith("a.jsonl, line 7: ")
    assert told in message
    assert "\n  fix: " in message


def test_a_pair_of_identical_completions_is_refused_and_shown():
    check_completions_differ(Paired("p", "c", "r", AT))

    with pytest.raises(RecordError, match=r"are the same text(.|\n)*got: 'yes'"):
        check_completions_differ(Paired((USER,), (YES,), (YES,), AT))


def test_a_turn_with_tool_calls_is_not_empty():
    assert is_empty((Message("assistant", ""),))
    assert not is_empty((CALL,))
