"""TokenizedDataset: all groups of a data set as a few flat arrays.

A million records are a few large arrays instead of a million small objects. A group is a view.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from veritune.errors import DataError, TokenizationError, join_problems
from veritune.records.kinds import Origin, Paired, Record, Scored, TokenIds, Unpaired
from veritune.tokens.encode import (
    TextEncoder,
    TokenizedCompletion,
    TokenizedRecord,
    check_decodes_back,
    encode_record,
    encode_records,
)
from veritune.tokens.truncate import LengthCounts, fit_length

_CHUNK = 1024
_NUM_CHECKED = 64


@dataclass(frozen=True)
class TokenizedDataset:
    """N groups of one kind: each a prompt and its completions, with labels or scores beside."""

    kind: str
    """`paired`, `unpaired`, `scored` or `demonstration`."""

    ids: NDArray[np.int32]
    """All tokens, piece behind piece; a group's pieces are its prompt and its completions."""

    bears_loss: NDArray[np.bool_]
    """Aligned with `ids`; False on prompts."""

    piece_starts: NDArray[np.int64]
    """Shape (pieces + 1,): where each piece begins in `ids`."""

    group_starts: NDArray[np.int64]
    """Shape (N + 1,): the index of each group's first piece."""

    desirable: NDArray[np.bool_]
    """Shape (N,) for unpaired data, else (0,)."""

    scores: tuple[tuple[float, ...], ...]
    """One tuple per group for scored data, else empty."""

    origins: tuple[Origin, ...]

    max_length: int
    """Most tokens of a prompt with a completion; every group is within it."""

    bos: int | None = None
    """The beginning-of-sequence token that a prompt keeps when it is cut."""

    lengths: LengthCounts = field(default_factory=LengthCounts)
    problems: tuple[TokenizationError, ...] = ()
    """Records that could not be tokenized and were skipped."""

    dropped_identical: int = 0
    """Pairs left out because their completions are the same tokens."""

    num_without_end: int = 0
    """Completions that were given as token ids and end in no end-of-sequence token."""

    def __len__(self) -> int:
        return len(self.group_starts) - 1

    def __getitem__(self, index: int) -> TokenizedRecord:
        first, last = self.group_starts[index], self.group_starts[index + 1]
        cuts = self.piece_starts[first : last + 1]
        pieces = [slice(a, b) for a, b in pairwise(cuts)]
        return TokenizedRecord(
            self.ids[pieces[0]],
            tuple(TokenizedCompletion(self.ids[p], self.bears_loss[p]) for p in pieces[1:]),
            self.origins[index],
        )

    @property
    def desirable_fraction(self) -> float | None:
        """Desirable examples over all examples; None for other kinds of data."""
        return float(self.desirable.mean()) if len(self.desirable) else None

    def prompt_lengths(self) -> NDArray[np.int64]:
        """Tokens of each prompt, shape (N,)."""
        return np.diff(self.piece_starts)[self.group_starts[:-1]]

    def completion_lengths(self) -> NDArray[np.int64]:
        """Tokens of every completion, group by group."""
        mask = np.ones(len(self.piece_starts) - 1, bool)
        mask[self.group_starts[:-1]] = False
        return np.diff(self.piece_starts)[mask]


