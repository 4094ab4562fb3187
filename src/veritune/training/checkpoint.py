"""Checkpoints: all state, written beside and then renamed; exact resume.

A checkpoint holds the trained parameters, the optimizer's state, the position in the stream of
records and the running mean that some objectives take as their baseline. The schedule, the order of
records and every random draw are functions of step and seed, so there is nothing else to keep. The
manifest is written last: a checkpoint that has one is whole.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from veritune import distributed
from veritune.errors import CheckpointError
from veritune.provenance import hash_file

_WEIGHTS, _OPTIMIZER, _MANIFEST = "trained.safetensors", "optimizer.pt", "manifest.json"


@dataclass(frozen=True)
class Position:
    """Where a run stands."""

    step: int
    """Optimizer steps made."""

    records: int
    """Position in the stream of records."""

    log_ratios: list[list[float]] = field(default_factory=lambda: [[0.0, 0.0], [0.0, 0.0]])
    """State of `RunningLogRatio`."""


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run / "checkpoints" / f"step-{step}"


def write_checkpoint(
    run: Path,
    position: Position,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    keep: int,
) -> Path:
    """Write a checkpoint on the main rank, then remove all but the newest `keep`.

    The optimizer's state is the same on every rank, because gradients are summed before it.
    """
    folder = checkpoint_folder(run, position.step)
    if distributed.is_main_rank():
        beside = folder.with_name(f".{folder.name}.writing")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        save_file(trained_parameters(model), beside / _WEIGHTS)
        torch.save(optimizer.state_dict(), beside / _OPTIMIZER)
        for written in (beside / _WEIGHTS, beside / _OPTIMIZER, beside):
            _sync(written)
        files = {name: hash_file(beside / name) for name in (_WEIGHTS, _OPTIMIZER)}
        manifest = {**asdict(position), "files": files}
        # Written last: if the manifest exists, the checkpoint is whole.
        _write_synced(beside / _MANIFEST, json.dumps(manifest, indent=1) + "\n")
        _sync(beside)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(beside, folder)
        # The new checkpoint is on the disk before an old one goes.
        _sync(folder.parent)
        for old in _steps(run)[:-keep]:
            shutil.rmtree(checkpoint_folder(run, old), ignore_errors=True)
    distributed.barrier()
    return folder


def newest_checkpoint(run: Path) -> Path | None:
    """The newest whole checkpoint; folders without a manifest are left-overs and do not count."""
    steps = _steps(run)
    return checkpoint_folder(run, steps[-1]) if steps else None


def read_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Position:
    """Load parameters and optimizer state in place, and return the position.

    Raises:
        CheckpointError: A file is missing or damaged, or belongs to another model.
    """
    manifest = _read_manifest(folder)
    for name, expected in manifest["files"].items():
        file = folder / name
        if not file.is_file() or hash_file(file) != expected:
            raise CheckpointError(
                f"{name} is " + ("damaged" if file.is_file() else "missing"),
                where=folder,
                why="the run would go on from other weights",
                fix=_way_out(folder),
            )
    try:
        saved = load_file(folder / _WEIGHTS)
        state: Mapping[str, Any] = torch.load(
            folder / _OPTIMIZER, map_location="cpu", weights_only=True
        )
    except (SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(
            f"the checkpoint cannot be read ({error})", where=folder, fix=_way_out(folder)
        ) from error
    current = trained_parameters(model)
    if {n: t.shape for n, t in saved.items()} != {n: t.shape for n, t in current.items()}:
        raise CheckpointError(
            "the checkpoint holds other parameters than the model trains",
            where=folder,
            got=f"{len(saved)} tensors for {len(current)}",
            fix="continue with the model and adapter settings that began the run",
        )
    with torch.no_grad():
        for name, tensor in current.items():
            tensor.copy_(saved[name])
    optimizer.load_state_dict(dict(state))
    return Position(manifest["step"], manifest["records"], manifest["log_ratios"])


def trained_parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters that are updated, by name; tied ones once."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        return {
            "step": int(manifest["step"]),
            "records": int(manifest["records"]),
            "log_ratios": [[float(n) for n in row] for row in manifest["log_ratios"]],
            "files": dict(manifest["files"]),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"the manifest cannot be read ({error})",
            where=folder,
            fix=_way_out(folder),
        ) from error


def _way_out(folder: Path) -> str:
    """What to do about a damaged checkpoint, and what becomes of the run then."""
    run = folder.parent.parent
    before = [step for step in _steps(run) if checkpoint_folder(run, step) != folder]
    then = f"continues behind step {before[-1]}" if before else "begins anew"
    return f"remove this checkpoint folder; the run {then}"


def _steps(run: Path) -> list[int]:
    """Steps of whole checkpoints, ascending."""
    found = []
    for folder in (run / "checkpoints").glob("step-*"):
        number = folder.name.removeprefix("step-")
        if number.isdigit() and (folder / _MANIFEST).is_file():
            found.append(int(number))
    return sorted(found)


def _write_synced(file: Path, text: str) -> None:
    """Write and wait for the disk, so that a power cut leaves all of it or no manifest."""
    file.write_text(text)
    _sync(file)


def _sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
