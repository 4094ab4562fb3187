"""A cell of a row to text: plain text, messages in either convention, or token ids.

And the other way round where a file holds whole dialogues: which turns are the prompt.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from veritune.errors import RecordError
from veritune.records.kinds import Message, Messages, Origin, Text, TokenIds

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
_TRANSCRIPT_START = "\n\nHuman:"
_TRANSCRIPT_TURN = re.compile(r"\n\n(Human|Assistant):")


def parse_text(value: Any, column: str, origin: Origin) -> str | Messages:
    """Plain text as it is; a message or a list of messages as `Messages`.

    A message is `{"role", "content"}`, or `{"from", "value"}` as ShareGPT writes it. Content may
    be a list of text parts, which are joined. Other keys go to `Message.extra`, unless null.

    Raises:
        RecordError: The value is neither, or a message lacks a role or text.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return (_parse_message(value, column, origin),)
    return parse_messages(value, column, origin)


def parse_messages(value: Any, column: str, origin: Origin) -> Messages:
    """A list of messages; see `parse_text`."""
    if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
        raise RecordError(
            f'"{column}" is neither text nor a list of messages',
            where=origin,
            got=value,
            fix='write text, or [{"role": "user", "content": "…"}, …]',
        )
    if not value:
        raise RecordError(
            f'"{column}" is an empty list of messages',
            where=origin,
            fix="remove the row, or add the turns",
        )
    return tuple(_parse_message(turn, column, origin) for turn in value)


def parse_token_ids(value: Any, column: str, origin: Origin) -> TokenIds:
    """A list of token ids.

    Raises:
        RecordError: The value is no list of whole numbers.
    """
    if isinstance(value, list) and all(type(token) is int for token in value):
        return TokenIds(tuple(value))
    raise RecordError(
        f'"{column}" is not a list of token ids',
        where=origin,
        got=value,
        fix="write a list of whole numbers of at least 0",
    )


def same_form(
    prompt: Text, completions: Sequence[Text], origin: Origin
) -> tuple[Text, tuple[Text, ...]]:
    """Prompt and completions in one form.

    Where one of them is messages, a text prompt becomes a user turn and a text completion an
    assistant turn. Completions that repeat the prompt's turns lose them.

    Raises:
        RecordError: Token ids stand beside text, or completions open with another dialogue.
    """
    texts = (prompt, *completions)
    num_ids = sum(isinstance(text, TokenIds) for text in texts)
    if num_ids == len(texts) or all(isinstance(text, str) for text in texts):
        return prompt, tuple(completions)
    if num_ids:
        raise RecordError(
            "token ids stand beside text",
            where=origin,
            why="ids are used as they are, and text would be tokenized in another way beside them",
            fix="give all of them as ids, or all as text",
        )
    turns = tuple(_as_messages(completion, "assistant") for completion in completions)
    prompt_turns = _as_messages(prompt, "user")
    if turns and all(completion[0].role in ("user", "system", "developer") for completion in turns):
        return _take_off_prompt(prompt, prompt_turns, turns, origin)
    return prompt_turns, turns


def split_whole_dialogues(
    chosen: Any, rejected: Any, origin: Origin
) -> tuple[Messages, Messages, Messages]:
    """Prompt, chosen and rejected of a pair that has no prompt column.

    Two lists of messages, or two texts of the form "\\n\\nHuman: …\\n\\nAssistant: …", share their
    leading turns, and these are the prompt. It ends before an assistant turn, never inside one.

    Raises:
        RecordError: The two share no turns, or are plain text. Plain text is refused, because a
            shared beginning of characters may end inside a word, or inside the answers.
    """
    dialogues: list[Messages] = []
    for column, value in (("chosen", chosen), ("rejected", rejected)):
        turns = (
            parse_transcript(value) if is_transcript(value) else parse_text(value, column, origin)
        )
        if isinstance(turns, str):
            raise RecordError(
                f'"{column}" is plain text, and there is no column "prompt"',
                where=origin,
                got=turns,
                why="where the prompt ends cannot be told from text alone",
                fix="add a column prompt, name the one that holds it"
                " (data.columns.question=prompt), or give whole dialogues as messages",
            )
        dialogues.append(turns)
    prompt, (one, other) = _split_shared(tuple(dialogues), origin)
    return prompt, one, other


def split_demonstration(turns: Messages, origin: Origin) -> tuple[Messages, Messages]:
    """Prompt: the turns before the first assistant turn. Completion: from there to the last one."""
    answers = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
    if not answers:
        raise _no_assistant_turn(turns, origin)
    return turns[: answers[0]], turns[answers[0] : answers[-1] + 1]


