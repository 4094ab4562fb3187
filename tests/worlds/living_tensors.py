"""What the operations of a piece of code make: how large the largest, and how much together."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LivingTensors(TorchDispatchMode):
    """Remembers the largest tensor that any operation makes, and the memory made by allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.allocated = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        known = {t.untyped_storage().data_ptr() for t in self._tensors((args, kwargs or {}))}
        for value in self._tensors(result):
            self.largest = max(self.largest, value.numel())
            if value.untyped_storage().data_ptr() not in known:
                self.allocated += value.untyped_storage().nbytes()
        return result

    def _tensors(self, value: Any) -> Iterator[Tensor]:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            for part in value:
                yield from self._tensors(part)
        elif isinstance(value, dict):
            yield from self._tensors(list(value.values()))
