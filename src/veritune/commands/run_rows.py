"""The rows of a run: chosen by the memory there is, tried, and kept for when the run goes on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from veritune import distributed
from veritune.commands.display import Display
from veritune.commands.train_settings import TrainConfig
from veritune.errors import OutOfMemoryError
from veritune.models.forward import CausalModel
from veritune.models.load import checkpoint_activations
from veritune.models.rehearsal import NotRehearsedError, Skeleton
from veritune.tokens.dataset import TokenizedDataset
from veritune.training.device_memory import (
    free_memory,
    held_memory,
    in_words,
    peak_memory,
    return_freed_memory,
    size_in_bytes,
)
from veritune.training.dry_run import dry_run, largest_row
from veritune.training.memory_plan import (
    LARGEST_ROW,
    OPTIMIZER_BYTES,
    USED_SHARE,
    MemoryPlan,
    Planner,
    RowSettings,
    group_tokens,
    lengths_of,
    refuse_too_large,
)

_NOISE = 64 * 10**6
"""Bytes that resident memory grows by code that runs for the first time, whatever the row."""

_PLENTY = 0.5
"""A plan below this share of the memory needs no trial on a CPU, where one takes a while."""


@dataclass(frozen=True)
class MemoryBefore:
    """The memory of the device before the model was loaded."""

    free: int
    held: int


def memory_before() -> MemoryBefore:
    """What is free and held now."""
    device = distributed.device()
    return MemoryBefore(free_memory(device), held_memory(device))


@dataclass(frozen=True)
class RunRows:
    """How a run forms its rows, and why."""

    settings: RowSettings
    plan: MemoryPlan | None
    """None where the model cannot be followed without its weights."""

    available: int | None
    """Bytes that the run may take, its weights among them; None asks nothing."""

    is_new: bool
    """Whether the run begins; one that goes on has the rows that it began with."""

    is_chosen: bool
    """Whether the budget of a row follows from the memory, and may be lowered."""

    before: MemoryBefore
    earlier_peak: int = 0
    """The peak of what the run did before its rows were tried."""

    @property
    def limit(self) -> int | None:
        """What a plan may fill of it."""
        return None if self.available is None else int(USED_SHARE * self.available)

    @property
    def has_plenty(self) -> bool:
        """Whether the plan leaves half of the memory, as much as an allocator can waste."""
        if self.available is None or self.plan is None:
            return self.available is None
        return self.plan.total < _PLENTY * self.available

    def facts(self) -> dict[str, str]:
        """Budget and plan, for the header of a run."""
        chosen = " (by train.memory)" if self.is_chosen else ""
        rows = f"up to {self.settings.tokens_per_row:,} tokens{chosen}{self.settings.recomputed}"
        told = {"rows": rows}
        if self.plan is not None:
            there = "" if self.available is None else f"; {in_words(self.available)} there"
            told["memory"] = f"{self.plan.in_words()}{there}"
        return told

    def record(self) -> dict[str, Any]:
        """What a run that continues must know."""
        return asdict(self.settings)


def settle_rows(
    config: TrainConfig,
    model: CausalModel,
    dataset: TokenizedDataset,
    before: MemoryBefore,
    *,
    has_other_reference: bool,
    scoring_budget: int,
    recorded: Mapping[str, Any] | None,
) -> RunRows:
    """Rows whose plan fits; the same on every rank.

    Args:
        config: The settings of the run.
        model: The policy, in the layout that it bears, before adapters are attached.
        dataset: What is trained on.
        before: The memory before the model was loaded.
        has_other_reference: Whether another model is loaded beside the policy to be scored.
        scoring_budget: Rows of the reference hold so many times the tokens; 0 scores none.
        recorded: What the run that continues began with.

    Raises:
        SettingsError: No rows fit.
    """
    train, device = config.train, model.device
    sizes = group_tokens(dataset, model.sharing)
    share = -(-train.batch_size // distributed.world_size())
    skeleton = Skeleton(
        model.hf.config, adapter=config.adapter, dropout=train.dropout, device_type=device.type
    )
    planner = Planner(
        skeleton,
        lengths_of(sizes, dataset[int(sizes.argmax())], share=share),
        model.precision,
        model.sharing,
        LARGEST_ROW[device.type],
        # Nearly always of the policy's own size; its config is not read twice for the rest.
        skeleton.weight_bytes if has_other_reference else 0,
        scoring_budget,
    )
    available = None if train.memory is None else available_memory(train.memory, before, planner)
    given = RowSettings(
        train.tokens_per_row or LARGEST_ROW[device.type],
        1 if train.gradient_checkpointing is True else None,
    )
    if recorded is not None:
        given = RowSettings(**recorded)
    is_chosen = recorded is None and available is not None and train.tokens_per_row is None
    rows = RunRows(given, None, available, recorded is None, is_chosen, before)
    try:
        if rows.limit is None or not rows.is_new:
            plan = planner.plan(given)
        else:
            plan = planner.choose(
                rows.limit,
                tokens_per_row=train.tokens_per_row,
                checkpointing=train.gradient_checkpointing,
            )
        if available is not None:
            has_bf16 = distributed.computes_in_bf16()
            refuse_too_large(planner, plan, available, model.hf.config, has_bf16=has_bf16)
    except NotRehearsedError:
        return rows
    rows = replace(rows, settings=plan.rows, plan=plan)
    if device.type == "cpu" and not rows.has_plenty:
        return_freed_memory()
    return rows


def available_memory(size: str, before: MemoryBefore, planner: Planner) -> int:
    """Bytes that a run may take, its weights among them; the least of all ranks."""
    given = size_in_bytes(size)
    # What was read since is taken; what the weights took is part of the plan.
    now = free_memory(distributed.device()) + planner.skeleton.weight_bytes
    return distributed.smallest(min(before.free, now) if given is None else given)


def try_rows(
    rows: RunRows,
    config: TrainConfig,
    model: CausalModel,
    dataset: TokenizedDataset,
    display: Display,
) -> RunRows:
    """Carry the largest row through the model, and lower the budget until one fits.

    Left out where a plan is far below what there is on a CPU, and where nothing may be changed.

    Raises:
        OutOfMemoryError: Not even the smallest row fits.
    """
    available = rows.available
    if available is None or not rows.is_new:
        return rows
    if rows.has_plenty and model.device.type == "cpu":
        return rows
    sizes = group_tokens(dataset, model.sharing)
    share = -(-config.train.batch_size // distributed.world_size())
    parameters = list(model.hf.parameters())
    weights = sum(p.numel() * p.element_size() for p in parameters)
    reserved = OPTIMIZER_BYTES * sum(p.numel() for p in parameters if p.requires_grad)
    rows = replace(rows, earlier_peak=peak_memory(model.device))
    while True:
        settings = rows.settings
        groups = largest_row(dataset, sizes, settings.tokens_per_row, share)
        taken = dry_run(model, groups, reserved)
        fits = taken is not None and weights + taken <= available + _NOISE
        if not distributed.global_any(not fits):
            shown = "" if taken is None else f" {in_words(weights + taken)}"
            display.note(f"trial of the largest row: the run takes{shown}")
            return rows
        smaller = _smaller(rows, int(sizes.max()), config)
        if smaller is None:
            raise OutOfMemoryError(
                "the largest group of the data does not fit into memory",
                where="trial of the largest row",
                got=None if taken is None else in_words(weights + taken),
                why=f"{in_words(available)} are there",
                fix="set adapter={}, lower tokens.max_length, or take a smaller model",
            )
        if smaller.checkpoint_every != settings.checkpoint_every:
            checkpoint_activations(model.hf)
        rows = replace(rows, settings=smaller)
        display.note(
            f"trial: rows of {settings.tokens_per_row} tokens do not fit; trying rows "
            f"{rows.facts()['rows']}"
        )


def _smaller(rows: RunRows, longest: int, config: TrainConfig) -> RowSettings | None:
    """Rows that take less than these; None if there are none."""
    settings = rows.settings
    if rows.is_chosen and settings.tokens_per_row > longest:
        return replace(settings, tokens_per_row=max(longest, settings.tokens_per_row * 3 // 4))
    if config.train.gradient_checkpointing == "auto" and settings.checkpoint_every != 1:
        return replace(settings, checkpoint_every=1)
    return None


def memory_taken(rows: RunRows) -> tuple[dict[str, Any], str]:
    """The peak of the run beside its plan, as facts and in words."""
    device = distributed.device()
    peak = max(rows.earlier_peak, peak_memory(device))
    facts: dict[str, Any] = {"device": device.type, "peak_bytes": peak}
    text = f"memory: at most {in_words(peak)}"
    if rows.plan is not None:
        # On a CPU all of the program counts, with what it held before there was a model.
        planned = rows.plan.total + (rows.before.held if device.type == "cpu" else 0)
        facts |= {"planned_bytes": planned, "parts": rows.plan.parts()}
        text += f", planned {in_words(planned)}"
        if device.type == "cpu":
            text += f" ({in_words(rows.before.held)} of it this program without a model)"
            if rows.has_plenty:
                text += "; freed memory was kept for reuse, as there was plenty"
    return facts, text
