"""Length limits: what is too long is cut or dropped, and counted.

Cutting keeps the end of the prompt (what the completion answers) and the beginning of a
completion. A completion that is cut loses its end-of-sequence token, because it does not end there.
"""

from dataclasses import dataclass, replace

import numpy as np

from veritune.errors import DataError
from veritune.tokens.encode import TokenizedCompletion, TokenizedRecord, TokensConfig


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
    keep = max_length - (record.longest - len(record.prompt))
    prompt = record.prompt[-keep:]
    if bos is not None and record.prompt[0] == bos and keep >= 2:
        prompt = np.concatenate([record.prompt[:1], record.prompt[-(keep - 1) :]])
    return replace(record, prompt=prompt)


def _too_long(record: TokenizedRecord, what: str, max_length: int, fix: str) -> DataError:
    return DataError(
        f"{what} is too long",
        where=record.origin,
        got=f"{record.longest} tokens, and the limit is {max_length}",
        fix=f"raise tokens.max_length, shorten the text, or set {fix}",
    )
