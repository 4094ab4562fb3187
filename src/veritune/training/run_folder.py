"""The run folder: claimed once, continued by the same settings, never overwritten unasked."""

import json
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veritune.config import Config, ConfigT, differing_settings, dump_config, load_config
from veritune.errors import RunFolderError, SettingsError, VerituneWarning
from veritune.training.checkpoint import newest_checkpoint

SETTINGS_FILE, PROVENANCE_FILE = "config.yaml", "provenance.json"
OBJECTIVE_FOLDER = "objective"
"""Copies of the user's own files."""

_MODEL = "model"

_WRITTEN = (
    *(SETTINGS_FILE, PROVENANCE_FILE, _MODEL, OBJECTIVE_FOLDER),
    *("metrics.jsonl", "checkpoints", "adapter", "tensorboard", "report.html"),
)
"""Everything that a run writes into its folder; each may also lie beside, half written."""

# Settings that say how a run is kept and watched; they may change when it goes on.
_FREE = frozenset(
    {"output", "cache", "train.memory", "train.checkpoint_every", "train.keep_checkpoints"}
)


@dataclass(frozen=True)
class RunFolder:
    """A folder that belongs to one run."""

    path: Path
    checkpoint: Path | None
    """The checkpoint that the run continues from; None for a new run."""

    is_finished: bool
    """Whether the run was completed before, with the same settings."""

    is_overwritten: bool = False
    """Whether the run that lies in the folder is removed when the new one begins."""

    @property
    def model(self) -> Path:
        """Where the aligned model goes."""
        return self.path / _MODEL


def open_run_folder(path: Path, config: ConfigT, *, overwrite: bool = False) -> RunFolder:
    """Claim an empty or new folder, or find the run of the same settings in it.

    Writes and removes nothing: a run that is overwritten goes when the new one begins.

    Args:
        path: The folder.
        config: The settings of the run that wants it.
        overwrite: Take the folder of a run, whatever its settings.

    Raises:
        RunFolderError: The folder holds something else, or a run of other settings, or cannot be
            made.
    """
    refuse_blocked_folder(path)
    # A run that died while it wrote its first file left that file under its first name.
    if not path.exists() or {file.name for file in path.iterdir()} <= {
        _beside(path / SETTINGS_FILE).name
    }:
        return RunFolder(path, None, False)
    if not (path / SETTINGS_FILE).is_file():
        raise RunFolderError(
            "the output folder is not empty and holds no run",
            where="output",
            got=str(path),
            why="files of somebody else could be overwritten",
            fix="choose another folder",
        )
    if overwrite:
        _files_of_run(path, type(config))
        return RunFolder(path, None, False, is_overwritten=True)
    before = load_config(type(config), path / SETTINGS_FILE)
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

    A run that continues keeps what was written, and must be made from the same things. A run that
    is overwritten is removed first. Only the main rank may call this.

    Raises:
        RunFolderError: Data, model or reference are not those that the run began with, or the
            folder of the run to overwrite holds something else.
    """
    if folder.checkpoint is not None:
        before = read_provenance(folder.path)
        for key in ("data_tokens", "held_out_tokens", "model", "reference", "objective_files"):
            # Runs without a file of the user's own may have been begun before there were any.
            if (before.get(key) or None) != (provenance.get(key) or None):
                raise RunFolderError(
                    f"the run cannot continue: its {key} is not the one it began with",
                    where=folder.path,
                    got=provenance.get(key),
                    why=f"it began with {before.get(key)!r}",
                    fix="restore what it began with, or choose another output",
                )
        _warn_of_other_arithmetic(before, provenance)
        return
    if folder.is_overwritten:
        _remove_run(folder.path, type(config))
    folder.path.mkdir(parents=True, exist_ok=True)
    # The settings come first: by them the folder is known as a run, however little else it holds.
    _write(folder.path / SETTINGS_FILE, dump_config(config))
    _write(folder.path / PROVENANCE_FILE, json.dumps(provenance, indent=1) + "\n")


def finish_run(folder: RunFolder, facts: Mapping[str, Any]) -> None:
    """Note that the run is complete. Written last, behind the model."""
    provenance = {**read_provenance(folder.path), **facts, "finished": True}
    _write(folder.path / PROVENANCE_FILE, json.dumps(provenance, indent=1) + "\n")


def read_provenance(path: Path) -> dict[str, Any]:
    """What the run is made from, as far as it was written."""
    try:
        found = json.loads((path / PROVENANCE_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _warn_of_other_arithmetic(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Warn where the run goes on with other libraries or another number of processes."""
    there, here = (dict(some.get("versions") or {}) for some in (before, now))
    pairs = {name: (there.get(name), here.get(name)) for name in ("torch", "transformers")}
    pairs["processes"] = (before.get("processes"), now.get("processes"))
    differing = [
        f"{name} {old} there, {new} now" for name, (old, new) in pairs.items() if old != new
    ]
    if differing:
        warnings.warn(
            f"the run began otherwise ({'; '.join(differing)}): the weights will not be "
            "bit-identical to those of a run that was not interrupted",
            VerituneWarning,
            stacklevel=3,
        )


def _files_of_run(path: Path, kind: type[Config]) -> list[Path]:
    """What the run in the folder wrote, its settings last; nothing else may lie there.

    Raises:
        RunFolderError: The settings are not those of a run, or there are other files.
    """
    try:
        load_config(kind, path / SETTINGS_FILE)
    except SettingsError as error:
        raise RunFolderError(
            f"the output folder holds a {SETTINGS_FILE} that is not a run's",
            where="output",
            got=str(path),
            why=f"only a run is overwritten, and these are no settings of one: {error.what}",
            fix="choose another output, or remove the folder by hand",
        ) from error
    known = {name for file in _WRITTEN for name in (file, _beside(path / file).name)}
    files = sorted(path.iterdir(), key=lambda file: (file.name == SETTINGS_FILE, file.name))
    foreign = [file.name for file in files if file.name not in known]
    if foreign:
        raise RunFolderError(
            "the output folder holds more than a run",
            where="output",
            got=", ".join(foreign),
            why="only what a run wrote is overwritten",
            fix=f"move these out of {path}, or choose another output",
        )
    return files


def _remove_run(path: Path, kind: type[Config]) -> None:
    """Empty the folder; its settings go last, so that it is known as a run until then."""
    for file in _files_of_run(path, kind):
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        else:
            file.unlink()


def _beside(file: Path) -> Path:
    return file.with_name(f".{file.name}.writing")


def _write(file: Path, text: str) -> None:
    beside = _beside(file)
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, file)
