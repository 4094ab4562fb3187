"""Some records to flat arrays: encoded, within the length limit, and counted.

A chunk is what one process tokenizes at once. Chunk behind chunk, they are a data set.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from veritune.errors import Problems, TokenizationError
from veritune.records.kinds import Origin, Paired, Record, Scored, TokenIds, Unpaired
from veritune.tokens.encode import (
    TextEncoder,
    TokenizedRecord,
    check_decodes_back,
    encode_record,
    encode_records,
)
from veritune.tokens.truncate import LengthCounts, fit_length

IdenticalPairs = Literal["stop", "drop", "keep"]
_NUM_CHECKED = 64


@dataclass(frozen=True)
class TokenRules:
    """What is done with records on their way into a data set."""

    max_length: int
    """Most tokens of a prompt with its longest completion."""

    identical_pairs: IdenticalPairs = "stop"
    """What becomes of a pair whose completions are the same tokens within the limit: a problem,
    left out and counted, or kept."""

    setting: str = "data"
    """The setting that names the records, for messages."""


@dataclass
class TokenCounts:
    """What became of records on their way into a data set."""

    num_records: int = 0
    """Records that went in."""

    num_groups: int = 0
    """Records that came out."""

    lengths: LengthCounts = field(default_factory=LengthCounts)
    problems: Problems = field(default_factory=Problems)
    """Records that could not be tokenized."""

    dropped_identical: int = 0
    """Pairs left out because their completions are the same tokens."""

    num_without_end: int = 0
    """Completions that were given as token ids and end in no end-of-sequence token."""

    def join(self, later: "TokenCounts") -> None:
        """Count what became of records behind these."""
        self.num_records += later.num_records
        self.num_groups += later.num_groups
        self.problems.join(later.problems)
        self.dropped_identical += later.dropped_identical
        self.num_without_end += later.num_without_end
        for count in fields(LengthCounts):
            both = getattr(self.lengths, count.name) + getattr(later.lengths, count.name)
            setattr(self.lengths, count.name, both)


@dataclass(frozen=True)
class TokenizedChunk:
    """N groups in a row, as `TokenizedDataset` has them, but with lengths in place of starts."""

    kind: str | None
    """None where there are no groups."""

    ids: NDArray[np.int32]
    bears_loss: NDArray[np.bool_]
    piece_lengths: NDArray[np.int64]
    num_pieces: NDArray[np.int64]
    """Shape (N,): a group's prompt and its completions."""

    desirable: NDArray[np.bool_]
    scores: NDArray[np.float64]
    """Of all completions, group behind group; (0,) for other than scored data."""

    origins: tuple[Origin, ...]
    counts: TokenCounts


def tokenize_chunk(
    records: Sequence[Record],
    encoder: TextEncoder,
    rules: TokenRules,
    *,
    checks_decoding: bool = False,
) -> TokenizedChunk:
    """Records as tokens; those that cannot be tokenized are counted as problems.

    Args:
        records: Records of one kind, prompts excepted.
        encoder: Text to ids; its settings say what to do with what is too long.
        rules: The limit, and what to do with pairs that are the same tokens.
        checks_decoding: Decode the first records and compare them with their text.

    Raises:
        DataError: A record is too long and the settings say to stop.
        TokenizationError: A record does not decode back.
        ModelError: The chat template is not valid.
    """
    counts = TokenCounts(num_records=len(records))
    good, encoded = _encode(encoder, records, counts.problems)
    if checks_decoding:
        check_decodes_back(encoder, good[:_NUM_CHECKED], encoded[:_NUM_CHECKED])
    bos = encoder.tokenizer.bos_token_id
    kept: list[Record] = []
    groups: list[TokenizedRecord] = []
    for record, full in zip(good, encoded, strict=True):
        group = fit_length(full, rules.max_length, encoder.config, counts.lengths, bos=bos)
        if group is None:
            continue
        alike = isinstance(record, Paired) and is_identical(group)
        if alike and rules.identical_pairs == "drop":
            counts.dropped_identical += 1
            continue
        if alike and rules.identical_pairs == "stop":
            counts.problems.add(identical_pair_problem(group, rules.setting))
            continue
        if isinstance(record.prompt, TokenIds):
            counts.num_without_end += sum(
                int(c.ids[-1]) not in encoder.end_tokens for c in full.completions
            )
        kept.append(record)
        groups.append(group)
    counts.num_groups = len(groups)
    return _flat(kept, groups, counts)


def is_identical(group: TokenizedRecord) -> bool:
    """Whether the two completions of a pair are the same tokens and bear the same loss."""
    chosen, rejected = group.completions
    return np.array_equal(chosen.ids, rejected.ids) and np.array_equal(
        chosen.bears_loss, rejected.bears_loss
    )


def identical_pair_problem(group: TokenizedRecord, setting: str = "data") -> TokenizationError:
    """What to tell about a pair whose completions are the same tokens."""
    return TokenizationError(
        "chosen and rejected are the same tokens",
        where=group.origin,
        why="the pair has the same loss under every policy; what tells the two apart was cut, or "
        "is nothing that the chat template renders",
        fix="remove the pair, raise tokens.max_length if it was cut, or set "
        f"{setting}.identical_pairs=drop to leave such pairs out",
    )


def _flat(
    records: Sequence[Record], groups: Sequence[TokenizedRecord], counts: TokenCounts
) -> TokenizedChunk:
    prompts_bear_none = [np.zeros(len(group.prompt), np.bool_) for group in groups]
    ids = [ids for g in groups for ids in (g.prompt, *(c.ids for c in g.completions))]
    masks = [
        mask
        for prompt, group in zip(prompts_bear_none, groups, strict=True)
        for mask in (prompt, *(c.bears_loss for c in group.completions))
    ]
    scores = [score for r in records if isinstance(r, Scored) for score in r.scores]
    return TokenizedChunk(
        kind=records[0].kind if records else None,
        ids=np.concatenate([np.zeros(0, np.int32), *ids]),
        bears_loss=np.concatenate([np.zeros(0, np.bool_), *masks]),
        piece_lengths=np.asarray([len(piece) for piece in ids], np.int64),
        num_pieces=np.asarray([1 + len(group.completions) for group in groups], np.int64),
        desirable=np.asarray([r.desirable for r in records if isinstance(r, Unpaired)], np.bool_),
        scores=np.asarray(scores, np.float64),
        origins=tuple(record.origin for record in records),
        counts=counts,
    )


def _encode(
    encoder: TextEncoder, records: Sequence[Record], problems: Problems
) -> tuple[list[Record], list[TokenizedRecord]]:
    """The records encoded at once; one by one where one of them has a problem."""
    good: list[Record] = []
    encoded: list[TokenizedRecord] = []
    for record, group in _each_encoded(encoder, records, problems):
        if all(completion.bears_loss.any() for completion in group.completions):
            good.append(record)
            encoded.append(group)
            continue
        problems.add(
            TokenizationError(
                "a completion has no token that bears loss",
                where=record.origin,
                why="its log-probability would be zero for every policy",
                fix="remove the record, or set tokens.loss_on=all",
            )
        )
    return good, encoded


def _each_encoded(
    encoder: TextEncoder, records: Sequence[Record], problems: Problems
) -> list[tuple[Record, TokenizedRecord]]:
    try:
        return list(zip(records, encode_records(encoder, records), strict=True))
    except TokenizationError:
        pairs = []
        for record in records:
            try:
                pairs.append((record, encode_record(encoder, record)))
            except TokenizationError as problem:
                problems.add(problem)
        return pairs
