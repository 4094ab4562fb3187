"""The cells of one row, by our column names, and what each of them may hold."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from veritune.errors import RecordError
from veritune.records.json_lines import Row, loads_strictly
from veritune.records.kinds import Message, Messages, Origin, Rendering, Text, TokenIds
from veritune.records.turns import parse_messages, parse_text, parse_token_ids

ALIASES = {
    "prompt_input_ids": "prompt_ids",
    "chosen_input_ids": "chosen_ids",
    "rejected_input_ids": "rejected_ids",
    "completion_input_ids": "completion_ids",
    "completions_input_ids": "completions_ids",
    "responses": "completions",
    "rewards": "scores",
    "kto_tag": "label",
}
"""Other names of a column in the ecosystem, to the one used here."""

_LABELS = {"true": True, "false": False, "1": True, "0": False}


@dataclass(frozen=True)
class Cells:
    """The columns of a row that are present and not null, and where the row stands.

    `kind` is the kind that the user asked for, if any; a row that fits two follows it.
    """

    values: Mapping[str, Any]
    origin: Origin
    kind: str | None = None

    @classmethod
    def of_row(cls, row: Row, origin: Origin, kind: str | None) -> "Cells":
        """The row's cells, other names of columns replaced by ours."""
        values = {name: value for name, value in row.items() if value is not None}
        for other, ours in ALIASES.items():
            if other in values:
                values.setdefault(ours, values.pop(other))
        return cls(values, origin, kind)

    def text(self, column: str) -> str | Messages:
        """The cell as text or messages."""
        return parse_text(self.values[column], column, self.origin)

    def messages(self, column: str) -> Messages:
        """The cell as a list of messages."""
        return parse_messages(self.values[column], column, self.origin)

    def token_ids(self, column: str) -> TokenIds:
        """The cell as a list of token ids."""
        return parse_token_ids(self.values[column], column, self.origin)

    def plain_text(self, column: str) -> str:
        """The cell as text that cannot be messages; "" where there is none."""
        value = self.values.get(column, "")
        if isinstance(value, str):
            return value
        raise self.error(f'"{column}" is not text', got=value, fix=f"write {column} as a string")

    def items(self, column: str) -> list[Any]:
        """The cell as a list."""
        value = self.values[column]
        if isinstance(value, list):
            return value
        raise self.error(f'"{column}" is not a list', got=value, fix=f"write {column} as a list")

    def texts(self, column: str) -> tuple[str | Messages, ...]:
        """The cell as a list of texts."""
        items = self.items(column)
        return tuple(
            parse_text(item, f"{column}[{index}]", self.origin) for index, item in enumerate(items)
        )

    def with_system(self, prompt: str | Messages) -> Text:
        """The prompt behind the turn of the column "system"; unchanged where there is none.

        With that column the row is a dialogue, so a text prompt becomes a user turn.
        """
        if "system" not in self.values:
            return prompt
        system = self.plain_text("system")
        turns = (Message("user", prompt),) if isinstance(prompt, str) else prompt
        return (Message("system", system), *turns) if system.strip() else turns

    def label(self) -> bool:
        """The label as true or false.

        Raises:
            RecordError: It is neither a truth value nor 0, 1, "true" or "false".
        """
        value = self.values["label"]
        if isinstance(value, bool):
            return value
        if isinstance(value, int | float) and value in (0, 1):
            return bool(value)
        if isinstance(value, str) and value.strip().lower() in _LABELS:
            return _LABELS[value.strip().lower()]
        raise self.error(
            '"label" says neither desirable nor undesirable',
            got=value,
            fix="write true or false (1 and 0 are taken as well)",
        )

    def scores(self) -> tuple[float, ...]:
        """The scores as numbers; whether they are finite is checked with the record."""
        return tuple(self.number(score, "scores") for score in self.items("scores"))

    def number(self, value: Any, column: str) -> float:
        """The value as a number; a whole number too large for a float is infinite."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                return math.inf if value > 0 else -math.inf
        raise self.error(
            f'a value of "{column}" is not a number',
            got=value,
            fix="write a number, without quotes",
        )

    def rendering(self) -> Rendering:
        """What the columns "tools" and "chat_template_kwargs" hold; either may be JSON in text."""
        tools = self._json_value("tools", [])
        arguments = self._json_value("chat_template_kwargs", {})
        if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
            raise self.error(
                '"tools" is not a list of objects', got=tools, fix="write a list of JSON schemas"
            )
        if not isinstance(arguments, Mapping):
            raise self.error(
                '"chat_template_kwargs" is not an object', got=arguments, fix="write {…}"
            )
        return Rendering(tuple(tools), arguments)

    def error(self, what: str, *, got: Any = None, fix: str, why: str | None = None) -> RecordError:
        """An error that names where the row stands."""
        return RecordError(what, where=self.origin, got=got, why=why, fix=fix)

    def _json_value(self, column: str, default: Any) -> Any:
        value = self.values.get(column, default)
        if not isinstance(value, str):
            return value
        if not value.strip():
            return default
        try:
            return loads_strictly(value)
        except (ValueError, RecursionError) as error:
            raise self.error(
                f'"{column}" is text that is not JSON', got=value, fix=f"mend it ({error})"
            ) from error
