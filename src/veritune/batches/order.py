"""Seeded order of records that can begin anywhere.

The order is one endless stream: a fresh permutation per epoch, epoch behind epoch. A position in
it is a single number, so a resumed run, or one on another number of processes, meets exactly the
records it would have met.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from veritune.seeds import stream


class RecordOrder:
    """Which record comes at which position of the stream.

    Labelled data are stratified: every stretch of the stream holds both classes in the data's
    proportion, up to rounding, and the order within each class is random.

    Args:
        num_records: Records in the data set, at least 1.
        seed: The run's seed.
        desirable: Labels of unpaired data, shape (N,); None for other kinds.
    """

    def __init__(
        self, num_records: int, seed: int, desirable: NDArray[np.bool_] | None = None
    ) -> None:
        assert num_records >= 1, "an order needs a record"
        self.num_records = num_records
        self._seed = seed
        self._classes = (
            [np.arange(num_records)]
            if desirable is None or len(desirable) == 0
            else [np.flatnonzero(desirable), np.flatnonzero(~desirable)]
        )
        self._epochs: dict[int, NDArray[np.int64]] = {}

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self.num_records)
        return int(self._epoch(epoch)[place])

    def slice(self, start: int, stop: int) -> list[int]:
        """Records at positions start … stop-1."""
        pieces: list[int] = []
        while start < stop:
            epoch, place = divmod(start, self.num_records)
            piece = self._epoch(epoch)[place : place + stop - start]
            pieces += piece.tolist()
            start += len(piece)
        return pieces

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._epochs:
            # Batches may cross into the next epoch, never back by two.
            for old in [e for e in self._epochs if e < epoch - 1]:
                del self._epochs[old]
            self._epochs[epoch] = self._permutation(epoch)
        return self._epochs[epoch]

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        generator = stream(self._seed, "order", epoch)
        members, keys = [], []
        for members_of_class in self._classes:
            size = len(members_of_class)
            shuffled = torch.randperm(size, generator=generator).numpy()
            offset = float(torch.rand((), generator=generator))
            members.append(members_of_class[shuffled])
            # Member k of n stands at (k + offset) / n of the way: even spacing, random phase.
            keys.append((np.arange(size) + offset) / max(size, 1))
        order = np.argsort(np.concatenate(keys), kind="stable")
        return np.concatenate(members)[order].astype(np.int64)
