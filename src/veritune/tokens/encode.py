"""Text to tokenized records: one prompt, K completions, end-of-sequence included.

The boundary between prompt and completion is exact by construction: the two are encoded apart, so
no token lies across it and the prompt's tokens are the same for every completion. A check on the
first records decodes the pieces and compares with the text, for the tokenizers that can do that.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from veritune.config import Config
from veritune.errors import TokenizationError
from veritune.ranges import LengthInTokens
from veritune.records.kinds import Message, Origin, Record, Rendering, Text, TokenIds
from veritune.tokens.template import Turn, render, rendered_turns

# Characters that no tokenizer merges with what follows them in ordinary text; tried in order.
_ANCHORS = ("\n", "|", "a", "\u2581", "0")
_PROBES = ("a", "Hello", " b", "7", "é", ".x", "\n")
# What the template is asked to render, to see how it ends a turn; some want a system message.
_TEMPLATE_PROBES = (
    (Message("user", "question"),),
    (Message("system", "rule"), Message("user", "question")),
)
_ANSWER_PROBE = "zqxj"
_CHUNK = 512


class TokensConfig(Config):
    """How text becomes tokens, and which of them bear loss."""

    max_length: LengthInTokens | None = None
    """Most tokens of a prompt with its longest completion; null is the model's own limit."""

    long_prompts: Literal["cut", "drop", "stop"] = "cut"
    """What to do when the prompt makes a record too long: cut its beginning (its end is kept),
    drop the record, or stop. Every case is counted and reported."""

    long_completions: Literal["cut", "drop", "stop"] = "drop"
    """What to do when a completion alone is too long: cut its end (it then has no end-of-sequence
    token), drop the record, or stop. Every case is counted and reported."""

    loss_on: Literal["all", "last"] = "all"
    """Which turns of the assistant bear loss in a completion of several turns: all of them, or
    the last. Other roles never do."""

    chat_template: str | None = None
    """A Jinja file to use in place of the model's chat template."""

    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments for the chat template, for every record; a record's own win."""


Ids = NDArray[np.int32]


@dataclass(frozen=True)
class TokenizedCompletion:
    """One completion as ids, and which of them bear loss."""

    ids: Ids
    """Shape (C,), end-of-sequence included unless it was cut."""

    bears_loss: NDArray[np.bool_]
    """Shape (C,); True where the token's log-probability counts."""


