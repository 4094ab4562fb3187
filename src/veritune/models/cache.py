"""Reference log-probabilities on disk, keyed by content.

A cache folder belongs to one reference scored in one way (weights, precision, temperature, layout,
libraries). Inside it, values are keyed by the tokenized group, so data sets may overlap, grow and
be shuffled. Values are added as whole files, written beside and then renamed; a file that is
damaged is left out with a warning and its groups are scored again.
"""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from veritune.errors import ReferenceCacheError, SettingsError, VerituneWarning

_FORMAT = "2"
_KEY_BYTES = 16
Values = NDArray[np.float32]


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
        self._values: dict[bytes, Values] = {}
        self._read: set[str] = set()

    def load(self) -> None:
        """Read what other runs or ranks have added."""
        for file in sorted(self.folder.glob("values-*.safetensors")):
            if file.name not in self._read:
                self._read.add(file.name)
                self._load_file(file)

    def __contains__(self, key: bytes) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: bytes, num_tokens: int) -> Values:
        """Log-probabilities of the group's loss-bearing tokens, completion behind completion.

        Raises:
            ReferenceCacheError: The group is missing, or has another number of values.
        """
        values = self._values.get(key)
        if values is None or len(values) != num_tokens:
            raise ReferenceCacheError(
                "the reference log-probabilities of a group are "
                + ("missing" if values is None else "of another length"),
                where=self.folder,
                got=None if values is None else f"{len(values)} values for {num_tokens} tokens",
                why="training on a hole would be training against no reference",
                fix="remove the folder; it is made again",
            )
        return values

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
            raise SettingsError(
                "the cache folder cannot be written",
                where="cache",
                got=str(self.folder),
                why=f"the reference's log-probabilities are kept there ({error})",
                fix="set cache=…, or the environment variable VERITUNE_CACHE, to a folder that can "
                "be written",
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
        keys = np.frombuffer(b"".join(entries), np.uint8).reshape(-1, _KEY_BYTES)
        ends = np.cumsum([len(values) for values in entries.values()], dtype=np.int64)
        flat = np.concatenate(list(entries.values())).astype(np.float32)
        digest = hashlib.blake2b(keys.tobytes(), digest_size=8).hexdigest()
        file = self.folder / f"values-{digest}.safetensors"
        self.folder.mkdir(parents=True, exist_ok=True)
        about = self.folder / "about.json"
        if not about.exists():
            _write_beside(about, lambda path: path.write_text(self._about + "\n"))
        metadata = {"checksum": _checksum(keys, ends, flat)}
        tensors: dict[str, NDArray[Any]] = {
            "keys": np.ascontiguousarray(keys),
            "ends": ends,
            "values": flat,
        }
        _write_beside(file, lambda path: save_file(tensors, path, metadata))
        self._read.add(file.name)
        self._values.update(entries)

    def _load_file(self, file: Path) -> None:
        try:
            with safe_open(file, framework="numpy") as opened:
                keys, ends, values = (opened.get_tensor(n) for n in ("keys", "ends", "values"))
                checksum = (opened.metadata() or {}).get("checksum")
        except (SafetensorError, OSError, ValueError) as error:
            self._warn_damaged(file, str(error))
            return
        if checksum != _checksum(keys, ends, values):
            self._warn_damaged(file, "its checksum differs")
            return
        starts = np.concatenate([[0], ends[:-1]])
        for key, start, end in zip(keys, starts, ends, strict=True):
            self._values[key.tobytes()] = values[start:end]

    def _warn_damaged(self, file: Path, reason: str) -> None:
        warnings.warn(
            f"{file} is damaged ({reason}); its groups are scored again",
            VerituneWarning,
            stacklevel=4,
        )
        self._read.discard(file.name)


def _checksum(*arrays: NDArray[np.generic]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _write_beside(file: Path, write: Callable[[Path], object]) -> None:
    """Write under another name and rename, so that no reader sees half a file."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    write(beside)
    os.replace(beside, file)
