"""The memory of a run, part by part: planned before it is spent, and rows chosen that fit.

1. A skeleton of the model (`models/rehearsal.py`) says what weights and the largest row take.
2. Where the settings leave it open, the largest token budget of a row that fits is found; where
   not even the longest group fits, activations are computed again in the backward pass.
3. What does not fit is refused with the changes that would make it fit, and what each gives.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from veritune.errors import SettingsError
from veritune.models.adapters import AdapterConfig
from veritune.models.forward import Precision, Sharing
from veritune.models.rehearsal import GroupShape, RowMemory, Skeleton
from veritune.tokens.dataset import TokenizedDataset
from veritune.tokens.encode import TokenizedRecord
from veritune.training.device_memory import in_words

LARGEST_ROW = {"cpu": 1024, "cuda": 16384}
"""Tokens of a row beyond which a device of this kind gains no speed."""

USED_SHARE = 0.9
"""Share of the memory that is free, or given, which a plan may fill: allocators lose the rest."""

_LEVELS: dict[Any, tuple[int | None, ...]] = {True: (1,), False: (None,), "auto": (None, 4, 2, 1)}
"""Every n-th layer of which activations are computed again, in the order of what it costs."""

_ROUNDED_TO = 64
"""Token budgets are multiples of this, so that they are not more exact than what they rest on."""

_GRADIENT_BYTES, OPTIMIZER_BYTES = 4, 8
"""Of a trained parameter: a float32 gradient, and AdamW's two float32 means."""

Checkpointing = bool | Literal["auto"]


@dataclass(frozen=True)
class RowSettings:
    """How rows are formed and carried through the model."""

    tokens_per_row: int
    """Token budget of a row."""

    checkpoint_every: int | None = None
    """The activations of each n-th layer are computed again; None keeps all."""

    @property
    def recomputed(self) -> str:
        """What stands behind the budget where activations are computed again, else nothing."""
        if self.checkpoint_every is None:
            return ""
        every = self.checkpoint_every
        layers = "all layers" if every == 1 else f"one layer in {every}"
        return f", activations of {layers} computed again"


