"""What the user sees while a command works: a header, progress with the time left, notes.

On a terminal progress is a live bar; in a file it is a line now and then. Only the main rank
speaks.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from veritune import distributed

_SECONDS_BETWEEN_LINES = 10.0
_WIDTH_OF_A_FILE = 100
_SHOWN = ("loss", "rewards/accuracies", "rewards/margins")


class Display:
    """Header, notes and progress of a command."""

    def __init__(self, *, quiet: bool = False) -> None:
        # Text of the user's data is printed: `:smile:` stays what it is.
        self.console = Console(
            quiet=quiet or not distributed.is_main_rank(), highlight=False, emoji=False
        )
        if not self.console.is_terminal and "COLUMNS" not in os.environ:
            self.console.width = _WIDTH_OF_A_FILE

    def header(self, facts: Mapping[str, str]) -> None:
        """Name and value, one pair a line."""
        width = max(len(name) for name in facts)
        for name, value in facts.items():
            self.console.print(f"[bold]{name:<{width}}[/bold]  ", end="", soft_wrap=True)
            self.console.print(value, markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def counting(self, what: str) -> Iterator[Callable[[int, int | None], None]]:
        """Progress of work: call the result with (done, of), or (done, None) where the amount is
        not known."""
        with self._progress(TextColumn("{task.fields[rate]}")) as progress:
            task = progress.add_task(what, total=None, rate="")
            started = last = time.monotonic()

            def update(done: int, total: int | None) -> None:
                nonlocal last
                now = time.monotonic()
                rate = rate_in_words(done / max(now - started, 1e-3))
                progress.update(task, completed=done, total=total, rate=rate)
                if not self.console.is_terminal and now - last > _SECONDS_BETWEEN_LINES:
                    last = now
                    known = "" if total is None else f"/{total}"
                    left = "" if total is None else f", {_left(started, now, done, total)} left"
                    self.note(f"{what}: {done}{known}, {rate}{left}")

            yield update

    @contextmanager
    def training(
        self, total_steps: int, done: int
    ) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """Progress of optimizer steps: call the result with each step's line of metrics."""
        with self._progress(TextColumn("{task.fields[shown]}")) as progress:
            task: TaskID = progress.add_task("step", total=total_steps, completed=done, shown="")
            started = last = time.monotonic()
            first = done

            def update(line: Mapping[str, Any]) -> None:
                nonlocal last
                step = line["step"]
                shown = step_in_words(line)
                progress.update(task, completed=step, shown=shown)
                now = time.monotonic()
                is_due = now - last > _SECONDS_BETWEEN_LINES or step in (first + 1, total_steps)
                if not self.console.is_terminal and is_due:
                    last = now
                    left = _left(started, now, step - first, total_steps - first)
                    self.note(f"step {step}/{total_steps}  {shown}  {left} left")

            yield update

    def _progress(self, *columns: TextColumn) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            *columns,
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal or self.console.quiet,
        )


def step_in_words(line: Mapping[str, Any]) -> str:
    """The few numbers of a step that are worth watching."""
    parts = [f"{name.split('/')[-1]} {line[name]:.4g}" for name in _SHOWN if name in line]
    if line.get("seconds"):
        parts.append(f"{line['tokens'] / line['seconds']:,.0f} tokens/s")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as a person would say them: 8 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def rate_in_words(rate: float) -> str:
    """A number a second as a person would say it."""
    return f"{rate:,.0f} a second" if rate >= 10 else f"{rate:.2g} a second"


def _left(started: float, now: float, done: int, total: int) -> str:
    return duration((now - started) / max(done, 1) * (total - done))
