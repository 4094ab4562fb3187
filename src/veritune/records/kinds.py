"""The records: what a line of a data file says, once it is known to be sound.

Every kind offers the same three views, so that one route serves all: `prompt`, `completions`
(a tuple of K texts) and `origin`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias


@dataclass(frozen=True)
class Origin:
    """Where a record came from: a file and a 1-based line (or row), for messages."""

    file: str
    line: int
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.line}"


@dataclass(frozen=True)
class Message:
    """One turn of a dialogue.

    `extra` holds what else the template may want (`tool_calls`, `name`, `reasoning_content`, …);
    it goes to the chat template as it is.
    """

    role: str
    content: str
    extra: Mapping[str, Any] = field(default_factory=dict)


Messages: TypeAlias = tuple[Message, ...]
"""A dialogue, or the turns of a completion."""


@dataclass(frozen=True)
class TokenIds:
    """Text that the user tokenized already; used as it is, nothing is added to it."""

    ids: tuple[int, ...]


Text: TypeAlias = str | Messages | TokenIds
"""A prompt or a completion: plain text, messages, or token ids. One record uses one of them."""


@dataclass(frozen=True)
class Rendering:
    """What the chat template gets beside the messages: the record's own tools and arguments."""

    tools: tuple[Mapping[str, Any], ...] = ()
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)


_PLAIN = Rendering()


@dataclass(frozen=True)
class Paired:
    """A prompt and two completions, one preferred to the other."""

    kind: ClassVar[str] = "paired"
    prompt: Text
    chosen: Text
    rejected: Text
    origin: Origin
    rendering: Rendering = _PLAIN

    @property
    def completions(self) -> tuple[Text, ...]:
        return (self.chosen, self.rejected)


@dataclass(frozen=True)
class Unpaired:
    """A prompt and one completion with a thumbs up or down."""

    kind: ClassVar[str] = "unpaired"
    prompt: Text
    completion: Text
    desirable: bool
    origin: Origin
    rendering: Rendering = _PLAIN

    @property
    def completions(self) -> tuple[Text, ...]:
        return (self.completion,)


@dataclass(frozen=True)
class Scored:
    """A prompt and K completions with a number each; a larger score is better."""

    kind: ClassVar[str] = "scored"
    prompt: Text
    completions: tuple[Text, ...]
    scores: tuple[float, ...]
    origin: Origin
    rendering: Rendering = _PLAIN


@dataclass(frozen=True)
class Demonstration:
    """A prompt (possibly empty) and a completion to imitate: text or dialogues for SFT."""

    kind: ClassVar[str] = "demonstration"
    prompt: Text
    completion: Text
    origin: Origin
    rendering: Rendering = _PLAIN

    @property
    def completions(self) -> tuple[Text, ...]:
        return (self.completion,)


@dataclass(frozen=True)
class Prompt:
    """A prompt alone; the policy supplies the rest."""

    kind: ClassVar[str] = "prompt"
    prompt: Text
    origin: Origin
    rendering: Rendering = _PLAIN

    @property
    def completions(self) -> tuple[Text, ...]:
        return ()


Record: TypeAlias = Paired | Unpaired | Scored | Demonstration | Prompt
KINDS: dict[str, type[Record]] = {
    record.kind: record for record in (Paired, Unpaired, Scored, Demonstration, Prompt)
}
"""Every kind of record by its name."""