@dataclass(frozen=True)
class TokenizedRecord:
    """One prompt and its K completions as ids."""

    prompt: Ids
    """Shape (P,), P >= 1."""

    completions: tuple[TokenizedCompletion, ...]
    origin: Origin

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest completion."""
        return len(self.prompt) + max((len(c.ids) for c in self.completions), default=0)

    def key(self) -> bytes:
        """A hash of everything that log-probabilities of the group depend on (16 bytes)."""
        digest = hashlib.blake2b(self.prompt.tobytes(), digest_size=16)
        for completion in self.completions:
            digest.update(len(completion.ids).to_bytes(8, "big"))
            digest.update(completion.ids.tobytes())
            digest.update(completion.bears_loss.tobytes())
        return digest.digest()


class TextEncoder:
    """Encodes text with one tokenizer, alone or as the continuation of other text.

    Args:
        tokenizer: A Hugging Face tokenizer.
        end_tokens: Ids that end a sequence for the model, beside the tokenizer's own.
        config: Which turns bear loss, and what the template gets.
    """

    def __init__(
        self, tokenizer: Any, config: TokensConfig | None = None, end_tokens: Iterable[int] = ()
    ) -> None:
        self.config = TokensConfig() if config is None else config
        self.tokenizer = _with_template(tokenizer, self.config.chat_template)
        if tokenizer.eos_token_id is None:
            raise TokenizationError(
                "the tokenizer has no end-of-sequence token",
                where=getattr(tokenizer, "name_or_path", None),
                why="the model could not learn where a completion ends",
                fix="set eos_token in tokenizer_config.json",
            )
        self.eos: int = tokenizer.eos_token_id
        self.end_of_turn = self._end_of_turn_token()
        self.end_tokens = frozenset(
            {self.eos, *end_tokens, *([] if self.end_of_turn is None else [self.end_of_turn])}
        )
        self._special_strings = self._special_token_strings()
        self._special_starts = {token[0] for token in self._special_strings}
        self._joins_exactly = all(self._is_exact_alone(probe) for probe in _PROBES)

    def whole(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts that already hold their special tokens; nothing is added."""
        if not texts:
            return []
        return list(self.tokenizer(list(texts), add_special_tokens=False)["input_ids"])

    def plain_prompt(self, text: str) -> list[int]:
        """Ids of a plain-text prompt: a beginning-of-sequence token if the tokenizer uses one,
        exactly once, and no end-of-sequence token.

        An empty prompt is the beginning-of-sequence token, or where there is none the
        end-of-sequence token, because the first token of a completion needs a predecessor.
        """
        ids = list(self.tokenizer(text)["input_ids"])
        bare = self.whole([text])[0]
        # What the tokenizer adds behind the text (end of sequence) is no part of a prompt.
        for start in range(len(ids) - len(bare) + 1):
            if ids[start : start + len(bare)] == bare:
                del ids[start + len(bare) :]
                break
        bos = self.tokenizer.bos_token_id
        while bos is not None and ids[:2] == [bos, bos]:
            ids.pop(0)
        return ids or [self.eos if bos is None else bos]

    def continuations(self, texts: Sequence[str], contexts: Sequence[str]) -> list[list[int]]:
        """Ids of texts as they stand behind their contexts, without what a tokenizer puts at the
        start of a text (a dummy space, a beginning-of-sequence token).

        Args:
            texts: What is to be encoded.
            contexts: For each of them, the text before it, special tokens included. It never
                becomes part of the result, and no token lies across the boundary.

        Raises:
            TokenizationError: The tokenizer cannot encode a text apart from what precedes it.
        """
        if self._joins_exactly:
            return self.whole(texts)
        # Some tokenizers put a dummy space behind a special token and none behind ordinary text, so
        # the context decides; where they merge across the boundary it cannot, and an anchor does.
        heads = self.whole(contexts)
        joined = self.whole([context + text for context, text in zip(contexts, texts, strict=True)])
        return [
            both[len(head) :]
            if both[: len(head)] == head and len(both) > len(head)
            else self._behind_anchor(text)
            for text, head, both in zip(texts, heads, joined, strict=True)
        ]

    def _is_exact_alone(self, text: str) -> bool:
        """Whether encoding alone gives what encoding behind an anchor gives, for one anchor."""
        for anchor in _ANCHORS:
            head, alone, both = self.whole([anchor, text, anchor + text])
            if both[: len(head)] == head:
                return both[len(head) :] == alone
        return True

    def _behind_anchor(self, text: str) -> list[int]:
        if not text:
            return []
        for anchor in _ANCHORS:
            head, both = self.whole([anchor, anchor + text])
            if both[: len(head)] == head and len(both) > len(head):
                return both[len(head) :]
        raise TokenizationError(
            "the tokenizer merges every text with what stands before it",
            where=getattr(self.tokenizer, "name_or_path", None),
            got=text,
            why="the boundary between prompt and completion would not be exact",
            fix="use the fast tokenizer of the model, or give token ids",
        )

    def _end_of_turn_token(self) -> int | None:
        """The special token that the chat template puts behind a turn of the assistant."""
        if not getattr(self.tokenizer, "chat_template", None):
            return None
        for prompt in _TEMPLATE_PROBES:
            try:
                _, turns = rendered_turns(
                    self.tokenizer,
                    prompt,
                    (Message("assistant", _ANSWER_PROBE),),
                    Rendering(),
                    chat_template_kwargs=self.config.chat_template_kwargs,
                )
            except TokenizationError:
                # The template wants something else than this exchange.
                continue
            _, answer, behind = turns[-1].text.rpartition(_ANSWER_PROBE)
            ids = self.whole([behind])[0] if answer else []
            special = set(self.tokenizer.all_special_ids) | set(self._added_tokens())
            return next((i for i in ids if i in special), None)
        return None

    def _added_tokens(self) -> Mapping[int, Any]:
        added: Mapping[int, Any] = getattr(self.tokenizer, "added_tokens_decoder", {})
        return added

    def _special_token_strings(self) -> list[str]:
        """Text that becomes a control token: the tokenizer's, whether named or not, and ends."""
        added = self._added_tokens()
        ends = [str(added[i]) for i in sorted(self.end_tokens) if i in added]
        unnamed = [str(token) for token in added.values() if getattr(token, "special", False)]
        every = [*map(str, self.tokenizer.all_special_tokens), *unnamed, *ends]
        return [token for token in dict.fromkeys(every) if token]

    def special_token_in(self, content: str) -> str | None:
        """A special token that stands in the text of a message, if there is one."""
        if self._special_starts.isdisjoint(content):
            return None
        return next((token for token in self._special_strings if token in content), None)


@dataclass(frozen=True)
class _Pieces:
    """A record on its way: the prompt's ids or text, and the completions as text turns or ids."""

    prompt: str | list[int]
    text: str
    """Text of the prompt, which its completions are encoded behind; empty for token ids."""

    completions: tuple[tuple[Turn, ...] | tuple[int, ...], ...]
    is_dialogue: bool


