"""Iterator of (global batch, position): the records of each optimizer step, in order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from veritune.batches.order import RecordOrder


@dataclass(frozen=True)
class GlobalBatch:
    """The records of one optimizer step over all processes."""

    indices: tuple[int, ...]
    """Records of the step, as indices into the data set."""

    mismatched: tuple[int | None, ...]
    """For each of them, the record whose completion stands under its prompt in the estimate of
    KTO's baseline; None where no other prompt exists. Empty unless asked for."""


def num_steps(num_records: int, batch_size: int, epochs: float) -> int:
    """Optimizer steps in which `epochs` passes over the data are made; the last may be smaller."""
    return max(1, -(-round(epochs * num_records) // batch_size))


class Loader:
    """Batches of records from any position on; iterating yields (batch, position behind it).

    Args:
        order: The stream of records.
        batch_size: Records per step, over all processes.
        last: The stream's end: the number of records that the run sees in all.
        prompts: A key of each record's prompt, for mismatched partners; None asks for none. Of
            many records the keys are numbers in an array.
    """

    def __init__(
        self,
        order: RecordOrder,
        batch_size: int,
        last: int,
        prompts: Sequence[bytes] | NDArray[np.int64] | None = None,
    ) -> None:
        self._order = order
        self._batch_size = batch_size
        self._last = last
        self._prompts = prompts

    def batches(self, position: int = 0) -> Iterator[tuple[GlobalBatch, int]]:
        """Batches from a position of the stream to its end."""
        while position < self._last:
            stop = min(position + self._batch_size, self._last)
            indices = self._order.slice(position, stop)
            mismatched: tuple[int | None, ...] = ()
            if self._prompts is not None:
                mismatched = tuple(
                    self._partner(place, indices, stop) for place in range(len(indices))
                )
            yield GlobalBatch(tuple(indices), mismatched), stop
            position = stop

    def _partner(self, place: int, indices: list[int], stop: int) -> int | None:
        """The next record of the batch, cyclically, with another prompt.

        A batch that holds one prompt only (a batch of one, say) looks on into the stream, until it
        has met every record of a whole epoch.
        """
        assert self._prompts is not None
        own = self._prompts[indices[place]]
        for distance in range(1, len(indices)):
            candidate = indices[(place + distance) % len(indices)]
            if self._prompts[candidate] != own:
                return candidate
        # The rest of this epoch may lack a record; it is then in the next one.
        for position in range(stop, stop + 2 * self._order.num_records):
            candidate = self._order[position]
            if self._prompts[candidate] != own:
                return candidate
        return None
