"""Tokenized records on disk: flat arrays that are mapped rather than read, with what was found.

An entry is a folder. It is written beside and renamed when it is whole; one that is damaged or
incomplete is found out by sizes and hashes when it is opened.
"""

import hashlib
import json
import mmap
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from veritune.errors import Problems
from veritune.provenance import hash_file
from veritune.records.read import Found
from veritune.tokens.chunk import TokenCounts
from veritune.tokens.dataset import ARRAYS, TokenizedDataset, dataset_of_arrays
from veritune.tokens.truncate import LengthCounts

_ABOUT = "about.json"
_PROMPTS = "prompts"
_PROMPT_KEY = np.dtype("S16")
_SEEN_BY_AN_OBJECTIVE = tuple(name for name in ARRAYS if not name.startswith("origin"))
_ABANDONED_SECONDS = 24 * 3600.0


class DamagedError(Exception):
    """An entry is not what was written."""


@dataclass(frozen=True)
class Side:
    """Records that are trained on, or those that are held out."""

    dataset: TokenizedDataset
    conversion: str | None
    """What was made of what, in words; None if nothing was converted."""

    prompts: NDArray[Any]
    """Content keys of the distinct prompts, sorted, 16 bytes each."""

    identity: str
    """A hash of everything that an objective sees of the data set."""


@dataclass(frozen=True)
class Entry:
    """What is kept of some files."""

    found: Found
    kept: Side
    held_out: Side | None


def side_folder(folder: Path, name: str) -> Path:
    """Where the arrays of a side of an entry lie: of "kept" or "held_out"."""
    return folder / name


def open_array(folder: Path, name: str) -> BinaryIO:
    """A new file for the numbers of an array."""
    return (folder / f"{name}.bin").open("wb")


def write_prompts(folder: Path, keys: NDArray[Any]) -> None:
    """Keep the content keys of a side's prompts, distinct and sorted."""
    with open_array(folder, _PROMPTS) as file:
        file.write(np.unique(keys.astype(_PROMPT_KEY)).tobytes())


def describe_side(
    folder: Path,
    *,
    kind: str,
    sources: Mapping[tuple[str, str], int],
    counts: TokenCounts,
    max_length: int,
    bos: int | None,
    conversion: str | None,
) -> dict[str, Any]:
    """Everything about a side whose arrays are written; for JSON."""
    files = {name: folder / f"{name}.bin" for name in (*ARRAYS, _PROMPTS)}
    return {
        "kind": kind,
        "sources": [list(source) for source in sources],
        "counts": asdict(counts),
        "max_length": max_length,
        "bos": bos,
        "conversion": conversion,
        "bytes": {name: file.stat().st_size for name, file in files.items()},
        "hashes": {name: hash_file(file) for name, file in files.items()},
    }


def write_about(
    folder: Path,
    made_from: Mapping[str, Any],
    found: Found,
    sides: Mapping[str, Mapping[str, Any]],
) -> None:
    """Finish an entry: what it was made from, what the rows held, and its sides by name."""
    counts = {
        "num_rows": found.num_rows,
        "num_records": found.num_records,
        "num_identical_dropped": found.num_identical_dropped,
        "problems": asdict(found.problems),
    }
    about = {"made_from": made_from, "found": counts, "sides": sides}
    (folder / _ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def read_entry(folder: Path, *, verifies: bool = True) -> Entry:
    """The entry in a folder; its arrays are mapped.

    Args:
        folder: Where it lies.
        verifies: Compare the files with their hashes; without, with their sizes alone.

    Raises:
        FileNotFoundError: There is no such folder.
        DamagedError: The folder holds something else than was written.
    """
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        found = Found(**{**about["found"], "problems": Problems(**about["found"]["problems"])})
        sides = {
            name: _read_side(side_folder(folder, name), side, verifies)
            for name, side in about["sides"].items()
        }
        return Entry(found, sides["kept"], sides.get("held_out"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{type(error).__name__}: {error}") from error


def put_in_place(beside: Path, folder: Path) -> None:
    """Rename a finished entry to its place, unless another process was faster."""
    try:
        read_entry(folder)
    except (FileNotFoundError, DamagedError):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        os.rename(beside, folder)
    except OSError:
        if not (folder / _ABOUT).is_file():
            raise
        shutil.rmtree(beside)


def remove_abandoned(root: Path) -> None:
    """Remove what killed processes left half written a day ago or more."""
    for beside in root.glob(".*"):
        files = [beside, *beside.rglob("*")]
        try:
            newest = max(file.stat().st_mtime for file in files)
        except FileNotFoundError:
            # Its process is at work.
            continue
        if time.time() - newest > _ABANDONED_SECONDS:
            shutil.rmtree(beside, ignore_errors=True)


def _read_side(folder: Path, about: Mapping[str, Any], verifies: bool) -> Side:
    for name in (*ARRAYS, _PROMPTS):
        file = folder / f"{name}.bin"
        if file.stat().st_size != about["bytes"][name]:
            raise DamagedError(f"{file.name} has another size than was written")
        if verifies and hash_file(file) != about["hashes"][name]:
            raise DamagedError(f"{file.name} has another content than was written")
    counts = about["counts"]
    counts["lengths"] = LengthCounts(**counts["lengths"])
    counts["problems"] = Problems(**counts["problems"])
    dataset = dataset_of_arrays(
        {name: _mapped(folder / f"{name}.bin", np.dtype(kind)) for name, kind in ARRAYS.items()},
        kind=about["kind"],
        sources=[(file, unit) for file, unit in about["sources"]],
        counts=TokenCounts(**counts),
        max_length=about["max_length"],
        bos=about["bos"],
    )
    seen = [about["hashes"][name] for name in _SEEN_BY_AN_OBJECTIVE]
    return Side(
        dataset,
        about["conversion"],
        _mapped(folder / f"{_PROMPTS}.bin", _PROMPT_KEY),
        hashlib.blake2b("\n".join(seen).encode(), digest_size=16).hexdigest(),
    )


def _mapped(file: Path, kind: "np.dtype[Any]") -> NDArray[Any]:
    """The numbers in a file, read as they are needed; what is written to them stays in memory."""
    if file.stat().st_size == 0:
        return np.zeros(0, kind)
    with file.open("rb") as opened:
        return np.frombuffer(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY), kind)
