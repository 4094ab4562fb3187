"""Print the BibTeX of what a run used: the papers of its objective, and Veritune."""

import ast
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ConfigDict

from veritune import __version__
from veritune.bibliography import (
    Entry,
    arxiv_identifiers,
    entries_named,
    entry_of,
    software_entry,
)
from veritune.commands.display import Display
from veritune.config import Config, build_config, read_yaml_mapping
from veritune.errors import RunFolderError, SettingsError, VerituneWarning, nearest_name
from veritune.laboratory.apo import accelerated_run
from veritune.laboratory.oppo import oppo_policies
from veritune.laboratory.optidice import optimal_occupancy
from veritune.objectives.catalog import CATALOG
from veritune.objectives.choice import ObjectiveConfig
from veritune.objectives.custom import custom_file, is_custom
from veritune.objectives.parameters import source, summary
from veritune.rejection import accepted
from veritune.training.run_folder import OBJECTIVE_FOLDER, SETTINGS_FILE, read_provenance


class _Algorithm(NamedTuple):
    title: str
    function: Callable[..., Any]
    """Its docstring names the source."""


_ALGORITHMS = {
    "apo": _Algorithm("accelerated preference optimization", accelerated_run),
    "oppo": _Algorithm("optimistic proximal policy optimization", oppo_policies),
    "optidice": _Algorithm(
        "offline policy optimization by correction of the stationary distribution",
        optimal_occupancy,
    ),
    "rso": _Algorithm("rejection sampling optimization", accepted),
}
"""What is no objective and has a paper all the same."""


class _Settings(Config):
    """What is read of the settings of a run."""

    model_config = ConfigDict(extra="ignore")

    objective: ObjectiveConfig
    """What the run minimized."""


@dataclass(frozen=True)
class _Use:
    """Something that was used, and the papers behind it."""

    what: str
    """On one line: the kind, the name and what it stands for."""

    entries: tuple[Entry, ...]
    unknown: tuple[str, ...] = ()
    """What its source names and the bibliography does not hold."""


def cite(target: str, display: Display) -> None:
    """Print an entry for every paper, each below the reasons to cite it.

    Args:
        target: A run folder; or the name of an objective or an algorithm, or a function in a file.
        display: Where it is printed.

    Raises:
        RunFolderError: The folder holds no run, or its settings cannot be read.
        SettingsError: There is nothing of this name.
    """
    folder = Path(target).expanduser()
    if _is_run(folder):
        uses, version = _of_run(folder), _version(folder)
    else:
        uses, version = [_of_name(target)], __version__
    display.note(_bibtex(uses, version))
    unknown = [name for use in uses for name in use.unknown]
    if unknown:
        warnings.warn(
            f"there is no entry for {', '.join(unknown)}: a comment stands in its place",
            VerituneWarning,
            stacklevel=2,
        )


def _bibtex(uses: Iterable[_Use], version: str) -> str:
    """Entries once each, in the order of use, with the reasons above them as comments."""
    reasons: dict[str, list[str]] = {}
    entries: dict[str, Entry] = {}
    blocks: list[str] = []
    for use in uses:
        for entry in use.entries:
            entries[entry.key] = entry
            reasons.setdefault(entry.key, []).append(_comment(use.what))
        if use.unknown or not use.entries:
            missing = ", ".join(use.unknown) or "it names no paper"
            blocks.append(f"{_comment(use.what)}\n{_comment(f'no entry: {missing}')}")
    software = software_entry(version)
    entries[software.key], reasons[software.key] = software, [_comment("software")]
    blocks += ["\n".join([*reasons[key], entry.text]) for key, entry in entries.items()]
    return "\n\n".join(blocks)


def _comment(text: str) -> str:
    # To BibTeX everything outside of an entry is a comment, and an @ begins an entry.
    return f"% {' '.join(text.split()).replace('@', '(at)')}"


def _is_run(folder: Path) -> bool:
    return (folder / SETTINGS_FILE).is_file()


def _version(run: Path) -> str:
    """The version that made the run, as far as that was written."""
    versions = read_provenance(run).get("versions")
    found = versions.get("veritune") if isinstance(versions, dict) else None
    return found if isinstance(found, str) and found[:1].isdigit() else __version__