def split_last_answer(turns: Messages, origin: Origin) -> tuple[Messages, Messages]:
    """Completion: all that follows the last turn of the user. Prompt: the turns up to there."""
    if all(turn.role != "assistant" for turn in turns):
        raise _no_assistant_turn(turns, origin)
    given = [index for index, turn in enumerate(turns) if turn.role not in ("assistant", "tool")]
    start = given[-1] + 1 if given else 0
    return turns[:start], turns[start:]


def is_transcript(value: Any) -> bool:
    """True for text in the form of the Anthropic HH data."""
    return isinstance(value, str) and value.startswith(_TRANSCRIPT_START)


def parse_transcript(text: str) -> Messages:
    """The turns of "\\n\\nHuman: …\\n\\nAssistant: …", without the spaces around them."""
    _, *parts = _TRANSCRIPT_TURN.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    speakers, contents = parts[::2], parts[1::2]
    return tuple(
        Message(roles[speaker], content.strip())
        for speaker, content in zip(speakers, contents, strict=True)
    )


def _parse_message(turn: Mapping[str, Any], column: str, origin: Origin) -> Message:
    if turn.get("role") is None and turn.get("from") is not None:
        role_key, content_key = "from", "value"
    else:
        role_key, content_key = "role", "content"
    role = turn.get(role_key)
    if not isinstance(role, str):
        raise RecordError(
            f'a message of "{column}" has no role',
            where=origin,
            got=dict(turn),
            fix='write {"role": "user", "content": "…"}',
        )
    if role_key == "from":
        role = _SHAREGPT_ROLES.get(role, role)
    extra = {
        key: value
        for key, value in turn.items()
        if key not in (role_key, content_key) and value is not None
    }
    content = turn.get(content_key)
    if content is None and "tool_calls" in extra:
        content = ""
    return Message(role, _parse_content(content, column, origin), extra)


def _parse_content(content: Any, column: str, origin: Origin) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content:
        kinds = [part.get("type") if isinstance(part, Mapping) else None for part in content]
        if all(
            kind == "text" and isinstance(part.get("text"), str)
            for kind, part in zip(kinds, content, strict=True)
        ):
            return "".join(part["text"] for part in content)
        other = next((kind for kind in kinds if kind not in (None, "text")), None)
        if other is not None:
            raise RecordError(
                f'a message of "{column}" has a part of type {json.dumps(other)}',
                where=origin,
                got=content,
                why="only text can be trained on",
                fix="remove the row, or leave its text parts alone",
            )
    raise RecordError(
        f'the content of a message of "{column}" is not text',
        where=origin,
        got=content,
        fix='write {"role": "user", "content": "…"}',
    )


def _as_messages(text: Text, role: str) -> Messages:
    if isinstance(text, str):
        return (Message(role, text),)
    assert isinstance(text, tuple), "token ids were set apart before"
    return text


def _take_off_prompt(
    prompt: Text, prompt_turns: Messages, dialogues: tuple[Messages, ...], origin: Origin
) -> tuple[Messages, tuple[Messages, ...]]:
    if isinstance(prompt, str):
        # The text may be one of several shared turns, behind a system turn or before others.
        shared, answers = _split_shared(dialogues, origin)
        if any(turn.content.strip() == prompt.strip() for turn in shared if turn.role == "user"):
            return shared, answers
    else:
        num = len(prompt_turns)
        if all(turns[:num] == prompt_turns and len(turns) > num for turns in dialogues):
            return prompt_turns, tuple(turns[num:] for turns in dialogues)
    raise RecordError(
        "the completions are whole dialogues that do not begin with the prompt",
        where=origin,
        got=prompt if isinstance(prompt, str) else [turn.content for turn in prompt_turns],
        fix="give completions that begin with an assistant turn, or leave the prompt column out",
    )


def _split_shared(
    dialogues: tuple[Messages, ...], origin: Origin
) -> tuple[Messages, tuple[Messages, ...]]:
    first = dialogues[0]
    shortest = min(len(dialogue) for dialogue in dialogues)
    num = 0
    while num < shortest - 1 and all(dialogue[num] == first[num] for dialogue in dialogues):
        num += 1
    while num > 0 and not (
        first[num - 1].role != "assistant" and all(d[num].role == "assistant" for d in dialogues)
    ):
        num -= 1
    if num == 0:
        raise RecordError(
            "the dialogues share no leading turns that end before an assistant turn",
            where=origin,
            got=[message.content for message in first],
            why="completions are compared only after one and the same prompt",
            fix="add a column prompt, or remove the row",
        )
    return first[:num], tuple(dialogue[num:] for dialogue in dialogues)


def _no_assistant_turn(turns: Messages, origin: Origin) -> RecordError:
    return RecordError(
        "no assistant turn",
        where=origin,
        got=[turn.role for turn in turns],
        why="there is nothing to learn from a dialogue without an answer",
        fix="remove the row, or set data.kind=prompt if these are prompts alone",
    )
