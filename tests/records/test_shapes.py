"""Every accepted set of columns, and what is refused."""

import pytest

from veritune.errors import RecordError
from veritune.records.kinds import (
    Demonstration,
    Message,
    Origin,
    Paired,
    Prompt,
    Rendering,
    Scored,
    TokenIds,
    Unpaired,
)
from veritune.records.shapes import record_from_row

AT = Origin("a.jsonl", 7)


def user(content: str) -> Message:
    return Message("user", content)


def answer(content: str) -> Message:
    return Message("assistant", content)


def turn(role: str, content: str) -> dict:
    return {"role": role, "content": content}


def said(who: str, value: str) -> dict:
    return {"from": who, "value": value}


HI, BYE = turn("user", "hi"), turn("user", "bye")
YES, NO = turn("assistant", "yes"), turn("assistant", "no")

CASES = {
    "plain pair": (
        {"prompt": "p", "chosen": "c", "rejected": "r", "note": 1},
        Paired("p", "c", "r", AT),
    ),
    "pair of messages": (
        {"prompt": [HI], "chosen": [YES], "rejected": [NO]},
        Paired((user("hi"),), (answer("yes"),), (answer("no"),), AT),
    ),
    "text prompt with message completions": (
        {"prompt": "hi", "chosen": [YES], "rejected": [NO]},
        Paired((user("hi"),), (answer("yes"),), (answer("no"),), AT),
    ),
    "message prompt with text completions": (
        {"prompt": [HI], "chosen": "yes", "rejected": "no"},
        Paired((user("hi"),), (answer("yes"),), (answer("no"),), AT),
    ),
    "UltraFeedback binarized": (
        {
            "prompt": "hi",
            "prompt_id": "f0e1",
            "messages": [HI, YES],
            "chosen": [HI, YES],
            "rejected": [HI, NO],
            "score_chosen": 8.0,
            "score_rejected": 3.0,
        },
        Paired((user("hi"),), (answer("yes"),), (answer("no"),), AT),
    ),
    "text prompt that is one of several shared turns": (
        {"prompt": "hi", "chosen": [HI, YES, BYE, YES], "rejected": [HI, YES, BYE, NO]},
        Paired((user("hi"), answer("yes"), user("bye")), (answer("yes"),), (answer("no"),), AT),
    ),
    "messages prompt repeated in the completions": (
        {"prompt": [HI], "chosen": [HI, YES], "rejected": [HI, NO]},
        Paired((user("hi"),), (answer("yes"),), (answer("no"),), AT),
    ),
    "whole dialogues": (
        {"chosen": [HI, YES, BYE, YES], "rejected": [HI, YES, BYE, NO]},
        Paired((user("hi"), answer("yes"), user("bye")), (answer("yes"),), (answer("no"),), AT),
    ),
    "whole dialogues that differ at a user turn": (
        {"chosen": [HI, YES, HI, YES], "rejected": [HI, YES, BYE, YES]},
        Paired(
            (user("hi"),),
            (answer("yes"), user("hi"), answer("yes")),
            (answer("yes"), user("bye"), answer("yes")),
            AT,
        ),
    ),
    "whole dialogues with two assistant turns in a row": (
        {"chosen": [HI, YES, YES], "rejected": [HI, YES, NO]},
        Paired((user("hi"),), (answer("yes"), answer("yes")), (answer("yes"), answer("no")), AT),
    ),
    "whole dialogues that are the same": (
        {"chosen": [HI, YES], "rejected": [HI, YES]},
        Paired((user("hi"),), (answer("yes"),), (answer("yes"),), AT),
    ),
    "Anthropic HH": (
        {
            "chosen": "\n\nHuman: hi\n\nAssistant: yes\n\nHuman: bye\n\nAssistant: a\n\nb",
            "rejected": "\n\nHuman: hi\n\nAssistant: yes\n\nHuman: bye\n\nAssistant: no",
        },
        Paired((user("hi"), answer("yes"), user("bye")), (answer("a\n\nb"),), (answer("no"),), AT),
    ),
    "messages beside chosen and rejected": (
        {"messages": [HI], "chosen": YES, "rejected": NO},
        Paired((user("hi"),), (answer("yes"),), (answer("no"),), AT),
    ),
    "messages as a copy of the chosen dialogue": (
        {"messages": [HI, YES], "chosen": [HI, YES], "rejected": [HI, NO]},
        Paired((user("hi"),), (answer("yes"),), (answer("no"),), AT),
    ),
    "system column": (
        {"system": "be brief", "prompt": "hi", "chosen": "yes", "rejected": "no"},
        Paired((Message("system", "be brief"), user("hi")), (answer("yes"),), (answer("no"),), AT),
    ),
    "label": (
        {"prompt": "p", "completion": "c", "label": False},
        Unpaired("p", "c", False, AT),
    ),
    "ShareGPT with a tag": (
        {"conversations": [said("human", "hi"), said("gpt", "yes")], "kto_tag": True},
        Unpaired((user("hi"),), (answer("yes"),), True, AT),
    ),
    "ShareGPT with a label on the last of several answers": (
        {
            "conversations": [
                said("system", "s"),
                said("human", "hi"),
                said("gpt", "yes"),
                said("human", "bye"),
                said("gpt", "call"),
                said("observation", "found"),
                said("gpt", "no"),
            ],
            "label": 0,
        },
        Unpaired(
            (Message("system", "s"), user("hi"), answer("yes"), user("bye")),
            (answer("call"), Message("tool", "found"), answer("no")),
            False,
            AT,
        ),
    ),
    "ShareGPT pair": (
        {
            "conversations": [said("human", "hi")],
            "chosen": said("gpt", "yes"),
            "rejected": said("gpt", "no"),
        },
        Paired((user("hi"),), (answer("yes"),), (answer("no"),), AT),
    ),
    "ShareGPT demonstration": (
        {"conversations": [said("human", "hi"), said("gpt", "yes")], "system": "s"},
        Demonstration((Message("system", "s"), user("hi")), (answer("yes"),), AT),
    ),
    "Alpaca": (
        {"instruction": "add", "input": "1 2", "output": "3"},
        Demonstration((user("add\n1 2"),), (answer("3"),), AT),
    ),
    "Alpaca with system and history": (
        {
            "instruction": "add",
            "input": "",
            "output": "3",
            "system": "s",
            "history": [["hi", "yes"]],
        },
        Demonstration(
            (Message("system", "s"), user("hi"), answer("yes"), user("add")), (answer("3"),), AT
        ),
    ),
    "Alpaca pair": (
        {"instruction": "hi", "chosen": "yes", "rejected": "no"},
        Paired((user("hi"),), (answer("yes"),), (answer("no"),), AT),
    ),
    "scores": (
        {"prompt": "p", "completions": ["a", "b", "c"], "scores": [1, 0.5, -2]},
        Scored("p", ("a", "b", "c"), (1.0, 0.5, -2.0), AT),
    ),
    "responses and rewards": (
        {"prompt": "p", "responses": ["a"], "rewards": [1]},
        Scored("p", ("a",), (1.0,), AT),
    ),
    "scored messages": (
        {"prompt": [HI], "completions": [[YES], [NO]], "scores": [1, 0]},
        Scored((user("hi"),), ((answer("yes"),), (answer("no"),)), (1.0, 0.0), AT),
    ),
    "NeMo pair, the lower rank chosen": (
        {
            "context": [HI],
            "completions": [{"rank": 1, "completion": [NO]}, {"rank": 0, "completion": [YES]}],
        },
        Paired((user("hi"),), (answer("yes"),), (answer("no"),), AT),
    ),
    "NeMo ranking": (
        {
            "context": [HI],
            "completions": [
                {"rank": rank, "completion": [turn("assistant", str(rank))]} for rank in (2, 0, 1)
            ],
        },
        Scored(
            (user("hi"),), ((answer("2"),), (answer("0"),), (answer("1"),)), (-2.0, 0.0, -1.0), AT
        ),
    ),
    "UltraFeedback": (
        {
            "instruction": "hi",
            "models": ["x", "y"],
            "completions": [
                {"response": "yes", "fine-grained_score": 4.25, "overall_score": 10},
                {"response": "no", "overall_score": 2},
            ],
        },
        Scored((user("hi"),), ((answer("yes"),), (answer("no"),)), (4.25, 2.0), AT),
    ),
    "messages": (
        {"messages": [turn("system", "s"), HI, YES, BYE, NO, HI]},
        Demonstration(
            (Message("system", "s"), user("hi")), (answer("yes"), user("bye"), answer("no")), AT
        ),
    ),
    "messages with a label": (
        {"messages": [HI, YES], "label": True},
        Unpaired((user("hi"),), (answer("yes"),), True, AT),
    ),
    "text": ({"text": "once"}, Demonstration("", "once", AT)),
    "completion": ({"prompt": "p", "completion": "c"}, Demonstration("p", "c", AT)),
    "prompt": ({"prompt": [HI], "id": 3}, Prompt((user("hi"),), AT)),
    "null counts as absent": ({"prompt": "p", "chosen": None, "label": None}, Prompt("p", AT)),
    "token pair": (
        {"prompt_input_ids": [1, 2], "chosen_input_ids": [3], "rejected_input_ids": [4]},
        Paired(TokenIds((1, 2)), TokenIds((3,)), TokenIds((4,)), AT),
    ),
    "token label": (
        {"prompt_ids": [1], "completion_ids": [2], "label": 1},
        Unpaired(TokenIds((1,)), TokenIds((2,)), True, AT),
    ),
    "token scores": (
        {"prompt_ids": [1], "completions_ids": [[2], [3, 4]], "scores": [0, 1]},
        Scored(TokenIds((1,)), (TokenIds((2,)), TokenIds((3, 4))), (0.0, 1.0), AT),
    ),
    "token demonstration": (
        {"prompt_ids": [1], "completion_ids": [2]},
        Demonstration(TokenIds((1,)), TokenIds((2,)), AT),
    ),
    "tools as JSON text": (
        {"prompt": [HI], "tools": '[{"name": "f"}]', "chat_template_kwargs": {"think": False}},
        Prompt((user("hi"),), AT, Rendering(({"name": "f"},), {"think": False})),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_shape_is_recognized(name):
    row, expected = CASES[name]

    assert record_from_row(AT, row) == expected


def test_text_parts_are_joined_and_other_keys_are_kept():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    row = {"prompt": [{"role": "user", "content": parts, "name": "Ann", "weight": None}]}

    assert record_from_row(AT, row).prompt == (Message("user", "ab", {"name": "Ann"}),)


def test_a_turn_of_tool_calls_needs_no_content():
    calls = [{"function": {"name": "f"}}]
    row = {"messages": [HI, {"role": "assistant", "content": None, "tool_calls": calls}]}

    completion = record_from_row(AT, row).completions[0]

    assert completion == (Message("assistant", "", {"tool_calls": calls}),)


@pytest.mark.parametrize(
    ("label", "desirable"),
    [(True, True), (0, False), (1.0, True), ("true", True), ("False", False), ("0", False)],
)
def test_label_is_read_in_every_accepted_form(label, desirable):
    row = {"prompt": "p", "completion": "c", "label": label}

    assert record_from_row(AT, row).desirable is desirable


def test_a_row_that_fits_two_kinds_follows_the_kind_asked_for():
    row = {"prompt": "p", "chosen": "c", "rejected": "r", "completions": ["a"], "scores": [1]}

    assert record_from_row(AT, row).kind == "paired"
    assert record_from_row(AT, row, kind="scored").kind == "scored"
    assert record_from_row(AT, row, kind="prompt") == Prompt("p", AT)


def test_two_ranked_completions_are_scored_when_scores_are_asked_for():
    ranked = [{"rank": 0, "completion": "a"}, {"rank": 1, "completion": "b"}]

    record = record_from_row(AT, {"context": [HI], "completions": ranked}, kind="scored")

    assert record.scores == (0.0, -1.0)


REFUSED = {
    "missing rejected": (
        {"prompt": "p", "chosen": "c"},
        [
            'add "rejected": the nearest accepted set is prompt, chosen, rejected',
            "data.kind=prompt",
        ],
    ),
    "null prompt": ({"prompt": None, "completion": "c", "label": True}, ['add "prompt"']),
    "misspelled": (
        {"prompt": "p", "choosen": "c", "rejected": "r"},
        ['add "chosen"', "data.columns.choosen=chosen", "got: ['prompt', 'choosen', 'rejected']"],
    ),
    "nothing alike": ({"x": 1}, ["as one of these sets:", "prompt, chosen, rejected;"]),
    "text and label": ({"text": "t", "label": 2}, ['data.kind=demonstration to use "text"']),
    "maybe": ({"prompt": "p", "completion": "c", "label": "maybe"}, ["got: 'maybe'"]),
    "label two": ({"prompt": "p", "completion": "c", "label": 2}, ["neither desirable nor"]),
    "number as text": ({"prompt": 3, "chosen": "c", "rejected": "r"}, ['"prompt" is neither text']),
    "list of strings": ({"prompt": ["a"], "chosen": "c", "rejected": "r"}, ["got: ['a']"]),
    "no messages": ({"prompt": []}, ["empty list of messages"]),
    "no role": ({"prompt": [{"content": "a"}]}, ["has no role"]),
    "no content": ({"prompt": [{"role": "user"}]}, ["is not text"]),
    "image": (
        {"prompt": [{"role": "user", "content": [{"type": "image"}]}]},
        ['a part of type "image"'],
    ),
    "no assistant turn": ({"messages": [HI]}, ["no assistant turn", "data.kind=prompt"]),
    "plain texts without prompt": (
        {"question": "q", "chosen": "same a", "rejected": "same b"},
        ['there is no column "prompt"', "data.columns.question=prompt"],
    ),
    "dialogues with nothing in common": (
        {"chosen": [HI, YES], "rejected": [BYE, YES]},
        ["share no leading turns"],
    ),
    "dialogue without an answer": (
        {"chosen": [HI, YES], "rejected": [HI]},
        ["share no leading turns"],
    ),
    "dialogues of another prompt": (
        {"prompt": "p", "chosen": [HI, YES], "rejected": [HI, NO]},
        ["do not begin with the prompt"],
    ),
    "completions without scores": ({"prompt": "p", "completions": ["a"]}, ["have no scores"]),
    "score as text": (
        {"prompt": "p", "completions": ["a"], "scores": ["1"]},
        ['a value of "scores" is not a number', "got: '1'"],
    ),
    "score as truth value": ({"prompt": "p", "completions": ["a"], "scores": [True]}, ["number"]),
    "scores as number": ({"prompt": "p", "completions": ["a"], "scores": 1}, ["is not a list"]),
    "ids as text": ({"prompt_ids": "1 2", "completion_ids": [1]}, ["not a list of token ids"]),
    "ids as truth values": ({"prompt_ids": [True], "completion_ids": [1]}, ["token ids"]),
    "tools that are no JSON": ({"prompt": "p", "tools": "f"}, ["text that is not JSON"]),
    "tools that are no list": ({"prompt": "p", "tools": {}}, ["not a list of objects"]),
    "history that is no list of pairs": (
        {"instruction": "i", "output": "o", "history": [["a"]]},
        ["[question, answer]"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_row_is_refused_with_its_line_and_a_way_out(name):
    row, told = REFUSED[name]

    with pytest.raises(RecordError) as caught:
        record_from_row(AT, row)

    message = str(caught.value)
    assert message.startswith("a.jsonl, line 7:")
    assert [part for part in told if part not in message] == []


def test_a_kind_that_the_columns_do_not_make_is_refused():
    with pytest.raises(RecordError, match="do not make a record of the kind unpaired"):
        record_from_row(AT, {"prompt": "p", "chosen": "c", "rejected": "r"}, kind="unpaired")
