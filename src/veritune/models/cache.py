"""Reference log-probabilities on disk, keyed by content.

A cache folder belongs to one reference scored in one way (weights, precision, temperature, layout,
libraries). Inside it, values are keyed by the tokenized group, so data sets may overlap, grow and
be shuffled. Values are added as whole files, written beside and then renamed; a file that is
damaged is left out with a warning and its groups are scored again.

In memory a group is a row of four flat arrays: its sorted key, and the file and place of its
values, which are mapped from the disk. A million groups take some thirty megabytes.
"""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from veritune.errors import ReferenceCacheError, VerituneWarning, unwritable_cache

_FORMAT = "2"
KEY_BYTES = 16
"""Bytes of the key of a group."""

Written = TypeVar("Written")
Values = NDArray[np.float32]
Keys = NDArray[Any]
"""Keys of groups, shape (N,), 16 bytes each; they compare and sort as bytes."""


def default_cache_folder() -> Path:
    """`$VERITUNE_CACHE`, or `veritune` in the user's cache folder."""
    named = os.environ.get("VERITUNE_CACHE")
    if named:
        return Path(named).expanduser()
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "veritune"


class ReferenceCache:
    """Per-token log-probabilities of one reference, by the key of the tokenized group.

    Args:
        root: Folder of all caches.
        identity: Everything that the values depend on beside the tokens, as plain strings.
    """

    def __init__(self, root: Path, identity: Mapping[str, str]) -> None:
        about = json.dumps({**identity, "format": _FORMAT}, sort_keys=True, indent=1)
        name = hashlib.blake2b(about.encode(), digest_size=12).hexdigest()
        self.folder = root / "reference" / name
        self._about = about
        self._files: list[Values] = []
        none = np.zeros(0, np.int64)
        self._index = _Index(keys_of([]), none.astype(np.int32), none, none.astype(np.int32))
        self._unsorted: list[_Index] = []
        self._read: set[str] = set()

    def load(self) -> None:
        """Read what other runs or ranks have added."""
        for file in sorted(self.folder.glob("values-*.safetensors")):
            if file.name not in self._read:
                self._read.add(file.name)
                self._load_file(file)

    def __contains__(self, key: bytes) -> bool:
        return bool(self.holds(keys_of([key]))[0])

    def __len__(self) -> int:
        return len(self._sorted_index().keys)

    def holds(self, keys: Keys) -> NDArray[np.bool_]:
        """Which of the groups have values here."""
        return self._find(keys)[1]

    def get(self, key: bytes, num_tokens: int) -> Values:
        """Log-probabilities of the group's loss-bearing tokens, completion behind completion.

        Raises:
            ReferenceCacheError: The group is missing, or has another number of values.
        """
        return self.gather(keys_of([key]), np.array([num_tokens]))

    def gather(self, keys: Keys, num_tokens: NDArray[np.int64]) -> Values:
        """Log-probabilities of several groups, one behind the other; a copy.

        Args:
            keys: The groups.
            num_tokens: Loss-bearing tokens of each.

        Raises:
            ReferenceCacheError: A group is missing, or has another number of values.
        """
        index = self._sorted_index()
        places, is_held = self._find(keys)
        if not is_held.all():
            raise self._hole("missing", None)
        files, starts, counts = index.files[places], index.starts[places], index.counts[places]
        if (counts != num_tokens).any():
            wrong = int(np.argmax(counts != num_tokens))
            raise self._hole(
                "of another length", f"{counts[wrong]} values for {num_tokens[wrong]} tokens"
            )
        pieces = [
            self._files[file][start : start + count]
            for file, start, count in zip(
                files.tolist(), starts.tolist(), counts.tolist(), strict=True
            )
        ]
        return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)

    def check_writable(self) -> None:
        """Make the folder and try it, before work is put into values that could not be kept.

        Raises:
            SettingsError: The folder cannot be made, or no file can be written into it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise unwritable_cache(
                self.folder, "the reference's log-probabilities are", error
            ) from error

    def add(self, entries: Mapping[bytes, Values]) -> None:
        """Keep the values of groups, on disk and in memory.

        Raises:
            ReferenceCacheError: Some value is not a finite number.
        """
        if not entries:
            return
        for values in entries.values():
            if not np.isfinite(values).all():
                raise ReferenceCacheError(
                    "the reference gives a log-probability that is not finite",
                    where=self.folder,
                    got=float(values[~np.isfinite(values)][0]),
                    why="its weights are damaged, or its precision overflows",
                    fix="check the reference model; try train.precision=fp32",
                )
        # In the order of their keys: the same groups make the same file, whoever scored them.
        ordered = sorted(entries)
        keys = np.frombuffer(b"".join(ordered), np.uint8).reshape(-1, KEY_BYTES)
        ends = np.cumsum([len(entries[key]) for key in ordered], dtype=np.int64)
        flat = np.concatenate([entries[key] for key in ordered]).astype(np.float32)
        digest = hashlib.blake2b(keys.tobytes(), digest_size=8).hexdigest()
        file = self.folder / f"values-{digest}.safetensors"
        self.folder.mkdir(parents=True, exist_ok=True)
        about = self.folder / "about.json"
        if not about.exists():
            _write_beside(about, lambda path: path.write_text(self._about + "\n"))
        metadata = {"checksum": _checksum(keys, ends, flat)}
        tensors: dict[str, NDArray[Any]] = {"keys": keys, "ends": ends, "values": flat}

        def write(path: Path) -> Values:
            save_file(tensors, path, metadata)
            return _mapped_values(path)

        self._read.add(file.name)
        self._take(keys, ends, _write_beside(file, write))

    def _load_file(self, file: Path) -> None:
        try:
            # Read for the checksum, which touches everything; mapped for use, which does not.
            with safe_open(file, framework="numpy") as opened:
                keys, ends, values = (opened.get_tensor(n) for n in ("keys", "ends", "values"))
                checksum = (opened.metadata() or {}).get("checksum")
            if checksum != _checksum(keys, ends, values):
                self._warn_damaged(file, "its checksum differs")
                return
            mapped = _mapped_values(file)
        except (SafetensorError, OSError, ValueError) as error:
            self._warn_damaged(file, str(error))
            return
        self._take(keys, ends, mapped)

    def _take(self, keys: NDArray[np.uint8], ends: NDArray[np.int64], values: Values) -> None:
        """Put the groups of a file behind what is known; they are sorted in when asked for."""
        counts = np.diff(ends, prepend=0)
        number = len(self._files)
        self._files.append(values)
        self._unsorted.append(
            _Index(
                np.ascontiguousarray(keys).view(f"V{KEY_BYTES}")[:, 0],
                np.full(len(ends), number, np.int32),
                ends - counts,
                counts.astype(np.int32),
            )
        )

    def _sorted_index(self) -> "_Index":
        if self._unsorted:
            # The newest first: of values that were scored twice, they win.
            self._index = _Index.of([*reversed(self._unsorted), self._index])
            self._unsorted = []
        return self._index

    def _find(self, keys: Keys) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Where the keys stand in the index, and whether they do; other places say nothing."""
        index = self._sorted_index()
        if len(index.keys) == 0:
            return np.zeros(len(keys), np.int64), np.zeros(len(keys), np.bool_)
        places = np.minimum(np.searchsorted(index.keys, keys), len(index.keys) - 1)
        return places, index.keys[places] == keys

    def _hole(self, what: str, got: str | None) -> ReferenceCacheError:
        return ReferenceCacheError(
            f"the reference log-probabilities of a group are {what}",
            where=self.folder,
            got=got,
            why="training on a hole would be training against no reference",
            fix="remove the folder; it is made again",
        )

    def _warn_damaged(self, file: Path, reason: str) -> None:
        warnings.warn(
            f"{file} is damaged ({reason}); its groups are scored again",
            VerituneWarning,
            stacklevel=4,
        )
        self._read.discard(file.name)


