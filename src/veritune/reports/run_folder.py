"""What a run folder says: settings, provenance and series of numbers, and what it lacks."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from veritune.config import read_yaml_mapping
from veritune.errors import RunFolderError, SettingsError
from veritune.training.run_folder import PROVENANCE_FILE, SETTINGS_FILE

HELD_OUT = "eval/"
"""How the names of held-out measurements begin."""

_NOT_MEASURED = frozenset({"step"})
_COST_OF_TRAINING = frozenset({"tokens", "seconds", "waited", "fill"})

Series: TypeAlias = tuple[tuple[float, float], ...]
"""(step, value) in the order of steps; a value that is not a number is NaN."""


@dataclass(frozen=True)
class RunFolder:
    """The readable content of a run folder."""

    folder: Path
    settings: Mapping[str, Any]
    """As in `config.yaml`; empty if it is missing."""

    provenance: Mapping[str, Any]
    """As in `provenance.json`; empty if it is missing."""

    series: Mapping[str, Series]
    """Every measured name, in the order of first appearance."""

    steps: tuple[int, ...]
    """The optimizer steps that have a line, in order; evaluations do not count."""

    problems: tuple[str, ...]
    """What is missing or could not be read, a sentence each."""

    def values(self, name: str) -> Series:
        """The series of this name, empty if it was not measured."""
        return self.series.get(name, ())


def read_run_folder(folder: Path) -> RunFolder:
    """Read what there is; whatever is missing or damaged becomes a sentence in `problems`.

    Raises:
        RunFolderError: The folder itself does not exist.
    """
    if not folder.is_dir():
        raise RunFolderError(
            "there is no such run folder",
            where=folder,
            fix="give the folder that a run wrote to (its setting `output`)",
        )
    problems: list[str] = []
    settings = _read_settings(folder / SETTINGS_FILE, problems)
    provenance = _read_provenance(folder / PROVENANCE_FILE, problems)
    lines = _read_lines(folder / "metrics.jsonl", problems)
    training, evaluations = _by_step(lines)
    if not training and (folder / "metrics.jsonl").is_file():
        problems.append("metrics.jsonl holds no step, so there is nothing to draw yet.")
    return RunFolder(
        folder=folder,
        settings=settings,
        provenance=provenance,
        series=_series(training) | _series(evaluations),
        steps=tuple(training),
        problems=tuple(problems),
    )


def flat_rows(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Dotted names and texts of a nested mapping, in its order; lists stay on one line."""
    if isinstance(value, Mapping) and value:
        return [
            row
            for key, below in value.items()
            for row in flat_rows(below, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [(prefix, setting_text(value))]


def setting_text(value: Any) -> str:
    """A setting as one would write it: text as it is, everything else as in JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _read_settings(file: Path, problems: list[str]) -> Mapping[str, Any]:
    if not file.is_file():
        problems.append(f"{file.name} is missing: the settings of the run are not known.")
        return {}
    try:
        return read_yaml_mapping(file)
    except SettingsError as error:
        problems.append(f"{file.name} cannot be read: {error.what}.")
        return {}


def _read_provenance(file: Path, problems: list[str]) -> Mapping[str, Any]:
    if not file.is_file():
        problems.append(f"{file.name} is missing: versions and data hashes are not known.")
        return {}
    try:
        loaded = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{file.name} cannot be read: {error}.")
        return {}
    return loaded if isinstance(loaded, dict) else {"provenance": loaded}


def _read_lines(file: Path, problems: list[str]) -> list[dict[str, Any]]:
    if not file.is_file():
        problems.append(f"{file.name} is missing: nothing was measured, or it was moved away.")
        return []
    lines, damaged = [], []
    with file.open(encoding="utf-8", errors="replace") as stream:
        for count, text in enumerate(stream, start=1):
            if not text.strip():
                continue
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                line = None
            if isinstance(line, dict) and math.isfinite(step := _number(line.get("step"))):
                lines.append(line | {"step": int(step)})
            else:
                damaged.append(count)
    if damaged:
        shown = ", ".join(map(str, damaged[:5])) + (", …" if len(damaged) > 5 else "")
        problems.append(
            f"{file.name}: {len(damaged)} of {len(damaged) + len(lines)} lines hold no JSON "
            f"object with a step and were left out (line {shown})."
        )
    return lines


def _by_step(
    lines: Iterable[Mapping[str, Any]],
) -> tuple[dict[int, dict[str, float]], dict[int, dict[str, float]]]:
    """Names and values of training and of evaluation, each by step, in the order of steps.

    A run that was killed and continued measures some steps again; the later line counts.
    """
    training: dict[int, dict[str, float]] = {}
    evaluations: dict[int, dict[str, float]] = {}
    for line in lines:
        numbers = {
            name: _number(value)
            for name, value in line.items()
            if name not in _NOT_MEASURED and _is_number(value)
        }
        held_out = {name: v for name, v in numbers.items() if name.startswith(HELD_OUT)}
        if held_out and "loss" not in line:
            # What an evaluation costs must not be counted as training.
            evaluations[line["step"]] = {
                name: value for name, value in numbers.items() if name not in _COST_OF_TRAINING
            }
            continue
        training[line["step"]] = {n: v for n, v in numbers.items() if n not in held_out}
        if held_out:
            evaluations[line["step"]] = held_out
    return dict(sorted(training.items())), dict(sorted(evaluations.items()))


def _series(values: Mapping[int, Mapping[str, float]]) -> dict[str, Series]:
    """One series for each name; a step without the name has no point."""
    found: dict[str, list[tuple[float, float]]] = {}
    for step, numbers in values.items():
        for name, value in numbers.items():
            found.setdefault(name, []).append((float(step), value))
    return {name: tuple(points) for name, points in found.items()}


def _is_number(value: Any) -> bool:
    """Whether a value is a measurement; null is one that is not a number."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _number(value: Any) -> float:
    if value is None or not _is_number(value):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf
