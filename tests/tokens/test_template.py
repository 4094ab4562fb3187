"""Messages to text, and the cuts where the assistant begins and ends."""

from typing import Any

import pytest

from veritune.errors import TokenizationError
from veritune.records.kinds import Message, Origin, Rendering
from veritune.tokens.template import Turn, render, rendered_turns

AT = Origin("a.jsonl", 7)
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content + '</>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
USER, YES, NO = Message("user", "hi"), Message("assistant", "yes"), Message("assistant", "no")


def turns_of(tokenizer: Any, prompt: Any, completion: Any) -> tuple[str, list[Turn]]:
    return rendered_turns(
        tokenizer, prompt, completion, Rendering(), chat_template_kwargs={}, where=AT
    )


def test_render_gives_what_the_template_says_and_nothing_else(chatml_tokenizer: Any):
    tokenizer = chatml_tokenizer(TEMPLATE)

    text = render(
        tokenizer, (USER,), Rendering(), chat_template_kwargs={}, add_generation_prompt=True
    )

    assert text == "<user>hi</><assistant>"


def test_the_pieces_of_a_dialogue_join_to_the_rendered_whole(chatml_tokenizer: Any):
    tokenizer = chatml_tokenizer(TEMPLATE)

    prompt, turns = turns_of(tokenizer, (USER,), (YES, USER, NO))

    assert prompt == "<user>hi</><assistant>"
    assert turns == [
        Turn("yes</>", is_assistant=True),
        Turn("<user>hi</><assistant>", is_assistant=False),
        Turn("no</>", is_assistant=True),
    ]
    whole = render(
        tokenizer,
        (USER, YES, USER, NO),
        Rendering(),
        chat_template_kwargs={},
        add_generation_prompt=False,
    )
    assert prompt + "".join(turn.text for turn in turns) == whole


def test_two_answers_in_a_row_are_two_turns(chatml_tokenizer: Any):
    _, turns = turns_of(chatml_tokenizer(TEMPLATE), (USER,), (YES, NO))

    spoken = [turn.text for turn in turns if turn.is_assistant]
    assert spoken == ["yes</>", "no</>"]


def test_an_empty_answer_stays_a_turn(chatml_tokenizer: Any):
    template = TEMPLATE.replace(" + '</>'", "")

    prompt, turns = turns_of(chatml_tokenizer(template), (USER,), (Message("assistant", ""),))

    assert (prompt, turns) == ("<user>hi<assistant>", [Turn("", is_assistant=True)])


def test_an_end_of_sequence_that_closes_every_dialogue_is_no_part_of_an_earlier_turn(
    chatml_tokenizer: Any,
):
    """As the template of Phi-3 does it."""
    template = TEMPLATE.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")
    tokenizer = chatml_tokenizer(template)

    _, turns = turns_of(tokenizer, (USER,), (YES, USER, NO))

    assert [turn.text for turn in turns] == [
        "yes</>",
        "<user>hi</><assistant>",
        f"no</>{tokenizer.eos_token}",
    ]


def test_a_generation_prompt_that_the_dialogue_lacks_is_refused(chatml_tokenizer: Any):
    template = TEMPLATE.replace("'<assistant>' }}", "'<assistant><think>' }}")

    with pytest.raises(TokenizationError, match="cannot be told apart") as caught:
        turns_of(chatml_tokenizer(template), (USER,), (YES,))

    assert "<think>" in str(caught.value)


def test_an_empty_completion_of_messages_is_refused(chatml_tokenizer: Any):
    with pytest.raises(TokenizationError, match="does not begin with a turn of the assistant"):
        turns_of(chatml_tokenizer(TEMPLATE), (USER,), ())


def test_an_error_of_the_template_language_is_told_with_the_roles(chatml_tokenizer: Any):
    tokenizer = chatml_tokenizer("{{ messages[0].nothing.here }}")

    with pytest.raises(TokenizationError, match="the chat template refuses") as caught:
        turns_of(tokenizer, (USER,), (YES,))

    assert "['user', 'assistant']" in str(caught.value)
    assert caught.value.__cause__ is not None
