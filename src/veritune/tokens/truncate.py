"""Length limits: what is too long is cut or dropped, and counted.

Cutting keeps the end of the prompt (what the completion answers) and the beginning of a
completion. A completion that is cut loses its end-of-sequence token, because it does not end there.
"""

from dataclasses import dataclass, replace

import numpy as np

from veritune.errors import DataError, SettingsError
from veritune.tokens.encode import Ids, TokenizedCompletion, TokenizedRecord, TokensConfig

_WITHOUT_A_LIMIT = 2048
"""Most tokens of a record where neither the settings nor the model name a limit."""


@dataclass
class LengthCounts:
    """How many records met the limit, by what was done with them."""

    cut_prompts: int = 0
    cut_completions: int = 0
    dropped_long_prompts: int = 0
    dropped_long_completions: int = 0

    @property
    def dropped(self) -> int:
        """Records that are not used."""
        return self.dropped_long_prompts + self.dropped_long_completions


def settle_max_length(asked: int | None, model_limit: int | None) -> int:
    """Most tokens of a prompt with its longest completion.

    Args:
        asked: The setting `tokens.max_length`; None is the model's own limit.
        model_limit: The most positions that the model was made for; None if it states none.

    Raises:
        SettingsError: More is asked for than the model reads.
    """
    if asked is None:
        return _WITHOUT_A_LIMIT if model_limit is None else model_limit
    if model_limit is not None and asked > model_limit:
        raise SettingsError(
            "the limit is above that of the model",
            where="tokens.max_length",
            got=f"{asked} tokens, and the model reads at most {model_limit}",
            why="the model was not made for positions behind its limit",
            fix=f"set tokens.max_length={model_limit} or less, or leave it out",
        )
    return asked


def cut_prompt(prompt: Ids, room: int, *, bos: int | None) -> Ids:
    """The end of a prompt, within `room` tokens (at least 1).

    Args:
        prompt: Shape (P,).
        room: Most tokens that are kept.
        bos: A beginning-of-sequence token that is kept when the prompt is cut behind it; with
            room for one token the prompt's last is kept instead.
    """
    assert room >= 1, "the first token of a completion needs a predecessor"
    if len(prompt) <= room:
        return prompt
    if bos is not None and prompt[0] == bos and room >= 2:
        return np.concatenate([prompt[:1], prompt[-(room - 1) :]])
    return prompt[-room:]


def fit_length(
    record: TokenizedRecord,
    max_length: int,
    config: TokensConfig,
    counts: LengthCounts,
    *,
    bos: int | None,
) -> TokenizedRecord | None:
    """The record within `max_length` tokens, or None if it is dropped; `counts` is updated.

    Args:
        record: One prompt and its completions.
        max_length: Most tokens of the prompt with its longest completion; at least 2.
        config: What to do with long prompts and long completions.
        counts: Where the case is counted.
        bos: A beginning-of-sequence token that is kept when the prompt is cut behind it.

    Raises:
        DataError: The record is too long and the settings say to stop.
    """
    if record.longest <= max_length:
        return record
    room = max_length - 1
    if any(len(c.ids) > room for c in record.completions):
        if config.long_completions == "stop":
            raise _too_long(record, "a completion", max_length, "tokens.long_completions=drop")
        if config.long_completions == "drop":
            counts.dropped_long_completions += 1
            return None
        completions = tuple(
            TokenizedCompletion(c.ids[:room], c.bears_loss[:room]) for c in record.completions
        )
        # A cut that leaves nothing to train on is no cut.
        if not all(c.bears_loss.any() for c in completions):
            counts.dropped_long_completions += 1
            return None
        counts.cut_completions += 1
        record = replace(record, completions=completions)
        if record.longest <= max_length:
            return record
    if config.long_prompts == "stop":
        raise _too_long(record, "the prompt", max_length, "tokens.long_prompts=cut")
    if config.long_prompts == "drop":
        counts.dropped_long_prompts += 1
        return None
    counts.cut_prompts += 1
    room = max_length - (record.longest - len(record.prompt))
    return replace(record, prompt=cut_prompt(record.prompt, room, bos=bos))


def _too_long(record: TokenizedRecord, what: str, max_length: int, fix: str) -> DataError:
    return DataError(
        f"{what} is too long",
        where=record.origin,
        got=f"{record.longest} tokens, and the limit is {max_length}",
        fix=f"raise tokens.max_length, shorten the text, or set {fix}",
    )