def _of_run(run: Path) -> list[_Use]:
    """The objective of a run, or the parts of a combination."""
    file = run / SETTINGS_FILE
    try:
        objective = build_config(_Settings, read_yaml_mapping(file), where=str(file)).objective
    except SettingsError as error:
        raise RunFolderError(
            f"its {SETTINGS_FILE} does not say which objective the run had",
            where=run,
            why=error.what,
            fix="give the folder that a run wrote to (its setting `output`)",
        ) from error
    names = [objective.name] if objective.combine is None else [p.name for p in objective.combine]
    return [_of_name(name, run) for name in names if name is not None]


def _of_name(name: str, run: Path | None = None) -> _Use:
    """An objective or an algorithm, or a function of somebody's own.

    Args:
        name: As in the settings.
        run: The folder of the run that used it; None if it is asked for by name.
    """
    if is_custom(name):
        file = custom_file(name)
        kept = file if run is None else run / OBJECTIVE_FOLDER / file.name
        return _of_function(kept if kept.is_file() else file, name.rpartition(":")[2])
    if name in CATALOG:
        card = CATALOG[name]
        # The docstring may name more than the card: a paper behind a baseline, say.
        named = entries_named(f"{card.source}; {source(card.loss)}")
        return _Use(f"objective {name}: {card.title}", tuple(named))
    if name in _ALGORITHMS:
        title, function = _ALGORITHMS[name]
        return _Use(f"algorithm {name}: {title}", tuple(entries_named(source(function))))
    raise _nothing_of_this_name(name, run)


def _of_function(file: Path, name: str) -> _Use:
    """A function of somebody's own, read without running the file.

    Only papers on arXiv are found: authors and year alone may mean another paper here.
    """
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError) as error:
        raise SettingsError(
            f"the file cannot be read: {type(error).__name__}: {error}",
            where="veritune cite",
            got=str(file),
            fix="give the path of a Python file and a function in it, like my_loss.py:my_loss",
        ) from error
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    if name not in functions:
        raise SettingsError(
            f"{file.name} has no function of this name",
            where="veritune cite",
            got=name,
            fix=f"its functions are {', '.join(functions) or 'none'}",
        )

    def stand_in() -> None: ...

    stand_in.__doc__ = ast.get_docstring(functions[name]) or f"The function of {file.name}."
    named = "; ".join([source(stand_in), *_sources_of_cards(tree, name)])
    found = {f"arXiv:{i}": entry_of(i) for i in arxiv_identifiers(named)}
    return _Use(
        f"objective {name} of {file.name}: {summary(stand_in).rstrip('.')}",
        tuple(entry for entry in found.values() if entry is not None),
        tuple(identifier for identifier, entry in found.items() if entry is None),
    )


def _sources_of_cards(tree: ast.Module, loss: str) -> list[str]:
    """What the cards that a file makes for a loss say of its source."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        match given.get("loss"), given.get("source"):
            case ast.Name(id=name), ast.Constant(value=str(text)) if name == loss:
                found.append(text)
    return found


def _nothing_of_this_name(name: str, run: Path | None) -> RunFolderError | SettingsError:
    """The error for what is neither a run folder nor a known name."""
    path = Path(name).expanduser()
    if run is None and (path.exists() or len(path.parts) > 1):
        return _no_run_folder(path)
    known = [*CATALOG, *_ALGORITHMS]
    near = nearest_name(name.lower().replace("-", "_"), known)
    names = f"the objectives are {', '.join(CATALOG)}; the algorithms {', '.join(_ALGORITHMS)}"
    return SettingsError(
        "there is no run folder, objective or algorithm of this name"
        if run is None
        else "there is no objective of this name",
        where="veritune cite" if run is None else run / SETTINGS_FILE,
        got=name,
        fix=f"did you mean {near}? Or: {names}" if near else names,
    )


def _no_run_folder(path: Path) -> RunFolderError:
    """The error for a path that is no run folder, with the run folders that are near it."""
    fix = "give the folder that a run wrote to (its setting `output`), or an objective's name"
    if not path.exists():
        return RunFolderError(
            "there is no such run folder", where="veritune cite", got=str(path), fix=fix
        )
    below = [file.parent for file in sorted(path.glob(f"*/{SETTINGS_FILE}"))]
    near = below or [folder for folder in path.parents if _is_run(folder)][:1]
    if near:
        fix = f"give {' or '.join(str(folder) for folder in near)}"
    elif path.suffix == ".py":
        fix = f"name a function in it, {path}:my_loss"
    return RunFolderError(
        "this is a file" if path.is_file() else "the folder holds no run",
        where="veritune cite",
        got=str(path),
        why=f"a run folder holds the settings of a run in {SETTINGS_FILE}",
        fix=fix,
    )