def tokenize(
    records: Sequence[Record],
    encoder: TextEncoder,
    *,
    max_length: int,
    skip_problems: bool = False,
    identical_pairs: Literal["stop", "drop", "keep"] = "stop",
    setting: str = "data",
    progress: Callable[[int], None] | None = None,
) -> TokenizedDataset:
    """All records as one data set.

    Args:
        records: Records of one kind, prompts excepted.
        encoder: Text to ids; its settings say what to do with what is too long.
        max_length: Most tokens of a prompt with its longest completion.
        skip_problems: Go on without the records that cannot be tokenized; they are reported.
        identical_pairs: What becomes of a pair whose completions are the same tokens within the
            limit: a problem, left out and counted, or kept.
        setting: The setting that names the records, for messages.
        progress: Called with the number of records done so far.

    Raises:
        DataError: Some record cannot be tokenized (all are named), or none is left.
    """
    counts = LengthCounts()
    bos = encoder.tokenizer.bos_token_id
    dropped_identical = num_without_end = 0
    problems: list[TokenizationError] = []
    kept: list[Record] = []
    ids: list[NDArray[np.int32]] = []
    masks: list[NDArray[np.bool_]] = []
    sizes: list[int] = [0]
    pieces: list[int] = [0]
    for start in range(0, len(records), _CHUNK):
        chunk = records[start : start + _CHUNK]
        good, encoded = _encode_chunk(encoder, chunk, problems)
        if start == 0:
            check_decodes_back(encoder, good[:_NUM_CHECKED], encoded[:_NUM_CHECKED])
        for record, full in zip(good, encoded, strict=True):
            group = fit_length(full, max_length, encoder.config, counts, bos=bos)
            if group is None:
                continue
            if identical_pairs != "keep" and isinstance(record, Paired) and is_identical(group):
                if identical_pairs == "drop":
                    dropped_identical += 1
                else:
                    problems.append(identical_pair_problem(group, setting))
                continue
            kept.append(record)
            if isinstance(record.prompt, TokenIds):
                num_without_end += sum(
                    int(c.ids[-1]) not in encoder.end_tokens for c in full.completions
                )
            ids.append(group.prompt)
            masks.append(np.zeros(len(group.prompt), np.bool_))
            ids.extend(c.ids for c in group.completions)
            masks.extend(c.bears_loss for c in group.completions)
            sizes.extend([len(group.prompt), *(len(c.ids) for c in group.completions)])
            pieces.append(pieces[-1] + 1 + len(group.completions))
        if progress is not None:
            progress(min(start + _CHUNK, len(records)))
    if problems and not (skip_problems and kept):
        raise _problems_error(problems, records, setting)
    if not kept:
        raise DataError(
            "no record is left",
            where=records[0].origin.file if records else None,
            got=_lost(counts.dropped, dropped_identical, len(records)),
            why=None
            if not dropped_identical
            else "pairs whose completions are the same tokens are left out",
            fix="raise tokens.max_length, or set tokens.long_completions=cut",
        )
    return TokenizedDataset(
        kind=kept[0].kind,
        ids=np.concatenate(ids),
        bears_loss=np.concatenate(masks),
        piece_starts=np.cumsum(np.asarray(sizes, np.int64)),
        group_starts=np.asarray(pieces, np.int64),
        desirable=np.asarray([r.desirable for r in kept if isinstance(r, Unpaired)], np.bool_),
        scores=tuple(r.scores for r in kept if isinstance(r, Scored)),
        origins=tuple(r.origin for r in kept),
        max_length=max_length,
        bos=bos,
        lengths=counts,
        problems=tuple(problems),
        dropped_identical=dropped_identical,
        num_without_end=num_without_end,
    )


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


def _lost(num_long: int, num_identical: int, num_records: int) -> str:
    identical = f", {num_identical} with identical completions" if num_identical else ""
    return f"{num_long} too long{identical}, of {num_records} records"


def _problems_error(
    problems: Sequence[TokenizationError], records: Sequence[Record], setting: str
) -> DataError:
    summary = f"{len(problems):,} of {len(records):,} records cannot be tokenized"
    fix = "mend the records"
    if len(problems) < len(records):
        fix += f", or set {setting}.on_error=skip to go on without them"
    return DataError(
        f"{summary}\n\n{join_problems(problems)}\n\n{summary}",
        where=records[0].origin.file,
        fix=fix,
    )


def _encode_chunk(
    encoder: TextEncoder, chunk: Sequence[Record], problems: list[TokenizationError]
) -> tuple[Sequence[Record], list[TokenizedRecord]]:
    """The chunk encoded at once; record by record where one of them has a problem."""
    try:
        good, encoded = chunk, encode_records(encoder, chunk)
    except TokenizationError:
        good, encoded = [], []
        for record in chunk:
            try:
                encoded.append(encode_record(encoder, record))
                good.append(record)
            except TokenizationError as problem:
                problems.append(problem)
    silent = [
        i
        for i, group in enumerate(encoded)
        if not all(c.bears_loss.any() for c in group.completions)
    ]
    for i in silent:
        problems.append(
            TokenizationError(
                "a completion has no token that bears loss",
                where=good[i].origin,
                why="its log-probability would be zero for every policy",
                fix="remove the record, or set tokens.loss_on=all",
            )
        )
    keep = [i for i in range(len(encoded)) if i not in set(silent)]
    return [good[i] for i in keep], [encoded[i] for i in keep]
