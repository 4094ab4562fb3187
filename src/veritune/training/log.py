"""The log of a run: JSON Lines always, TensorBoard when installed."""

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class RunLog:
    """Appends lines to `metrics.jsonl` and forwards numbers to TensorBoard if that is installed.

    Args:
        run: The run folder.
        after_step: Lines of later steps are removed first: a resumed run makes them again. At 0
            nothing of an earlier attempt stays, TensorBoard's folder included.
    """

    def __init__(self, run: Path, *, after_step: int = 0) -> None:
        self.file = run / "metrics.jsonl"
        self._forget_after(after_step)
        self._stream = self.file.open("a", encoding="utf-8")
        if after_step == 0:
            # TensorBoard shows every file in its folder, so old curves would run through new ones.
            shutil.rmtree(run / "tensorboard", ignore_errors=True)
        self._board = _tensorboard(run / "tensorboard", after_step)

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line; a number that is not finite is written as null, which JSON can hold."""
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in line.items()
        }
        self._stream.write(json.dumps(clean) + "\n")
        self._stream.flush()
        if self._board is not None:
            for key, value in clean.items():
                if key != "step" and isinstance(value, int | float):
                    self._board.add_scalar(key, value, line["step"])

    def close(self) -> None:
        """Flush and close everything that was opened."""
        self._stream.close()
        if self._board is not None:
            self._board.close()

    def _forget_after(self, step: int) -> None:
        if not self.file.exists():
            return
        kept = [
            json.dumps(line) + "\n"
            for line in read_metrics(self.file)
            if line.get("step", 0) <= step
        ]
        beside = self.file.with_name(".metrics.jsonl.writing")
        beside.write_text("".join(kept) if step else "", encoding="utf-8")
        os.replace(beside, self.file)


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last line that was cut by a crash is left out."""
    lines = []
    for text in file.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def _tensorboard(folder: Path, after_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=after_step + 1 if after_step else None)