@dataclass(frozen=True)
class Lengths:
    """What a plan must know of the data, in tokens of a row."""

    longest: int
    """The largest group."""

    shape: GroupShape
    """Its pieces."""

    step: int
    """The most that one process computes in a step."""

    total: int
    """All groups."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of every part of a run at its peak."""

    rows: RowSettings
    row_tokens: int
    """Tokens of the largest row."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """What the layers keep of the largest row, copies of weights in half precision among it."""

    working: int
    """Logits and gradients that live for a moment beside the activations."""

    scoring: int
    """What the reference takes while it is scored, before there are gradients."""

    @property
    def training(self) -> int:
        """Everything that a step takes beside the weights."""
        return self.gradients + self.optimizer + self.activations + self.working

    @property
    def total(self) -> int:
        """The peak of the run."""
        return self.weights + max(self.training, self.scoring)

    def parts(self) -> dict[str, int]:
        """Name and bytes of each part that counts."""
        named = {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "activations": self.activations,
            "head and working memory": self.working,
            "reference, before training": self.scoring,
        }
        return {name: size for name, size in named.items() if size}

    def in_words(self) -> str:
        """The sum and its parts on one line."""
        parts = ", ".join(f"{name} {in_words(size)}" for name, size in self.parts().items())
        return f"{in_words(self.total)} at {self.row_tokens:,} tokens a row: {parts}"


def group_tokens(dataset: TokenizedDataset, sharing: Sharing) -> NDArray[np.int64]:
    """Tokens that each group takes in a row, shape (N,), as `batches.pack.row_tokens` counts."""
    sizes = np.diff(dataset.group_starts) - 1
    inputs = np.concatenate([[0], np.cumsum(dataset.completion_lengths() - 1)])
    ends = np.cumsum(sizes)
    prompts = dataset.prompt_lengths()
    repeated = prompts if sharing == "shared" else prompts * np.maximum(sizes, 1)
    return np.asarray(inputs[ends] - inputs[ends - sizes] + repeated)


def lengths_of(tokens: NDArray[np.int64], largest: TokenizedRecord, *, share: int) -> Lengths:
    """What a plan must know of the data.

    Args:
        tokens: What each group takes in a row, shape (N,).
        largest: The group that takes the most.
        share: Records that one process has in a step.
    """
    return Lengths(
        longest=int(tokens.max()),
        shape=GroupShape(len(largest.prompt), tuple(len(c.ids) for c in largest.completions)),
        step=int(np.sort(tokens)[-share:].sum()),
        total=int(tokens.sum()),
    )


@dataclass(frozen=True)
class Planner:
    """Plans of one model on one set of data."""

    skeleton: Skeleton
    lengths: Lengths
    precision: Precision
    sharing: Sharing
    largest_row: int
    """Tokens of a row beyond which there is no gain."""

    reference_bytes: int = 0
    """Weights of a reference that is another model."""

    scoring_budget: int = 1
    """Rows of the reference hold this many times the tokens; 0 scores none."""

    def plan(self, rows: RowSettings) -> MemoryPlan:
        """What a run with these rows takes.

        Raises:
            NotRehearsedError: The model's layers cannot be followed without content.
        """
        budget = max(self.lengths.longest, rows.tokens_per_row)
        row = self._row(min(budget, self.lengths.step), rows.checkpoint_every)
        scoring = self.reference_bytes
        if self.scoring_budget:
            most = min(self.scoring_budget * budget, self.lengths.total)
            scoring += self._row(most, None, backward=False).peak
        return MemoryPlan(
            rows=rows,
            row_tokens=row.num_tokens,
            weights=self.skeleton.weight_bytes,
            gradients=_GRADIENT_BYTES * self.skeleton.num_trained,
            optimizer=OPTIMIZER_BYTES * self.skeleton.num_trained,
            activations=row.activations,
            working=row.peak - row.activations,
            scoring=scoring,
        )

    def choose(
        self, limit: int, *, tokens_per_row: int | None, checkpointing: Checkpointing
    ) -> MemoryPlan:
        """The fastest rows whose plan is within a limit; the smallest plan where none is.

        Args:
            limit: Bytes.
            tokens_per_row: The budget of a row, where it is given.
            checkpointing: Whether activations are computed again; "auto" does where the longest
                group does not fit otherwise, in as few layers as will do.

        Raises:
            NotRehearsedError: The model's layers cannot be followed without content.
        """
        levels = _LEVELS[checkpointing]
        if self._fixed > limit:
            # Whatever the rows; the figure is that of the smallest.
            smallest = min(tokens_per_row or self.lengths.longest, self.lengths.longest)
            return self.plan(RowSettings(smallest, levels[-1]))
        tried = []
        for every in levels:
            if tokens_per_row is None:
                tried.append(self._largest_that_fits(limit, every))
            else:
                tried.append(self.plan(RowSettings(tokens_per_row, every)))
            if tried[-1].total <= limit:
                break
        return tried[-1] if tried[-1].total <= limit else min(tried, key=lambda plan: plan.total)

    def _largest_that_fits(self, limit: int, every: int | None) -> MemoryPlan:
        """The plan of the largest rows within the limit, or of the longest group alone."""
        largest = RowSettings(self._largest(), every)
        # Mostly everything fits as it is.
        if every is None and (plan := self.plan(largest)).total <= limit:
            return plan
        low = self.plan(RowSettings(self.lengths.longest, every))
        if low.total > limit:
            return low
        high = self.plan(largest)
        # A peak is the largest of several quantities that grow linearly, so a line between two
        # points is nowhere below it.
        while high.total > limit:
            share = (limit - low.total) / (high.total - low.total)
            between = low.row_tokens + share * (high.row_tokens - low.row_tokens)
            tokens = int(between) // _ROUNDED_TO * _ROUNDED_TO
            if tokens <= low.row_tokens:
                return low
            high = self.plan(RowSettings(tokens, every))
        return high

    @property
    def _fixed(self) -> int:
        """Bytes that no choice of rows changes."""
        per_number = _GRADIENT_BYTES + OPTIMIZER_BYTES
        return self.skeleton.weight_bytes + per_number * self.skeleton.num_trained

    def _largest(self) -> int:
        return max(self.lengths.longest, min(self.largest_row, self.lengths.step))

    def _row(self, tokens: int, every: int | None, *, backward: bool = True) -> RowMemory:
        return self.skeleton.row(
            self.lengths.shape,
            tokens,
            precision=self.precision,
            sharing=self.sharing,
            checkpoint_every=every,
            backward=backward,
        )


def changes(
    planner: Planner, plan: MemoryPlan, limit: int, config: Any, *, has_bf16: bool
) -> Iterator[tuple[str, MemoryPlan]]:
    """Settings that lower a plan, each on top of those before it, until one fits.

    In the order of what they cost: smaller rows little, checkpointing a third more time, bf16
    digits, adapters freedom of the update, shorter text what is cut off.

    Args:
        planner: What made the plan.
        plan: What does not fit.
        limit: Bytes.
        config: The model's.
        has_bf16: Whether the device computes in bfloat16.
    """
    for words, changed, rows in _ways(planner, plan.rows, config, has_bf16):
        if plan.total <= limit:
            return
        lower = changed.plan(rows)
        if lower.total < plan.total:
            plan = lower
            yield words, plan


def _ways(
    planner: Planner, rows: RowSettings, config: Any, has_bf16: bool
) -> Iterator[tuple[str, Planner, RowSettings]]:
    """Every change to a plan, each on top of those before it."""
    lengths, skeleton = planner.lengths, planner.skeleton
    rows = replace(rows, tokens_per_row=lengths.longest)
    yield f"train.tokens_per_row={lengths.longest}", planner, rows
    rows = replace(rows, checkpoint_every=1)
    yield "train.gradient_checkpointing=true", planner, rows
    if has_bf16 and planner.precision == "fp32":
        planner = replace(planner, precision="bf16")
        yield "train.precision=bf16", planner, rows
    if skeleton.num_trained * _GRADIENT_BYTES > skeleton.weight_bytes / 2:
        planner = replace(planner, skeleton=skeleton.with_adapter(config, AdapterConfig()))
        yield "adapter={}", planner, rows
    text = lengths.shape.prompt + max(lengths.shape.completions)
    if text > _ROUNDED_TO:
        shorter = replace(lengths, longest=lengths.longest // 2, shape=lengths.shape.scaled(0.5))
        rows = replace(rows, tokens_per_row=shorter.longest)
        yield f"tokens.max_length={text // 2}", replace(planner, lengths=shorter), rows


def ways_to_fit(
    planner: Planner, plan: MemoryPlan, limit: int, config: Any, *, has_bf16: bool
) -> list[str]:
    """What to change about a plan that does not fit, in words; at least one thing.

    Each says what the run takes with it and those before it. Where all of them are not enough, or
    there are none, the last is a smaller model.
    """
    found = list(changes(planner, plan, limit, config, has_bf16=has_bf16))
    ways = [f"{words} ({in_words(lower.total)})" for words, lower in found]
    is_enough = bool(found) and found[-1][1].total <= limit
    return ways if is_enough else [*ways, "a smaller model"]


def refuse_too_large(
    planner: Planner, plan: MemoryPlan, available: int, config: Any, *, has_bf16: bool
) -> None:
    """Refuse a plan that does not fit into all the memory there is.

    Raises:
        SettingsError: It does not; the message names what would make it fit.
    """
    if plan.total <= available:
        return
    ways = ways_to_fit(planner, plan, available, config, has_bf16=has_bf16)
    raise SettingsError(
        "the run does not fit into memory",
        where="train.memory",
        got=f"{in_words(plan.total)} needed, {in_words(available)} there",
        why=plan.in_words(),
        fix=", and ".join(ways) + "; train.memory=null tries all the same",
    )
