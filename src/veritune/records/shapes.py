"""Recognition: which accepted set of columns a row has, and the record it makes.

The ecosystem's conventions are taken as they are. `SHAPES` lists them, the most specific first;
the first whose columns are all there makes the record. A null counts as absent, and columns that
no shape names are passed over.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from veritune.errors import RecordError, nearest_name
from veritune.records.builders import (
    demonstration_dialogue,
    demonstration_record,
    dialogue,
    given_prompt,
    instruction_turns,
    paired_beside_messages,
    paired_record,
    paired_without_prompt,
    prompt_record,
    rated_completions,
    scored_record,
    unpaired_dialogue,
    unpaired_record,
)
from veritune.records.cells import ALIASES, Cells
from veritune.records.json_lines import Row
from veritune.records.kinds import Demonstration, Origin, Record
from veritune.records.turns import parse_token_ids


@dataclass(frozen=True)
class Shape:
    """A set of columns that makes a record."""

    columns: tuple[str, ...]
    kinds: tuple[str, ...]
    build: Callable[[Cells], Record]

    unless: frozenset[str] = frozenset()
    """Columns beside which the set is not taken unasked: they belong to a set that is not whole."""


def record_from_row(origin: Origin, row: Row, *, kind: str | None = None) -> Record:
    """The record that a row makes, recognized by its columns; its content is not yet checked.

    Args:
        origin: Where the row stands.
        row: Column name to value.
        kind: The kind to make where the columns fit several; None takes the first that fits.

    Raises:
        RecordError: The columns make no record (of that kind), or a cell has the wrong type.
    """
    cells = Cells.of_row(row, origin, kind)
    shape = _first_fitting(cells, kind)
    if shape is None:
        raise _unrecognized(cells, kind)
    record = shape.build(cells)
    if kind is not None and record.kind != kind:
        raise cells.error(
            f"the row makes a {record.kind} record, and {kind} is asked for",
            got=list(cells.values),
            fix=f"convert the file, or leave data.kind={kind} out",
        )
    return record


def _first_fitting(cells: Cells, kind: str | None) -> Shape | None:
    for shape in SHAPES:
        if not all(column in cells.values for column in shape.columns):
            continue
        if kind is None and not shape.unless.isdisjoint(cells.values):
            continue
        if kind is None or kind in shape.kinds:
            return shape
    return None


def _unrecognized(cells: Cells, kind: str | None) -> RecordError:
    found = list(cells.values)
    shapes = [shape for shape in SHAPES if kind is None or kind in shape.kinds]
    near = max(shapes, key=lambda shape: _likeness(shape, found))
    missing = [column for column in near.columns if column not in cells.values]
    advice = []
    if missing and _likeness(near, found) >= 0.5:
        names = " and ".join(f'"{column}"' for column in missing)
        advice.append(f"add {names}: the nearest accepted set is {', '.join(near.columns)}")
        unused = [column for column in found if column not in KNOWN_COLUMNS]
        for column in missing:
            if like := nearest_name(column, unused):
                advice.append(f"or rename a column: data.columns.{like}={column}")
    else:
        sets = "; ".join(dict.fromkeys(", ".join(shape.columns) for shape in shapes))
        advice.append(f"name the columns by data.columns as one of these sets: {sets}")
    alone = next((s for s in SHAPES if all(column in found for column in s.columns)), None)
    if alone is not None and kind is None:
        use = " and ".join(f'"{column}"' for column in alone.columns)
        advice.append(f"or set data.kind={alone.kinds[0]} to use {use} and nothing else")
    made = "a record" if kind is None else f"a record of the kind {kind}"
    return cells.error(f"the columns do not make {made}", got=found, fix="; ".join(advice))


def _likeness(shape: Shape, found: Sequence[str]) -> float:
    """Share of the shape's columns that are there; a like name counts most of one, all count 0."""
    unused = [column for column in found if column not in KNOWN_COLUMNS]
    points = [
        1.0 if column in found else 0.75 if nearest_name(column, unused) else 0.0
        for column in shape.columns
    ]
    # A set that is there as a whole was passed over for a reason, so it is not what is missing.
    return 0.0 if all(point == 1.0 for point in points) else sum(points) / len(points)


_PREFERENCES = frozenset({"chosen", "rejected", "label", "scores", "completions"})
_ANSWERS = _PREFERENCES | {"completion", "output", "text"}
_TOKEN_ANSWERS = _PREFERENCES | {"chosen_ids", "rejected_ids", "completion_ids", "completions_ids"}

