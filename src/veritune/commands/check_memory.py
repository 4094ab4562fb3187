"""What a run would take of this machine's memory, before anything is loaded: part by part."""

from collections.abc import Sequence

import numpy as np
import torch
from rich.table import Table

from veritune import distributed
from veritune.batches.pack import row_tokens
from veritune.commands.display import Display
from veritune.models.adapters import AdapterConfig
from veritune.models.forward import Sharing
from veritune.models.legality import obstacle_to_rows
from veritune.models.load import ModelSettings
from veritune.models.reference import scoring_budget
from veritune.models.rehearsal import NotRehearsedError, Skeleton
from veritune.tokens.encode import TokenizedRecord
from veritune.training.device_memory import free_memory, in_words, size_in_bytes
from veritune.training.loop import TrainingConfig
from veritune.training.memory_plan import (
    LARGEST_ROW,
    USED_SHARE,
    MemoryPlan,
    Planner,
    RowSettings,
    lengths_of,
    ways_to_fit,
)


def show_memory(
    train: TrainingConfig,
    adapter: AdapterConfig | None,
    settings: ModelSettings,
    groups: Sequence[TokenizedRecord],
    display: Display,
) -> None:
    """Print the plan of a run, and what to change where it does not fit.

    Args:
        train: How the run would train.
        adapter: The adapters it would train, if any.
        settings: The model's.
        groups: The groups as the run would see them, at least one.
        display: Where it is printed.
    """
    device = distributed.device()
    sharing: Sharing = "shared" if train.sharing == "auto" else train.sharing
    if train.sharing == "auto" and obstacle_to_rows(settings.config):
        sharing = "padded"
    sizes = np.array([row_tokens(group, shares_prefix=sharing == "shared") for group in groups])
    share = -(-train.batch_size // distributed.world_size())
    planner = Planner(
        Skeleton(settings.config, adapter=adapter, dropout=train.dropout, device_type=device.type),
        lengths_of(sizes, groups[int(sizes.argmax())], share=share),
        train.resolved_precision,
        sharing,
        LARGEST_ROW[device.type],
        scoring_budget=scoring_budget(device),
    )
    given = None if train.memory is None else size_in_bytes(train.memory)
    available = free_memory(device) if given is None else given
    try:
        plan = _plan(planner, train, int(USED_SHARE * available))
    except NotRehearsedError as error:
        display.header({"memory": f"not known before the run: {error}"})
        return
    display.note("")
    display.console.print(_table(plan, device))
    fits = plan.total <= available
    facts = {
        "memory": f"{in_words(plan.total)} of {in_words(available)} there"
        + ("" if fits else "; it does not fit"),
        "rows": f"up to {plan.rows.tokens_per_row:,} tokens{plan.rows.recomputed}",
    }
    if not fits:
        has_bf16 = distributed.computes_in_bf16()
        ways = ways_to_fit(planner, plan, available, settings.config, has_bf16=has_bf16)
        facts["to change"] = f"\n{' ' * len('to change')}  and ".join(ways)
    display.header(facts)


def _plan(planner: Planner, train: TrainingConfig, limit: int) -> MemoryPlan:
    if train.memory is None:
        every = 1 if train.gradient_checkpointing is True else None
        return planner.plan(RowSettings(train.tokens_per_row or planner.largest_row, every))
    return planner.choose(
        limit, tokens_per_row=train.tokens_per_row, checkpointing=train.gradient_checkpointing
    )


def _table(plan: MemoryPlan, device: torch.device) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(f"memory of training on {device.type}")
    table.add_column("bytes", justify="right")
    table.add_column("in words", justify="right")
    for name, size in {**plan.parts(), "at most, at a time": plan.total}.items():
        table.add_row(name, f"{size:,}", in_words(size))
    return table