def encode_records(encoder: TextEncoder, records: Sequence[Record]) -> list[TokenizedRecord]:
    """Tokenized records, in the same order; prompt-only records have no completions.

    Raises:
        TokenizationError: The first record that cannot be encoded; `encode_record` is the form
            for one record.
    """
    result: list[TokenizedRecord] = []
    for start in range(0, len(records), _CHUNK):
        chunk = records[start : start + _CHUNK]
        pieces = [_pieces(encoder, record) for record in chunk]
        prompts = iter(encoder.whole([p.prompt for p in pieces if isinstance(p.prompt, str)]))
        texts, contexts = [], []
        for piece in pieces:
            for completion in piece.completions:
                context = piece.text
                for turn in completion:
                    if isinstance(turn, Turn):
                        texts.append(turn.text)
                        contexts.append(context)
                        context += turn.text
        encoded = iter(encoder.continuations(texts, contexts))
        for record, piece in zip(chunk, pieces, strict=True):
            prompt = next(prompts) if isinstance(piece.prompt, str) else piece.prompt
            completions = []
            for completion in piece.completions:
                turns = [
                    (next(encoded), turn.is_assistant) if isinstance(turn, Turn) else ([turn], True)
                    for turn in completion
                ]
                if not _is_text(completion):
                    ids = [token for turn_ids, _ in turns for token in turn_ids]
                    completions.append(_all_bear_loss(ids))
                    continue
                if not piece.is_dialogue:
                    _check_nothing_behind_the_end(encoder, turns[0][0], record.origin)
                completions.append(_assemble(encoder, turns))
            result.append(
                TokenizedRecord(np.asarray(prompt, np.int32), tuple(completions), record.origin)
            )
    return result


def encode_record(encoder: TextEncoder, record: Record) -> TokenizedRecord:
    """One tokenized record."""
    return encode_records(encoder, [record])[0]


def check_decodes_back(
    encoder: TextEncoder, records: Sequence[Record], tokenized: Sequence[TokenizedRecord]
) -> None:
    """Refuse an encoding whose pieces, joined and decoded, are not the text.

    Compares with the text only where the tokenizer reproduces the text when it encodes it whole;
    some (lower-casing, unknown-token) tokenizers never do.

    Raises:
        TokenizationError: Some text was lost, added or changed at a boundary.
    """
    for record, ids in zip(records, tokenized, strict=True):
        if isinstance(record.prompt, TokenIds):
            continue
        piece = _pieces(encoder, record)
        # Without the beginning-of-sequence token that a plain prompt may have got.
        prompt = encoder.whole([piece.text])[0]
        for turns, completion in zip(piece.completions, ids.completions, strict=True):
            text = piece.text + "".join(t.text for t in turns if isinstance(t, Turn))
            whole = _decode(encoder, encoder.whole([text])[0])
            if whole != text:
                continue
            joined = _decode(encoder, [*prompt, *completion.ids.tolist()])
            # The last turn may be cut behind its end token, or have one appended.
            if not (text.startswith(joined) or joined.startswith(text)):
                raise TokenizationError(
                    "prompt and completion do not decode back to the text they came from",
                    where=record.origin,
                    got=joined,
                    why="the model would be trained on another text than the file holds",
                    fix="use the fast tokenizer of the model; if it is, this is a defect to report",
                )


def _pieces(encoder: TextEncoder, record: Record) -> _Pieces:
    if isinstance(record.prompt, TokenIds):
        completion_ids = tuple(_token_ids(c, record.origin) for c in record.completions)
        for ids in (record.prompt.ids, *completion_ids):
            _check_vocabulary(encoder, ids, record.origin)
        return _Pieces(
            list(record.prompt.ids) or encoder.plain_prompt(""), "", completion_ids, False
        )
    if isinstance(record.prompt, str):
        return _Pieces(
            encoder.plain_prompt(record.prompt),
            record.prompt,
            tuple((Turn(_plain(c, record.origin), True),) for c in record.completions),
            False,
        )
    for message in (*record.prompt, *(m for c in record.completions for m in _messages(c, record))):
        token = encoder.special_token_in(message.content)
        if token is not None:
            raise TokenizationError(
                f"the text of a message holds the special token {token!r}",
                where=record.origin,
                got=message.content,
                why="the model would read it as the end or the start of a turn",
                fix="remove it from the text, or give prompt and completion as plain strings that "
                "hold the whole template",
            )
    kwargs: Mapping[str, Any] = encoder.config.chat_template_kwargs
    if not record.completions:
        text = render(
            encoder.tokenizer,
            record.prompt,
            record.rendering,
            chat_template_kwargs=kwargs,
            add_generation_prompt=True,
            where=record.origin,
        )
        return _Pieces(text, text, (), True)
    prompt_text, completions = None, []
    for completion in record.completions:
        text, turns = rendered_turns(
            encoder.tokenizer,
            record.prompt,
            _messages(completion, record),
            record.rendering,
            chat_template_kwargs=kwargs,
            where=record.origin,
        )
        if prompt_text is not None and text != prompt_text:
            raise TokenizationError(
                "the chat template renders the prompt differently for different completions",
                where=record.origin,
                got=text,
                why="the completions of a group are compared under one prompt",
                fix="set tokens.chat_template to a template that only appends",
            )
        prompt_text = text
        completions.append(tuple(turns))
    assert prompt_text is not None
    return _Pieces(prompt_text, prompt_text, tuple(completions), True)


