"""Builders: the cells of one accepted convention to the record they make."""

from collections.abc import Callable, Sequence
from typing import Any

from veritune.records.cells import Cells
from veritune.records.kinds import (
    Demonstration,
    Message,
    Messages,
    Paired,
    Prompt,
    Record,
    Scored,
    Text,
    Unpaired,
)
from veritune.records.turns import (
    parse_text,
    same_form,
    split_demonstration,
    split_last_answer,
    split_whole_dialogues,
)


def paired_record(cells: Cells, prompt: Text, chosen: Text, rejected: Text) -> Paired:
    """A pair, all of its texts in one form."""
    prompt, (chosen, rejected) = same_form(prompt, (chosen, rejected), cells.origin)
    return Paired(prompt, chosen, rejected, cells.origin, cells.rendering())


def unpaired_record(cells: Cells, prompt: Text, completion: Text) -> Unpaired:
    """A completion with the label of the row."""
    prompt, (completion,) = same_form(prompt, (completion,), cells.origin)
    return Unpaired(prompt, completion, cells.label(), cells.origin, cells.rendering())


def scored_record(
    cells: Cells, prompt: Text, completions: Sequence[Text], scores: Sequence[float]
) -> Scored:
    """Completions with their scores."""
    prompt, completions = same_form(prompt, completions, cells.origin)
    return Scored(prompt, completions, tuple(scores), cells.origin, cells.rendering())


def demonstration_record(cells: Cells, prompt: Text, completion: Text) -> Demonstration:
    """A completion to imitate."""
    prompt, (completion,) = same_form(prompt, (completion,), cells.origin)
    return Demonstration(prompt, completion, cells.origin, cells.rendering())


def prompt_record(cells: Cells, prompt: Text) -> Prompt:
    """A prompt alone."""
    return Prompt(prompt, cells.origin, cells.rendering())


def given_prompt(cells: Cells, column: str = "prompt") -> Text:
    """The prompt in a column, behind the turn of the column "system"."""
    return cells.with_system(cells.text(column))


def dialogue(cells: Cells, column: str) -> Messages:
    """The turns in a column, behind the turn of the column "system"."""
    turns = cells.with_system(cells.messages(column))
    assert isinstance(turns, tuple)
    return turns


def instruction_turns(cells: Cells) -> Messages:
    """Alpaca: a user turn "instruction\\ninput", behind `system` and the turns of `history`."""
    words = [cells.plain_text("instruction")]
    if cells.plain_text("input").strip():
        words.append(cells.plain_text("input"))
    turns: list[Message] = []
    for exchange in cells.items("history") if "history" in cells.values else []:
        if not isinstance(exchange, list) or [type(said) for said in exchange] != [str, str]:
            raise cells.error(
                '"history" is not a list of [question, answer] pairs',
                got=cells.values["history"],
                fix='write [["question", "answer"], …]',
            )
        turns += [Message("user", exchange[0]), Message("assistant", exchange[1])]
    prompt = cells.with_system((*turns, Message("user", "\n".join(words))))
    assert isinstance(prompt, tuple)
    return prompt


def paired_without_prompt(cells: Cells) -> Paired:
    """A pair of whole dialogues; the turns they share are the prompt."""
    chosen, rejected = cells.values["chosen"], cells.values["rejected"]
    prompt, chosen, rejected = split_whole_dialogues(chosen, rejected, cells.origin)
    return paired_record(cells, cells.with_system(prompt), chosen, rejected)


def paired_beside_messages(cells: Cells) -> Paired:
    """`messages` is the prompt where it ends before the answer, else a copy of a dialogue."""
    turns = dialogue(cells, "messages")
    if turns[-1].role == "assistant":
        return paired_without_prompt(cells)
    return paired_record(cells, turns, cells.text("chosen"), cells.text("rejected"))


def unpaired_dialogue(column: str) -> Callable[[Cells], Record]:
    """A builder: the label of the row is about the answer to the last user turn."""

    def build(cells: Cells) -> Record:
        return unpaired_record(cells, *split_last_answer(dialogue(cells, column), cells.origin))

    return build


def demonstration_dialogue(column: str) -> Callable[[Cells], Record]:
    """A builder: all turns from the first answer to the last are imitated."""

    def build(cells: Cells) -> Record:
        turns = dialogue(cells, column)
        return demonstration_record(cells, *split_demonstration(turns, cells.origin))

    return build


def rated_completions(prompt: Callable[[Cells], Text]) -> Callable[[Cells], Record]:
    """Completions that carry their own rank or score."""

    def build(cells: Cells) -> Record:
        items = cells.items("completions")
        if items and all(isinstance(item, dict) and "rank" in item for item in items):
            return _ranked(cells, prompt(cells), items)
        if items and all(isinstance(item, dict) and "response" in item for item in items):
            texts = [parse_text(item["response"], "response", cells.origin) for item in items]
            return scored_record(cells, prompt(cells), texts, [_own_score(cells, i) for i in items])
        raise cells.error(
            '"completions" have no scores',
            got=items,
            fix='add the column "scores" with one number for each completion',
        )

    return build


def _ranked(cells: Cells, prompt: Text, items: list[dict[str, Any]]) -> Record:
    """NeMo: the lowest rank is the best. Two of different rank are a pair; else score = -rank."""
    ranks = [cells.number(item["rank"], "rank") for item in items]
    texts = [parse_text(item.get("completion"), "completion", cells.origin) for item in items]
    if len(items) == 2 and ranks[0] != ranks[1] and cells.kind != "scored":
        chosen, rejected = texts if ranks[0] < ranks[1] else reversed(texts)
        return paired_record(cells, prompt, chosen, rejected)
    return scored_record(cells, prompt, texts, [-rank for rank in ranks])


def _own_score(cells: Cells, item: dict[str, Any]) -> float:
    """UltraFeedback: the mean of the fine-grained ratings where there is one.

    Its `overall_score` is known to be 10 where the critique says 1, so it comes second.
    """
    for name in ("fine-grained_score", "overall_score", "score", "reward"):
        if item.get(name) is not None:
            return cells.number(item[name], name)
    raise cells.error(
        "a completion has no score", got=item, fix="add fine-grained_score or overall_score"
    )