def keys_of(keys: Iterable[bytes]) -> Keys:
    """Keys of groups as one flat array."""
    return np.frombuffer(b"".join(keys), f"V{KEY_BYTES}")


@dataclass(frozen=True)
class _Index:
    """Where the values of N groups are, by sorted key."""

    keys: Keys
    files: NDArray[np.int32]
    starts: NDArray[np.int64]
    counts: NDArray[np.int32]

    @classmethod
    def of(cls, parts: Sequence["_Index"]) -> "_Index":
        """All of them sorted; of groups with the same key, the first."""
        keys, first = np.unique(np.concatenate([part.keys for part in parts]), return_index=True)
        return cls(
            keys,
            np.concatenate([part.files for part in parts])[first],
            np.concatenate([part.starts for part in parts])[first],
            np.concatenate([part.counts for part in parts])[first],
        )


def _mapped_values(file: Path) -> Values:
    """The values of a file, mapped: they take memory that the system can have back."""
    with safe_open(file, framework="pt") as opened:
        values: Values = opened.get_tensor("values").numpy()
    return values


def _checksum(*arrays: NDArray[Any]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _write_beside(file: Path, write: Callable[[Path], Written]) -> Written:
    """Write under another name and rename, so that no reader sees half a file."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    written = write(beside)
    os.replace(beside, file)
    return written