def _assemble(encoder: TextEncoder, turns: Sequence[tuple[list[int], bool]]) -> TokenizedCompletion:
    """One completion from its turns: ids, and loss where the assistant speaks.

    Loss runs up to and including the first end token of a turn. Behind the last turn's end token
    nothing is kept; a last turn without one gets the tokenizer's end-of-sequence token.
    """
    ids: list[int] = []
    bears_loss: list[bool] = []
    last = max(i for i, (_, is_assistant) in enumerate(turns) if is_assistant)
    for index, (turn_ids, is_assistant) in enumerate(turns[: last + 1]):
        end = _end(encoder, turn_ids)
        counts = is_assistant and (encoder.config.loss_on == "all" or index == last)
        if index == last:
            turn_ids = [*turn_ids, encoder.eos] if end is None else turn_ids[:end]
            end = len(turn_ids)
        elif end is None:
            end = len(turn_ids)
        ids += turn_ids
        bears_loss += [counts and position < end for position in range(len(turn_ids))]
    return TokenizedCompletion(np.asarray(ids, np.int32), np.asarray(bears_loss, np.bool_))


def _all_bear_loss(ids: Sequence[int]) -> TokenizedCompletion:
    return TokenizedCompletion(np.asarray(ids, np.int32), np.ones(len(ids), np.bool_))


def _end(encoder: TextEncoder, ids: Sequence[int]) -> int | None:
    """The place behind the first end token, if there is one."""
    return next((i + 1 for i, token in enumerate(ids) if token in encoder.end_tokens), None)


def _check_nothing_behind_the_end(encoder: TextEncoder, ids: Sequence[int], where: Origin) -> None:
    """Refuse plain text that goes on behind its end-of-sequence token; space may follow."""
    rest = [] if (end := _end(encoder, ids)) is None else ids[end:]
    behind = _decode(encoder, [token for token in rest if token not in encoder.end_tokens])
    if behind.strip():
        raise TokenizationError(
            "the text of a completion goes on behind its end-of-sequence token",
            where=where,
            got=behind,
            why="generation stops at that token, and the rest would not be trained",
            fix="remove what follows, or give a dialogue of several turns as messages",
        )


def _check_vocabulary(encoder: TextEncoder, ids: Sequence[int], where: Origin) -> None:
    largest = max(ids, default=0)
    if largest >= len(encoder.tokenizer):
        raise TokenizationError(
            "a token id lies beyond the tokenizer's vocabulary",
            where=where,
            got=f"{largest}, and there are {len(encoder.tokenizer)} tokens",
            fix="tokenize with the tokenizer of this model, or give text",
        )


def _is_text(completion: Sequence[Turn | int]) -> bool:
    return bool(completion) and isinstance(completion[0], Turn)


def _token_ids(completion: Text, where: Origin) -> tuple[int, ...]:
    if not isinstance(completion, TokenIds):
        raise _mixed(where)
    return completion.ids


def _plain(completion: Text, where: Origin) -> str:
    if not isinstance(completion, str):
        raise _mixed(where)
    return completion


def _messages(completion: Text, record: Record) -> tuple[Message, ...]:
    if isinstance(completion, str | TokenIds):
        raise _mixed(record.origin)
    return completion


def _mixed(where: Origin) -> TokenizationError:
    return TokenizationError(
        "prompt and completion are of different forms (text, messages, token ids)",
        where=where,
        fix="give both in one form",
    )


def _decode(encoder: TextEncoder, ids: Sequence[int]) -> str:
    text = encoder.tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return str(text)


def _with_template(tokenizer: Any, file: str | None) -> Any:
    if file is None:
        return tokenizer
    try:
        tokenizer.chat_template = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizationError(
            f"the chat template cannot be read ({error})",
            where="tokens.chat_template",
            got=file,
            fix="give the path of a UTF-8 Jinja file",
        ) from error
    return tokenizer
