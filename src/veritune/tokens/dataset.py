"""TokenizedDataset: all groups of a data set as a few flat arrays, in memory or on disk.

A million records are a few large arrays instead of a million small objects. A group is a view.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, BinaryIO, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from veritune.errors import DataError, Problems
from veritune.records.kinds import Origin, Record
from veritune.tokens.chunk import (
    IdenticalPairs,
    TokenCounts,
    TokenizedChunk,
    TokenRules,
    tokenize_chunk,
)
from veritune.tokens.encode import TextEncoder, TokenizedCompletion, TokenizedRecord
from veritune.tokens.truncate import LengthCounts

ARRAYS: Mapping[str, type[np.generic]] = {
    "ids": np.int32,
    "bears_loss": np.bool_,
    "piece_starts": np.int64,
    "group_starts": np.int64,
    "desirable": np.bool_,
    "scores": np.float64,
    "origin_sources": np.int32,
    "origin_lines": np.int64,
}
"""The arrays of a data set and the type of their numbers."""

_CHUNK = 1024
ItemT = TypeVar("ItemT")


class View(Sequence[ItemT], Generic[ItemT]):
    """A sequence whose items are made when they are asked for.

    Args:
        length: The number of items.
        at: The item at a place, from 0.
    """

    def __init__(self, length: int, at: Callable[[int], ItemT]) -> None:
        self._places = range(length)
        self._at = at

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        found = self._places[index]
        return self._at(found) if isinstance(found, int) else tuple(map(self._at, found))


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

    scores: Sequence[Sequence[float]]
    """One tuple per group for scored data, else empty."""

    origins: Sequence[Origin]

    max_length: int
    """Most tokens of a prompt with a completion; every group is within it."""

    bos: int | None = None
    """The beginning-of-sequence token that a prompt keeps when it is cut."""

    lengths: LengthCounts = field(default_factory=LengthCounts)
    problems: Problems = field(default_factory=Problems)
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


class DatasetWriter:
    """Puts chunks behind each other, in arrays that grow in memory or in files.

    Args:
        open_sink: Opens what the numbers of an array are written to, by its name in `ARRAYS`.
    """

    def __init__(self, open_sink: Callable[[str], BinaryIO]) -> None:
        self._sinks = {name: open_sink(name) for name in ARRAYS}
        self._ends = {"piece_starts": 0, "group_starts": 0}
        self.kind: str | None = None
        self.sources: dict[tuple[str, str], int] = {}
        """Files and what their places are called (line, row), to their number."""

        self.counts = TokenCounts()
        for name in self._ends:
            self._write(name, [0])

    def add(self, chunk: TokenizedChunk) -> None:
        """Put a chunk behind the others."""
        self.kind = self.kind or chunk.kind
        self.counts.join(chunk.counts)
        for name in ("ids", "bears_loss", "desirable", "scores"):
            self._write(name, getattr(chunk, name))
        self._write_ends("piece_starts", chunk.piece_lengths)
        self._write_ends("group_starts", chunk.num_pieces)
        numbers = [
            self.sources.setdefault((origin.file, origin.unit), len(self.sources))
            for origin in chunk.origins
        ]
        self._write("origin_sources", numbers)
        self._write("origin_lines", [origin.line for origin in chunk.origins])

    def close(self) -> dict[str, BinaryIO]:
        """Finish writing; the sinks by name, flushed and still open."""
        for sink in self._sinks.values():
            sink.flush()
        return self._sinks

    def _write(self, name: str, numbers: Any) -> None:
        self._sinks[name].write(np.ascontiguousarray(numbers, ARRAYS[name]).data)

    def _write_ends(self, name: str, lengths: NDArray[np.int64]) -> None:
        ends = self._ends[name] + np.cumsum(lengths, dtype=np.int64)
        self._write(name, ends)
        if len(ends):
            self._ends[name] = int(ends[-1])


def dataset_of_arrays(
    arrays: Mapping[str, NDArray[Any]],
    *,
    kind: str,
    sources: Sequence[tuple[str, str]],
    counts: TokenCounts,
    max_length: int,
    bos: int | None,
) -> TokenizedDataset:
    """The data set whose numbers are in arrays, by the names in `ARRAYS`.

    Args:
        arrays: What a `DatasetWriter` wrote.
        kind: The kind of every group.
        sources: Files and what their places are called, by their number.
        counts: What became of the records.
        max_length: Most tokens of a prompt with its longest completion.
        bos: The beginning-of-sequence token that a prompt keeps when it is cut.
    """
    group_starts, scores = arrays["group_starts"], arrays["scores"]
    numbers, lines = arrays["origin_sources"], arrays["origin_lines"]

    def origin(index: int) -> Origin:
        file, unit = sources[numbers[index]]
        return Origin(file, int(lines[index]), unit)

    def scores_of_group(index: int) -> tuple[float, ...]:
        # One piece of every group is its prompt.
        first, last = group_starts[index] - index, group_starts[index + 1] - index - 1
        return tuple(scores[first:last].tolist())

    num_groups = len(group_starts) - 1
    return TokenizedDataset(
        kind=kind,
        ids=arrays["ids"],
        bears_loss=arrays["bears_loss"],
        piece_starts=arrays["piece_starts"],
        group_starts=group_starts,
        desirable=arrays["desirable"],
        scores=View(num_groups if kind == "scored" else 0, scores_of_group),
        origins=View(num_groups, origin),
        max_length=max_length,
        bos=bos,
        lengths=counts.lengths,
        problems=counts.problems,
        dropped_identical=counts.dropped_identical,
        num_without_end=counts.num_without_end,
    )


def tokenize(
    records: Sequence[Record],
    encoder: TextEncoder,
    *,
    max_length: int,
    skip_problems: bool = False,
    identical_pairs: IdenticalPairs = "stop",
    setting: str = "data",
    progress: Callable[[int], None] | None = None,
) -> TokenizedDataset:
    """All records as one data set in memory.

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
    rules = TokenRules(max_length, identical_pairs, setting)
    writer = DatasetWriter(lambda name: io.BytesIO())
    for start in range(0, len(records), _CHUNK):
        chunk = records[start : start + _CHUNK]
        writer.add(tokenize_chunk(chunk, encoder, rules, checks_decoding=start == 0))
        if progress is not None:
            progress(min(start + _CHUNK, len(records)))
    file = records[0].origin.file if records else None
    check_counts(writer.counts, rules, skip_problems=skip_problems, file=file)
    assert writer.kind is not None, "a group has a kind"
    sinks = writer.close()
    return dataset_of_arrays(
        {name: np.frombuffer(sinks[name].getbuffer(), ARRAYS[name]) for name in ARRAYS},  # type: ignore[attr-defined]
        kind=writer.kind,
        sources=list(writer.sources),
        counts=writer.counts,
        max_length=max_length,
        bos=encoder.tokenizer.bos_token_id,
    )


