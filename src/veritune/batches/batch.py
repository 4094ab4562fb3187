"""Batch: ids and their plan (positions, segments, targets, groups).

A row is `[prompt][completion 1]…[completion K][next prompt]…`. Each completion continues at the
position where its prompt ends. The last token of a completion is predicted but predicts nothing,
so it is a target and not an input.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class SegmentGroup:
    """Segments of one shape: q query tokens that see p earlier tokens and, causally, each other.

    For a prompt p is 0; for a completion p is the length of its prompt.
    """

    num_queries: int
    num_prefix: int
    query_index: Int[Tensor, "G q"]
    """Where the queries stand in the row."""

    key_index: Int[Tensor, "G n"]
    """Where the n = p + q keys stand: the prefix, then the queries themselves."""


@dataclass(frozen=True)
class SegmentPlan:
    """Attention over one packed row as a list of exact segments; never a mask over the row."""

    groups: tuple[SegmentGroup, ...]
    order: Int[Tensor, " T"]
    """Where each token of the row stands when the groups' queries are laid end to end."""

    masks: dict[tuple[int, int, int | None, torch.device], Tensor] = field(
        default_factory=dict, compare=False, repr=False
    )
    """Memory of the small masks (queries, prefix, window) that layers share."""

    windows: set[int] = field(default_factory=set, compare=False, repr=False)
    """Sliding windows, in tokens, that layers have asked for."""


@dataclass(frozen=True)
class Batch:
    """Ids of one micro-step and everything beside them; S completions of G groups, R targets."""

    input_ids: Int[Tensor, "N T"]
    positions: Int[Tensor, "N T"]
    attention_mask: Bool[Tensor, "N T"] | None
    """True on real tokens of padded rows; None for packed rows, which have no padding."""

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

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        if device == self.input_ids.device:
            return self
        plan = self.plan
        if plan is not None:
            plan = SegmentPlan(
                tuple(
                    SegmentGroup(
                        g.num_queries,
                        g.num_prefix,
                        g.query_index.to(device),
                        g.key_index.to(device),
                    )
                    for g in plan.groups
                ),
                plan.order.to(device),
            )
        mask = self.attention_mask
        return Batch(
            self.input_ids.to(device),
            self.positions.to(device),
            None if mask is None else mask.to(device),
            plan,
            self.source.to(device),
            self.targets.to(device),
            self.completion.to(device),
            self.group_sizes,
            self.groups,
        )
