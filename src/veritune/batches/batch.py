"""Batch: ids and their plan (positions, segments, targets, groups).

A row is `[prompt][completion 1]…[completion K][next prompt]…`. Each completion continues at the
position where its prompt ends. The last token of a completion is predicted but predicts nothing,
so it is a target and not an input.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, Int32
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """Tokens that follow each other in a row and attend alike: to one prefix and, causally, to
    each other. For a prompt the prefix is empty; for a completion it is the prompt.
    """

    start: int
    """Where its tokens begin in the row."""

    length: int
    """Its tokens, at least one."""

    prefix_start: int
    """Where its prefix begins in the row."""

    prefix_length: int
    """Tokens of its prefix; 0 for none."""

    @property
    def stop(self) -> int:
        """Behind its last token."""
        return self.start + self.length


@dataclass(frozen=True)
class SegmentPlan:
    """Attention over one packed row as S exact segments in row order; never a mask over the row.

    Said twice, because devices want it differently: as numbers for a loop of slices, and as
    tensors for kernels that take sequences of any length at once.
    """

    segments: tuple[Segment, ...]
    """Each token of the row is in exactly one."""

    query_ends: Int32[Tensor, " ends"]
    """Queries before each segment, and in all: S + 1 numbers. Queries stand as in the row."""

    key_ends: Int32[Tensor, " ends"]
    """Keys before each segment, and in all, when the keys are laid out as `key_index` says."""

    key_index: Int[Tensor, " n"] | None
    """Where keys stand in the row: for each segment its prefix, then its own tokens. A prompt's
    keys come again for each of its completions. None if there are no prefixes: keys are queries.
    """

    max_queries: int
    """Tokens of the longest segment."""

    max_keys: int
    """Tokens of the longest segment with its prefix."""

    num_filling: int = 0
    """Tokens at the row's end that only fill it up; they are a segment."""

    masks: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """What kernels lay out for this row once, and all layers share."""

    windows: set[int] = field(default_factory=set, compare=False, repr=False)
    """Sliding windows, in tokens, that layers have asked for."""

    @classmethod
    def of(cls, segments: Sequence[Segment], *, num_filling: int = 0) -> "SegmentPlan":
        """The plan of a row that consists of these segments, in order."""
        at = 0
        for segment in segments:
            assert segment.start == at, "segments stand in the row one behind the other"
            assert segment.length > 0, "a segment has tokens"
            at += segment.length
        lengths = [segment.length for segment in segments]
        key_lengths = [segment.prefix_length + segment.length for segment in segments]
        spans = [
            np.arange(start, start + length)
            for s in segments
            for start, length in ((s.prefix_start, s.prefix_length), (s.start, s.length))
        ]
        has_prefixes = key_lengths != lengths
        return cls(
            tuple(segments),
            torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32)),
            torch.from_numpy(np.cumsum([0, *key_lengths], dtype=np.int32)),
            torch.from_numpy(np.concatenate(spans)) if has_prefixes else None,
            max(lengths),
            max(key_lengths),
            num_filling,
        )

    def to(self, device: torch.device) -> "SegmentPlan":
        """The same plan on a device, with an empty memory."""
        return SegmentPlan(
            self.segments,
            moved(self.query_ends, device),
            moved(self.key_ends, device),
            None if self.key_index is None else moved(self.key_index, device),
            self.max_queries,
            self.max_keys,
            self.num_filling,
        )


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; a copy to a GPU runs beside what the processor does next."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass(frozen=True)
class Batch:
    """Ids of one micro-step and everything beside them; S completions of G groups, R targets."""

    input_ids: Int[Tensor, "N T"]
    positions: Int[Tensor, "N T"]
    attention_mask: Bool[Tensor, "N T"] | None
    """True on real tokens of padded rows; None for packed rows, which need no mask."""

    plan: SegmentPlan | None
    """Attention of a packed row; None for padded rows, which a model handles by itself."""

    source: Int[Tensor, " R"]
    """For each target, where the hidden state that predicts it stands in the flattened rows."""

    targets: Int[Tensor, " R"]
    """The loss-bearing tokens, completion behind completion."""

    completion: Int[Tensor, " R"]
    """For each target, which completion of this batch it belongs to, 0 … S-1."""

    group_sizes: tuple[int, ...]
    """Completions of each group, in the order of `groups`; their sum is S."""

    groups: tuple[int, ...]
    """Which record each group is, as an index into its data set."""

    @property
    def num_completions(self) -> int:
        """S, the completions in this batch."""
        return sum(self.group_sizes)

    @property
    def num_tokens(self) -> int:
        """Tokens that the model computes, padding included."""
        return self.input_ids.numel()

    @property
    def num_data_tokens(self) -> int:
        """Tokens of prompts and completions that the model computes, padding not included."""
        if self.attention_mask is not None:
            return int(self.attention_mask.sum())
        return self.num_tokens - (self.plan.num_filling if self.plan is not None else 0)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        if device == self.input_ids.device:
            return self
        mask = self.attention_mask
        return Batch(
            moved(self.input_ids, device),
            moved(self.positions, device),
            None if mask is None else moved(mask, device),
            None if self.plan is None else self.plan.to(device),
            moved(self.source, device),
            moved(self.targets, device),
            moved(self.completion, device),
            self.group_sizes,
            self.groups,
        )
