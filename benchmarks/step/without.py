"""Parts of Veritune's step replaced by the plain way, each by itself, to see what it gives.

A process in which one of these was called does not get the part back.
"""

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any

import torch

from veritune.models import adapted_layer, attention, forward
from veritune.training import loop, optimizer

OF_ADAPTERS = "adapted layers in one operation"
"""The part that only a model with adapters has."""


def _attention_by_blocks() -> None:
    attention.KERNELS["blocks"] = attention.KERNELS["loop"]


def _adapted_layers() -> None:
    adapted_layer.fuse_adapted_layers = lambda _: None  # type: ignore[assignment]


def _kept_logits() -> None:
    # As little as may be kept: everything else is computed again in the backward pass.
    forward.BUDGET_BYTES["cpu"] = 1


def _batches_ahead() -> None:
    class NotAhead:
        def __init__(self, items: Iterable[Any]) -> None:
            self._items = items

        def __enter__(self) -> Iterator[Any]:
            return iter(self._items)

        def __exit__(
            self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None
        ) -> None:
            return None

    loop.Prefetch = NotAhead  # type: ignore[assignment, misc]


def _fused_optimizer() -> None:
    adamw = torch.optim.AdamW

    def plain(*arguments: Any, **settings: Any) -> torch.optim.AdamW:
        return adamw(*arguments, **{**settings, "fused": False, "foreach": False})

    optimizer.torch.optim.AdamW = plain  # type: ignore[assignment, misc]


PLAIN_WAYS: dict[str, Callable[[], None]] = {
    "logits kept": _kept_logits,
    "attention by blocks": _attention_by_blocks,
    "batches made ahead": _batches_ahead,
    "fused optimizer": _fused_optimizer,
    OF_ADAPTERS: _adapted_layers,
}
"""By what each takes away."""
