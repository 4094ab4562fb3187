"""The run folder: claimed once, continued by the same settings, never overwritten unasked."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veritune.config import Config, ConfigT, differing_settings, dump_config, load_config
from veritune.errors import RunFolderError
from veritune.training.checkpoint import newest_checkpoint

_CONFIG, _PROVENANCE, _MODEL = "config.yaml", "provenance.json", "model"

# Settings that say how a run is kept and watched; they may change when it goes on.
_FREE = frozenset({"output", "cache", "train.checkpoint_every", "train.keep_checkpoints"})


@dataclass(frozen=True)
class RunFolder:
    """A folder that belongs to one run."""

    path: Path
    checkpoint: Path | None
    """The checkpoint that the run continues from; None for a new run."""

    is_finished: bool
    """Whether the run was completed before, with the same settings."""

    @property
    def model(self) -> Path:
        """Where the aligned model goes."""
        return self.path / _MODEL


def open_run_folder(path: Path, config: ConfigT, *, overwrite: bool = False) -> RunFolder:
    """Claim an empty or new folder, or find the run of the same settings in it; writes nothing.

    Raises:
        RunFolderError: The folder holds something else, or a run of other settings, or cannot be
            made.
    """
    refuse_blocked_folder(path)
    if overwrite and (path / _CONFIG).is_file():
        _remove_run(path)
    # A run that died while it wrote its first file left that file under its first name.
    if not path.exists() or {file.name for file in path.iterdir()} <= {
        _beside(path / _CONFIG).name
    }:
        return RunFolder(path, None, False)
    if not (path / _CONFIG).is_file():
        raise RunFolderError(
            "the output folder is not empty and holds no run",
            where="output",
            got=str(path),
            why="files of somebody else could be overwritten",
            fix="choose another folder",
        )
    before = load_config(type(config), path / _CONFIG)
    differing = {k: v for k, v in differing_settings(before, config).items() if k not in _FREE}
    if differing:
        listed = "; ".join(
            f"{key}: {old!r} there, {new!r} now" for key, (old, new) in differing.items()
        )
        raise RunFolderError(
            "the output folder holds a run of other settings",
            where=path,
            got=f"{len(differing)} differ",
            why=listed,
            fix="choose another output, give the same settings to continue, or add --overwrite",
        )
    finished = bool(read_provenance(path).get("finished"))
    return RunFolder(path, None if finished else newest_checkpoint(path), finished)


def refuse_blocked_folder(path: Path) -> None:
    """Refuse an output folder that cannot be made or written, before work is put into it.

    Raises:
        RunFolderError: It, or a folder above it, is a file or may not be written.
    """
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return
    raise RunFolderError(
        f"{there} is a file" if not there.is_dir() else f"{there} may not be written",
        where="output",
        got=str(path),
        why="the output is a folder that the run makes",
        fix="choose another output, or remove the file"
        if not there.is_dir()
        else "choose another output, or change its permissions",
    )


def begin_run(folder: RunFolder, config: Config, provenance: Mapping[str, Any]) -> None:
    """Write the complete settings and what the run is made from.

    A run that continues keeps what was written, and must be made from the same things.

    Raises:
        RunFolderError: Data, model or reference are not those that the run began with.
    """
    if folder.checkpoint is not None:
        before = read_provenance(folder.path)
        for key in ("data_tokens", "model", "reference"):
            if before.get(key) != provenance.get(key):
                raise RunFolderError(
                    f"the run cannot continue: its {key} is not the one it began with",
                    where=folder.path,
                    got=provenance.get(key),
                    why=f"it began with {before.get(key)!r}",
                    fix="restore what it began with, or choose another output",
                )
        return
    folder.path.mkdir(parents=True, exist_ok=True)
    # The settings come first: by them the folder is known as a run, however little else it holds.
    _write(folder.path / _CONFIG, dump_config(config))
    _write(folder.path / _PROVENANCE, json.dumps(provenance, indent=1) + "\n")


def finish_run(folder: RunFolder, facts: Mapping[str, Any]) -> None:
    """Note that the run is complete. Written last, behind the model."""
    provenance = {**read_provenance(folder.path), **facts, "finished": True}
    _write(folder.path / _PROVENANCE, json.dumps(provenance, indent=1) + "\n")


def read_provenance(path: Path) -> dict[str, Any]:
    """What the run is made from, as far as it was written."""
    try:
        found = json.loads((path / _PROVENANCE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remove_run(path: Path) -> None:
    """Empty the folder; its settings go last, so that it is known as a run until then."""
    for file in path.iterdir():
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        elif file.name != _CONFIG:
            file.unlink()
    (path / _CONFIG).unlink()


def _beside(file: Path) -> Path:
    return file.with_name(f".{file.name}.writing")


def _write(file: Path, text: str) -> None:
    beside = _beside(file)
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, file)
