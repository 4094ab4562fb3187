"""Per-record checks: what a record must satisfy before it may become tokens.

Each check is one function and raises at the first thing it finds; `validate_record` runs them in
order. They hold for records made in a program as for records read from a file.
"""

import math

from veritune.errors import RecordError
from veritune.records.kinds import (
    Demonstration,
    Message,
    Paired,
    Record,
    Scored,
    Text,
    TokenIds,
    Unpaired,
)

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles of a message. A developer turn is a system turn under another name."""

_OPENING_ROLES = ("system", "developer")
_ROLE_FIXES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}


def validate_record(record: Record) -> None:
    """Run every check that a single record must pass, except `check_completions_differ`.

    Raises:
        RecordError: The first check that fails.
    """
    check_completions_exist(record)
    check_texts(record)
    check_token_ids(record)
    check_roles(record)
    check_system_turns(record)
    check_prompt_end(record)
    check_completion_turns(record)
    check_completions_are_not_empty(record)
    if isinstance(record, Unpaired):
        check_label(record)
    if isinstance(record, Scored):
        check_scores(record)


def check_completions_differ(record: Paired) -> None:
    """Refuse a pair whose two completions are the same text.

    Raises:
        RecordError: "chosen" equals "rejected".
    """
    if record.chosen != record.rejected:
        return
    raise RecordError(
        where=record.origin,
        what='"chosen" and "rejected" are the same text',
        got=_shown(record.chosen),
        why="the pair expresses no preference: its margin is zero for every policy",
        fix="remove the row, or set data.identical_pairs=drop",
    )


def check_completions_exist(record: Record) -> None:
    """Refuse scored completions of which there are none."""
    if isinstance(record, Scored) and not record.completions:
        raise RecordError(
            "there are no completions", where=record.origin, fix="remove the row, or add them"
        )


def check_texts(record: Record) -> None:
    """Refuse text that no encoding can hold: half of a surrogate pair, left by cutting UTF-16."""
    for text in _plain_texts(record):
        try:
            text.isascii() or text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RecordError(
                "the text holds half of a surrogate pair",
                where=record.origin,
                got=text[max(0, error.start - 20) : error.start + 20],
                why="it is no character, and a tokenizer would fail on it",
                fix="mend what cut the text between the two halves",
            ) from error


def check_token_ids(record: Record) -> None:
    """Refuse token ids that are negative, and empty lists of them."""
    for name, text in _named_texts(record):
        if not isinstance(text, TokenIds):
            continue
        if not text.ids:
            raise RecordError(
                f"the token ids of the {name} are empty",
                where=record.origin,
                why="the first token of a completion is predicted by the last token of its prompt",
                fix="remove the row, or begin the prompt with the beginning-of-sequence token",
            )
        if min(text.ids) < 0:
            raise RecordError(
                f"a token id of the {name} is negative",
                where=record.origin,
                got=min(text.ids),
                why="-100 and the like are masks and no tokens",
                fix="give the ids alone; the completion is what bears the loss",
            )


def check_roles(record: Record) -> None:
    """Refuse a role that no chat template knows."""
    for name, text in _named_texts(record):
        for message in text if isinstance(text, tuple) else ():
            if message.role in ROLES:
                continue
            meant = _ROLE_FIXES.get(message.role)
            raise RecordError(
                f"unknown role in the {name}",
                where=record.origin,
                got=message.role,
                fix=f'write "{meant}"' if meant else f"use one of {', '.join(ROLES)}",
            )


def check_system_turns(record: Record) -> None:
    """Refuse a second system turn, and one that is not the first turn."""
    prompt = record.prompt if isinstance(record.prompt, tuple) else ()
    completions = [turns for turns in record.completions if isinstance(turns, tuple)]
    later = [*prompt[1:], *(turn for turns in completions for turn in turns)]
    if not any(turn.role in _OPENING_ROLES for turn in later):
        return
    has_first = bool(prompt) and prompt[0].role in _OPENING_ROLES
    raise RecordError(
        "there are two system turns" if has_first else "the system turn is not the first turn",
        where=record.origin,
        got=[turn.role for turn in (*prompt, *(completions[0] if completions else ()))],
        why="chat templates drop or refuse such a turn, each in its own way",
        fix="leave one system turn, and put it first",
    )


def check_prompt_end(record: Record) -> None:
    """Refuse a dialogue prompt that is empty or ends with an assistant turn."""
    prompt = record.prompt
    if not isinstance(prompt, tuple):
        return
    if not prompt:
        raise RecordError(
            "nothing is said before the completion",
            where=record.origin,
            why="a chat template starts an answer only after a turn of someone else",
            fix="add the user turn that is answered, or remove the row",
        )
    if prompt[-1].role == "assistant":
        raise RecordError(
            "the prompt ends with an assistant turn",
            where=record.origin,
            got=[turn.role for turn in prompt],
            why="the policy answers a user, a tool or a system turn, not itself",
            fix="move that turn to the completion, or end the prompt with a user turn",
        )


def check_completion_turns(record: Record) -> None:
    """Refuse completions in messages that do not begin and end with an assistant turn."""
    for turns in record.completions:
        if not isinstance(turns, tuple):
            continue
        roles = [turn.role for turn in turns]
        if "assistant" not in roles:
            what = "a completion has no assistant turn"
        elif roles[0] != "assistant":
            what = "a completion does not begin with an assistant turn"
        elif roles[-1] != "assistant":
            what = "a completion does not end with an assistant turn"
        else:
            continue
        raise RecordError(
            what,
            where=record.origin,
            got=roles,
            why="only what the policy says can be learned",
            fix="put all turns before the answer into the prompt, and end with the answer",
        )


def check_completions_are_not_empty(record: Record) -> None:
    """Refuse a completion, or an assistant turn in one, that is nothing but white space."""
    for index, text in enumerate(record.completions):
        if is_empty(text):
            raise RecordError(
                f"{_completion_name(record, index)} is empty",
                where=record.origin,
                got=_shown(text),
                why="it would teach the policy to end at once",
                fix="remove the row, or add the text",
            )


def is_empty(text: Text) -> bool:
    """True where a completion, or any assistant turn in it, says nothing.

    A turn without text still says something if it carries more, such as tool calls.
    """
    if isinstance(text, TokenIds):
        return not text.ids
    if isinstance(text, str):
        return not text.strip()
    answers = [turn for turn in text if turn.role == "assistant"]
    return any(not turn.content.strip() and not turn.extra for turn in answers) or not text


def check_label(record: Unpaired) -> None:
    """Refuse a label that is not True or False."""
    if not isinstance(record.desirable, bool):
        raise RecordError(
            "the label is not a truth value",
            where=record.origin,
            got=record.desirable,
            fix="give True for desirable, False for undesirable",
        )


def check_scores(record: Scored) -> None:
    """Refuse scores that are not finite, or not as many as the completions."""
    if len(record.scores) != len(record.completions):
        raise RecordError(
            f"there are {len(record.scores)} scores for {len(record.completions)} completions",
            where=record.origin,
            got=record.scores,
            fix="give each completion one score",
        )
    for index, score in enumerate(record.scores):
        if not math.isfinite(score):
            raise RecordError(
                f"the score of completion {index + 1} is not a finite number",
                where=record.origin,
                got=score,
                why="every loss and every mean it enters would be lost",
                fix="remove that completion, or score it again",
            )


def _named_texts(record: Record) -> list[tuple[str, Text]]:
    completions = enumerate(record.completions)
    named = [(_completion_name(record, index), text) for index, text in completions]
    return [("prompt", record.prompt), *named]


def _completion_name(record: Record, index: int) -> str:
    if isinstance(record, Paired):
        return ("chosen", "rejected")[index]
    if isinstance(record, Unpaired | Demonstration):
        return "completion"
    return f"completion {index + 1}"


def _plain_texts(record: Record) -> list[str]:
    texts: list[str] = []
    for text in (record.prompt, *record.completions):
        if isinstance(text, str):
            texts.append(text)
        elif isinstance(text, tuple):
            texts += [part for turn in text for part in (turn.role, turn.content)]
    return texts


def _shown(text: Text) -> object:
    """What a message shows of a text: of a single turn its content."""
    if isinstance(text, tuple) and len(text) == 1 and isinstance(text[0], Message):
        return text[0].content
    return text.ids if isinstance(text, TokenIds) else text
