"""Step by step: a worker makes one step when told to, so that toolkits take turns on a machine."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

_CLEAR_PEAK = "5"


class Turns:
    """A worker's end: what it was asked to do, and the word to go on.

    The report of a worker goes to its first standard output; what libraries print goes to the
    error output.
    """

    def __init__(self) -> None:
        self._reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self.task: dict[str, Any] = json.loads(sys.stdin.readline())
        self._began: float | None = None
        self._peak = 0
        self._asked = time.perf_counter()

    def boundary(self, *, is_last: bool = False) -> None:
        """Between two steps: report the time of the last one and wait for the word to go on.

        Behind the last step too: what a worker does at its end would take time from the others.
        """
        _synchronize()
        now = time.perf_counter()
        if self._began is None:
            self._report({"ready": now - self._asked, "resident_bytes": _status("VmRSS")})
        else:
            self._report({"seconds": now - self._began})
        if is_last:
            self._peak = _peak()
        sys.stdin.readline()
        if self._began is None:
            _clear_peak()
        self._began = time.perf_counter()

    def finish(self, **facts: Any) -> None:
        """The end: peak memory of the steps, and whatever else is known."""
        self._report({"peak_bytes": self._peak, **facts})

    def _report(self, facts: dict[str, Any]) -> None:
        self._reports.write(json.dumps(facts) + "\n")
        self._reports.flush()


def _cuda() -> Any:
    import torch

    return torch.cuda if torch.cuda.is_available() else None


def _synchronize() -> None:
    if (cuda := _cuda()) is not None:
        cuda.synchronize()


def _clear_peak() -> None:
    if (cuda := _cuda()) is not None:
        cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK)


def _peak() -> int:
    """Bytes on the GPU, or of the whole process where there is none."""
    if (cuda := _cuda()) is not None:
        return int(cuda.max_memory_allocated())
    return _status("VmHWM")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"{name} is in every status file of Linux")