SHAPES: tuple[Shape, ...] = (
    Shape(
        ("prompt_ids", "chosen_ids", "rejected_ids"),
        ("paired",),
        lambda c: paired_record(
            c, c.token_ids("prompt_ids"), c.token_ids("chosen_ids"), c.token_ids("rejected_ids")
        ),
    ),
    Shape(
        ("prompt_ids", "completions_ids", "scores"),
        ("scored",),
        lambda c: scored_record(
            c,
            c.token_ids("prompt_ids"),
            [
                parse_token_ids(ids, "completions_ids", c.origin)
                for ids in c.items("completions_ids")
            ],
            c.scores(),
        ),
    ),
    Shape(
        ("prompt_ids", "completion_ids", "label"),
        ("unpaired",),
        lambda c: unpaired_record(c, c.token_ids("prompt_ids"), c.token_ids("completion_ids")),
    ),
    Shape(
        ("prompt_ids", "completion_ids"),
        ("demonstration",),
        lambda c: demonstration_record(c, c.token_ids("prompt_ids"), c.token_ids("completion_ids")),
        unless=_PREFERENCES,
    ),
    Shape(
        ("conversations", "chosen", "rejected"),
        ("paired",),
        lambda c: paired_record(
            c, dialogue(c, "conversations"), c.text("chosen"), c.text("rejected")
        ),
    ),
    Shape(("conversations", "label"), ("unpaired",), unpaired_dialogue("conversations")),
    Shape(
        ("conversations",),
        ("demonstration",),
        demonstration_dialogue("conversations"),
        unless=_PREFERENCES,
    ),
    Shape(
        ("instruction", "chosen", "rejected"),
        ("paired",),
        lambda c: paired_record(c, instruction_turns(c), c.text("chosen"), c.text("rejected")),
    ),
    Shape(
        ("instruction", "output", "label"),
        ("unpaired",),
        lambda c: unpaired_record(c, instruction_turns(c), c.text("output")),
    ),
    Shape(
        ("instruction", "completions", "scores"),
        ("scored",),
        lambda c: scored_record(c, instruction_turns(c), c.texts("completions"), c.scores()),
    ),
    Shape(
        ("instruction", "completions"), ("scored", "paired"), rated_completions(instruction_turns)
    ),
    Shape(
        ("instruction", "output"),
        ("demonstration",),
        lambda c: demonstration_record(c, instruction_turns(c), c.text("output")),
        unless=_PREFERENCES,
    ),
    Shape(
        ("context", "completions"),
        ("paired", "scored"),
        rated_completions(lambda c: given_prompt(c, "context")),
    ),
    Shape(
        ("prompt", "chosen", "rejected"),
        ("paired",),
        lambda c: paired_record(c, given_prompt(c), c.text("chosen"), c.text("rejected")),
    ),
    Shape(("messages", "chosen", "rejected"), ("paired",), paired_beside_messages),
    Shape(("chosen", "rejected"), ("paired",), paired_without_prompt),
    Shape(
        ("prompt", "completion", "label"),
        ("unpaired",),
        lambda c: unpaired_record(c, given_prompt(c), c.text("completion")),
    ),
    Shape(("messages", "label"), ("unpaired",), unpaired_dialogue("messages")),
    Shape(
        ("prompt", "completions", "scores"),
        ("scored",),
        lambda c: scored_record(c, given_prompt(c), c.texts("completions"), c.scores()),
    ),
    Shape(("prompt", "completions"), ("scored", "paired"), rated_completions(given_prompt)),
    Shape(
        ("messages",), ("demonstration",), demonstration_dialogue("messages"), unless=_PREFERENCES
    ),
    Shape(
        ("prompt", "completion"),
        ("demonstration",),
        lambda c: demonstration_record(c, given_prompt(c), c.text("completion")),
        unless=_PREFERENCES,
    ),
    Shape(
        ("text",),
        ("demonstration",),
        lambda c: Demonstration("", c.plain_text("text"), c.origin, c.rendering()),
        unless=_ANSWERS - {"text"} | {"prompt"},
    ),
    Shape(
        ("prompt_ids",),
        ("prompt",),
        lambda c: prompt_record(c, c.token_ids("prompt_ids")),
        unless=_TOKEN_ANSWERS,
    ),
    Shape(("prompt",), ("prompt",), lambda c: prompt_record(c, given_prompt(c)), unless=_ANSWERS),
    Shape(
        ("instruction",),
        ("prompt",),
        lambda c: prompt_record(c, instruction_turns(c)),
        unless=_ANSWERS,
    ),
    # Dialogues are demonstrations unless prompts are asked for.
    Shape(("messages",), ("prompt",), lambda c: prompt_record(c, dialogue(c, "messages"))),
    Shape(
        ("conversations",), ("prompt",), lambda c: prompt_record(c, dialogue(c, "conversations"))
    ),
)
"""Every accepted set of columns, the most specific first."""

KNOWN_COLUMNS = frozenset(column for shape in SHAPES for column in shape.columns) | {
    *ALIASES,
    *("input", "system", "history", "tools", "chat_template_kwargs"),
}
"""Every column that some shape reads, other names included."""
