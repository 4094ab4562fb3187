"""Steps and checkpoints, the same for every objective.

What runs between steps (an evaluation, a display) is handed in by the command. The loop ends when
the stream of records ends, or behind the step in which a signal asked it to.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch

from veritune import distributed
from veritune.batches.loader import Loader
from veritune.batches.prefetch import Prefetch
from veritune.models.forward import Precision
from veritune.models.legality import SharingSetting
from veritune.ranges import NonNegativeInt, Positive, PositiveInt
from veritune.training.checkpoint import Position, write_checkpoint
from veritune.training.device_memory import AUTO, MemorySize, shortage_in_words
from veritune.training.log import RunLog
from veritune.training.optimizer import OptimizerConfig
from veritune.training.step import TrainingStep

_DEFAULT_CHECKPOINTS = 10
_STEPS_WORTH_COMPILING = 200
_SMALLER = (
    "lower train.tokens_per_row, or set train.gradient_checkpointing=true or adapter={}; "
    "veritune check with model= and these settings shows what a run then takes"
)


class TrainingConfig(OptimizerConfig):
    """How long, in which portions and in which precision a run trains."""

    epochs: Positive = 1.0
    """Passes over the data; fractions are allowed. Ignored when `steps` is given."""

    steps: PositiveInt | None = None
    """Optimizer steps; null makes as many as `epochs` needs."""

    batch_size: PositiveInt = 16
    """Records (pairs, labels, scored groups) per optimizer step, over all processes."""

    seed: NonNegativeInt = 0
    """The one seed of the run: order of records, adapters, dropout."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`bf16` computes layers in bfloat16 from float32 weights, `fp32` in float32; `auto` is bf16 on
    a GPU that has it and fp32 elsewhere. Log-probabilities and weights are float32 in any case."""

    memory: MemorySize | None = AUTO
    """What a run may take of the device: a size (8GB), or `auto` for what is free. A plan that does
    not fit is refused, and rows are chosen to fill at most nine tenths; null does neither."""

    tokens_per_row: PositiveInt | None = None
    """Token budget of a row, which is one forward and backward pass; null takes the largest that
    gains speed and fits `memory`. The result changes by rounding only. A longer group gets a row of
    its own."""

    sharing: SharingSetting = "auto"
    """How groups are laid out: `shared` prompts, `packed` without sharing, `padded` rows; `auto`
    takes the fastest that gives the model's own log-probabilities, and says so."""

    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Compute activations again in the backward pass: less memory, about a third more time. `auto`
    does so where the longest group does not fit `memory` otherwise, in as few layers as will do."""

    compile: bool | Literal["auto"] = "auto"
    """Compile the layers: the first step takes about a minute longer, later ones less. `auto` does
    on a GPU, in runs of at least 200 steps, as far as torch can compile them. The result changes by
    rounding only."""

    dropout: bool = False
    """Leave the model's dropout on. Off by default: completions are compared with the reference."""

    temperature: Positive = 1.0
    """Logits of policy and reference are divided by it before the softmax (EXO uses 0.8)."""

    checkpoint_every: PositiveInt | None = None
    """Steps between checkpoints; null makes ten in the run. The last step has one in any case."""

    keep_checkpoints: PositiveInt = 1
    """Newest checkpoints that are kept."""

    save_dtype: Literal["fp32", "bf16"] = "fp32"
    """Number type of the saved model, `fp32` or `bf16`. Updates of preference learning are often
    smaller than bfloat16 can hold, so rounding the result may undo the run."""

    @property
    def resolved_precision(self) -> Precision:
        """`precision` with `auto` decided for this machine."""
        if self.precision != "auto":
            return self.precision
        return "bf16" if distributed.computes_in_bf16() else "fp32"

    def compiles(self, device: torch.device, total_steps: int) -> bool:
        """`compile` with `auto` decided for a device and a run."""
        if self.compile == "auto":
            return device.type == "cuda" and total_steps >= _STEPS_WORTH_COMPILING
        return self.compile


class Interrupted(Exception):
    """A signal asked the run to stop; a checkpoint was written behind the current step."""

    def __init__(self, signal_number: int, folder: Path) -> None:
        super().__init__(
            f"stopped by {signal.Signals(signal_number).name}; continues from {folder}"
        )
        self.exit_code = 128 + signal_number
        self.folder = folder


def run_loop(
    step: TrainingStep,
    loader: Loader,
    log: RunLog | None,
    *,
    run: Path,
    start: Position,
    total_steps: int,
    config: TrainingConfig,
    evaluate: Callable[[int], Mapping[str, Any] | None],
    on_step: Callable[[Mapping[str, Any]], None],
) -> Position:
    """Make the steps of a run from a position on.

    The line of a step says beside its `seconds` how many seconds it `waited` for its batch, which
    is prepared while the step before it computes; the first batch of all is always waited for.

    Args:
        step: Makes one optimizer step.
        loader: Gives the records of each step.
        log: Where lines go; None on ranks that do not write.
        run: The run folder.
        start: Where to begin.
        total_steps: The step behind which the run ends.
        config: How often checkpoints are written, and how many kept.
        evaluate: Called behind each step with its number; gives a line for the log, or None.
        on_step: Called with the line of each step.

    Returns:
        Where the run ended.

    Raises:
        Interrupted: SIGINT, SIGTERM or SIGHUP arrived; a checkpoint was written.
    """
    if start.step == total_steps:
        return start
    every = config.checkpoint_every or max(1, math.ceil(total_steps / _DEFAULT_CHECKPOINTS))
    model, optimizer = step.objective_pass.model.hf, step.optimizer
    position = start
    prepared = (
        (step.objective_pass.prepare(batch), behind)
        for batch, behind in loader.batches(start.records)
    )
    asked = time.perf_counter()
    with _signals() as received, Prefetch(prepared) as batches:
        for batch, behind in batches:
            began = time.perf_counter()
            with shortage_in_words(f"step {position.step + 1}", distributed.device(), _SMALLER):
                line = step.run(position.step + 1, batch)
            line["seconds"] = time.perf_counter() - began
            line["waited"] = began - asked
            position = Position(position.step + 1, behind, step.objective_pass.running.state)
            if log is not None:
                log.write(line)
            on_step(line)
            measured = evaluate(position.step)
            if measured is not None and log is not None:
                log.write(measured)
            is_last = position.step == total_steps
            stop = distributed.global_any(bool(received)) and not is_last
            # Behind the last step too: a crash while the model is saved costs no step.
            if stop or is_last or position.step % every == 0:
                folder = write_checkpoint(
                    run, position, model, optimizer, keep=config.keep_checkpoints
                )
                if stop:
                    raise Interrupted(received[0] if received else signal.SIGTERM, folder)
            if is_last:
                break
            asked = time.perf_counter()
    return position


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Note SIGINT, SIGTERM and SIGHUP instead of dying inside a step; a second one kills.

    Where SIGHUP is ignored it stays so: `nohup` asked for it.
    """
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    previous: dict[int, Any] = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if (handler := signal.getsignal(number)) != signal.SIG_IGN or number != signal.SIGHUP
    }
    try:
        for number in previous:
            signal.signal(number, note)
    except ValueError:
        # Not in the main thread: signals are the caller's business.
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
