"""What memory a device has, what a run took of it, and errors where it has no more."""

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import psutil
import torch
from pydantic import AfterValidator

from veritune.errors import OutOfMemoryError, SettingsError

AUTO = "auto"
_MMAP_THRESHOLD = -3
"""The number of this option of `mallopt`."""

_OWN_PAGES_FROM = 2**20
"""Bytes from which a tensor has pages of its own, which go when it goes."""

_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SIZE = re.compile(rf"(\d+(?:\.\d+)?) ?({'|'.join(_UNITS)})")
_STATUS = Path("/proc/self/status")
_NO_MORE = ("can't allocate memory", "not enough memory", "out of memory")
"""How torch says that an allocation failed, on a CPU and in libraries of a GPU."""


def _check_size(text: str) -> str:
    if text != AUTO and _SIZE.fullmatch(text) is None:
        raise SettingsError(
            "a size of memory is a number and a unit",
            got=text,
            fix="write for example 8GB or 500MB (or GiB, MiB), or auto",
        )
    return text


MemorySize = Annotated[str, AfterValidator(_check_size)]
"""`auto`, or a size such as 8GB."""


def size_in_bytes(size: MemorySize) -> int | None:
    """The bytes that a size names; None for `auto`."""
    found = _SIZE.fullmatch(size)
    return None if found is None else round(float(found[1]) * _UNITS[found[2]])


def in_words(num_bytes: int) -> str:
    """Bytes as a person would say them: 51.2 kB, 512 MB, 3.2 GB, 139 GB."""
    for size, unit in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB")):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes / 1000:.3g} kB"


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still take on a device.

    On a GPU what torch holds without using it counts as free. On a CPU it is the smaller of what
    the machine has available and what the control groups of the process allow, shared equally
    among the processes that `torchrun` started on this machine.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + unused)
    available = int(min([psutil.virtual_memory().available, *_left_in_groups()]))
    return max(0, available) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def held_memory(device: torch.device) -> int:
    """Bytes that this process holds now: tensors on a GPU, resident memory on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process held since `forget_peak`, or since it began."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
        if found is not None:
            return int(found[1]) * 1024
    # Where the system keeps no such number, what is held now is all that is known.
    return held_memory(device)


def forget_peak(device: torch.device) -> None:
    """Let `peak_memory` count from now on, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def return_freed_memory() -> None:
    """Let this process give the memory of freed tensors back at once, where the C library can.

    By itself it keeps what was freed for the next tensors. That saves time, a third of a step here,
    and costs up to as much memory again in holes between tensors that live on.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _OWN_PAGES_FROM)


@contextmanager
def shortage_in_words(where: str, device: torch.device, fix: str) -> Iterator[None]:
    """Turn the errors of an allocation that failed into one that says what to do.

    Args:
        where: What is being done, for the message.
        device: Where it is done.
        fix: What to change.

    Raises:
        OutOfMemoryError: The device had no memory for a tensor.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        wanted = re.search(r"[Tt]ried to allocate ([\d.]+ ?\w+)", str(error))
        asked = "" if wanted is None else f"{wanted[1]} more were asked for, "
        raise OutOfMemoryError(
            f"the memory of {device} is too small for this",
            where=where,
            got=f"{asked}{in_words(held_memory(device))} in use, {in_words(free_memory(device))} "
            "free",
            why="a row needs its activations, its gradients and the optimizer's state at once",
            fix=fix,
        ) from error


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that memory could not be allocated."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in _NO_MORE)


def _left_in_groups(root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Bytes left in every control group of this process that has a limit."""
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in groups:
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            place, limit, used, kept = root, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            place, limit = root / "memory", "memory.limit_in_bytes"
            used, kept = "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        inner = place / name.strip("/")
        for group in (inner, *inner.parents):
            left = _left_in_group(group, limit, used, kept)
            if left is not None:
                yield left
            if group == place:
                break


def _left_in_group(group: Path, limit: str, used: str, kept: str) -> int | None:
    try:
        most = int((group / limit).read_text())
        taken = int((group / used).read_text())
        statistics = (group / "memory.stat").read_text().split()
    except (OSError, ValueError):
        return None
    # Files that were read lie in memory too, and are given up when it is needed.
    pairs = dict(zip(statistics[::2], statistics[1::2], strict=False))
    return most - taken + int(pairs.get(kept, 0))