def check_counts(
    counts: TokenCounts, rules: TokenRules, *, skip_problems: bool, file: str | None
) -> None:
    """Refuse what became of all records, if it makes no data set.

    Args:
        counts: What became of the records.
        rules: What was done with them.
        skip_problems: Go on without the records that cannot be tokenized.
        file: The first file, for messages.

    Raises:
        DataError: Some record cannot be tokenized (all are named), or none is left.
    """
    if counts.problems and not (skip_problems and counts.num_groups):
        raise _problems_error(counts, rules.setting, file)
    if not counts.num_groups:
        raise DataError(
            "no record is left",
            where=file,
            got=_lost(counts),
            why=None
            if not counts.dropped_identical
            else "pairs whose completions are the same tokens are left out",
            fix="raise tokens.max_length, or set tokens.long_completions=cut",
        )


def _lost(counts: TokenCounts) -> str:
    num_identical = counts.dropped_identical
    identical = f", {num_identical} with identical completions" if num_identical else ""
    return f"{counts.lengths.dropped} too long{identical}, of {counts.num_records} records"


def _problems_error(counts: TokenCounts, setting: str, file: str | None) -> DataError:
    summary = f"{len(counts.problems):,} of {counts.num_records:,} records cannot be tokenized"
    fix = "mend the records"
    if len(counts.problems) < counts.num_records:
        fix += f", or set {setting}.on_error=skip to go on without them"
    return DataError(f"{summary}\n\n{counts.problems}\n\n{summary}", where=file, fix=fix)
