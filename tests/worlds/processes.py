"""Commands started as processes of their own, as users start them."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_SOURCES = Path(__file__).parents[2] / "src"
_DEADLINE_SECONDS = 300
VERITUNE = [sys.executable, "-m", "veritune"]
TWO_RANKS = [
    *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
]


def start(words: Sequence[object]) -> subprocess.Popen[str]:
    """A process with one thread, that sees this checkout and no accelerator or network."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(_SOURCES),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
    }
    return subprocess.Popen(
        [str(word) for word in words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    try:
        out, err = process.communicate(timeout=_DEADLINE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


def wait_for_lines(process: subprocess.Popen[str], file: Path, number: int) -> None:
    """Return when the file has so many lines; the process must still be at work then."""
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while time.monotonic() < deadline:
        if file.exists() and file.read_bytes().count(b"\n") >= number:
            assert process.poll() is None, "the run is longer than that"
            return
        assert process.poll() is None, finish(process)
        time.sleep(0.002)
    raise AssertionError(f"{file} never had {number} lines")
