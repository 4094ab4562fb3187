"""The report of a training run: what was done, what the numbers say, and how they moved."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

import torch
from markupsafe import Markup

from veritune.config import build_config
from veritune.errors import SettingsError
from veritune.logprobs import CompletionLogProbs, PairedLogProbs
from veritune.objectives.catalog import CATALOG
from veritune.objectives.choice import ObjectiveConfig, choose
from veritune.objectives.custom import is_custom
from veritune.reports.axes import Axis
from veritune.reports.figures import Line, ReferenceLine, line_chart
from veritune.reports.numbers import (
    MISSING,
    format_count,
    format_number,
    format_seconds,
)
from veritune.reports.page import Cell, Page, Section, Table, write_page
from veritune.reports.run_folder import (
    HELD_OUT,
    RunFolder,
    Series,
    flat_rows,
    read_run_folder,
    setting_text,
)
from veritune.reports.verdict import ACCURACY, run_findings

_STEP = Axis("optimizer step")
_LOSS_AND_PREFERENCE = (
    ("Loss", "loss", ("loss",)),
    ("Examples ranked rightly", "share", (ACCURACY,)),
    ("Implicit reward of chosen and rejected", "reward", ("rewards/chosen", "rewards/rejected")),
    ("Margin between chosen and rejected", "reward", ("rewards/margins",)),
    ("Log-probability of chosen and rejected", "nats", ("logps/chosen", "logps/rejected")),
)
_OPTIMIZATION = (
    ("Gradient norm before clipping", "L2 norm", ("gradient_norm",)),
    ("Learning rate", "learning rate", ("learning_rate",)),
)
_EXACT = ("learning_rate",)
_HELD_OUT_RECORDS = HELD_OUT + "records"
_SHOWN_AS_SPEED = ("tokens", "seconds", "waited", "fill")
_MAX_LINES_TOGETHER = 4


def run_report(folder: Path) -> Path:
    """Write `report.html` into a run folder and return its file.

    The page shows whatever the folder holds: `config.yaml`, `provenance.json` and
    `metrics.jsonl`, in which `tokens` and `seconds` are those of one step, and `waited` the seconds
    before it in which its batch was not ready. What is missing is named on the page.

    Raises:
        RunFolderError: The folder does not exist.
    """
    return write_page(run_page(read_run_folder(folder)), folder / "report.html")


def run_page(run: RunFolder) -> Page:
    """The content of the report."""
    objective = _objective_name(run.settings)
    name = run.folder.resolve().name
    return Page(
        title=f"Training run {name}" + (f": {objective}" if objective else ""),
        lead=_lead(run, objective),
        facts=_facts(run),
        findings=run_findings(run),
        warnings=(*run.problems, *_unfinished(run)),
        sections=(*_chart_sections(run), *_folded_sections(run)),
    )


def _lead(run: RunFolder, objective: str) -> str:
    model, data = _short(run.settings.get("model")), _data_files(run)
    start = f"{model} was trained" if model else "A model was trained"
    by = f" with {_objective_in_words(objective)}" if objective else ""
    on = f" on {data}" if data else ""
    num_steps = len(run.steps)
    return f"{start}{by}{on} for {num_steps:,} optimizer step{'' if num_steps == 1 else 's'}."


def _facts(run: RunFolder) -> tuple[tuple[str, str], ...]:
    tokens, seconds = _total(run.values("tokens")), _total(run.values("seconds"))
    speed = tokens / seconds if seconds > 0 else math.nan
    held_out, waited = run.values(_HELD_OUT_RECORDS), run.values("waited")
    return (
        ("Objective", _short(run.settings.get("objective")) or MISSING),
        ("Model", _short(run.settings.get("model")) or MISSING),
        ("Data", _data_files(run) or MISSING),
        ("Steps", format_count(len(run.steps))),
        ("Time in steps", format_seconds(seconds)),
        *((("Waited for batches", format_seconds(_total(waited))),) if waited else ()),
        ("Tokens", format_count(tokens)),
        ("Tokens per second", format_count(speed)),
        *((("Held-out records", format_count(held_out[-1][1])),) if held_out else ()),
    )


def _unfinished(run: RunFolder) -> tuple[str, ...]:
    train = run.settings.get("train")
    planned = train.get("steps") if isinstance(train, Mapping) else None
    if not isinstance(planned, int) or not run.steps or run.steps[-1] >= planned:
        return ()
    return (f"The run was set to {planned:,} steps; its numbers end at step {run.steps[-1]:,}.",)


def _chart_sections(run: RunFolder) -> Iterable[Section]:
    drawn: set[str] = set(_SHOWN_AS_SPEED)
    learning = _known_charts(run, _LOSS_AND_PREFERENCE, drawn)
    if learning:
        explained = "Each step is a faint line, its running average a thick one"
        held_out = any(name.startswith(HELD_OUT) for name in run.series)
        marks = "; held-out measurements have dots." if held_out else "."
        yield Section("Learning", (explained + marks,), tuple(learning))
    optimization = [*_known_charts(run, _OPTIMIZATION, drawn), *_speed_chart(run)]
    if optimization:
        yield Section("Optimization", figures=tuple(optimization))
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(
        name.removeprefix(HELD_OUT) for name in run.series if name != _HELD_OUT_RECORDS
    ):
        if name not in drawn:
            groups.setdefault(name.partition("/")[0] if "/" in name else "", []).append(name)
    for prefix, names in sorted(groups.items()):
        figures = tuple(_chart(run, name, _unit(name), (name,)) for name in names)
        yield Section(f"Further: {prefix}" if prefix else "Further measurements", figures=figures)


def _known_charts(
    run: RunFolder, charts: Iterable[tuple[str, str, tuple[str, ...]]], drawn: set[str]
) -> list[Markup]:
    """The charts of which there is anything to draw; their names are added to `drawn`."""
    figures = []
    for title, unit, names in charts:
        drawn.update(names)
        if any(run.values(name) or run.values(HELD_OUT + name) for name in names):
            figures.append(_chart(run, title, unit, names))
    return figures


def _chart(run: RunFolder, title: str, unit: str, names: tuple[str, ...]) -> Markup:
    """Training and held-out values of a few names in one picture."""
    lines = []
    for name in names:
        short = name.partition("/")[2] if len(names) > 1 else "training"
        if series := run.values(name):
            lines.append(Line(short, series, "plain" if name in _EXACT else "smoothed"))
    for name in names:
        short = f"held-out {name.partition('/')[2]}" if len(names) > 1 else "held-out"
        if series := run.values(HELD_OUT + name):
            lines.append(Line(short, series, "marked"))
    if not any(run.values(name) for name in names):
        title = f"Held-out: {title}"
    assert len(lines) <= _MAX_LINES_TOGETHER, "a chart compares few lines"
    reference = None
    if names == ("loss",):
        reference = _loss_at_the_reference(run.settings)
    elif names == (ACCURACY,):
        reference = ReferenceLine(0.5, "a coin toss")
    elif unit == "reward":
        reference = ReferenceLine(0.0, "the reference")
    y = Axis(unit, log=names == ("gradient_norm",) and _spans_decades(run.values(names[0])))
    return line_chart(title, lines, x=_STEP, y=y, reference=reference)


def _speed_chart(run: RunFolder) -> list[Markup]:
    seconds = dict(run.values("seconds"))
    points = tuple(
        (step, tokens / seconds[step])
        for step, tokens in run.values("tokens")
        if seconds.get(step, 0.0) > 0
    )
    if not points:
        return []
    line = Line("tokens per second", points, "smoothed")
    return [line_chart("Speed", [line], x=_STEP, y=Axis("tokens per second", include=(0.0,)))]


def _loss_at_the_reference(settings: Mapping[str, Any]) -> ReferenceLine | None:
    """The loss of pairs when the policy equals the reference, where the objective has a known one.

    Other kinds of data are left out: their losses depend on counts that a report does not have.
    """
    given = settings.get("objective")
    values = given if isinstance(given, Mapping) else {"name": given}
    # A report does not run a file that stood beside the run.
    if any(is_custom(name) for name in _objective_names(settings)):
        return None
    try:
        config = build_config(ObjectiveConfig, values, where="objective")
        choice = choose(config, data_fraction=None)
    except SettingsError:
        return None
    card = choice.card
    if card.initial_loss is None or card.data is not PairedLogProbs:
        return None
    # Two pairs that have nothing in common: where the value depends on the pair there is no line.
    chosen, rejected = (
        CompletionLogProbs(values, lengths, values, values / 2, values / 2)
        for values, lengths in (
            (torch.tensor([-1.0, -4.0]), torch.tensor([1, 5])),
            (torch.tensor([-2.0, -1.5]), torch.tensor([3, 2])),
        )
    )
    losses = card.initial_loss(PairedLogProbs(chosen, rejected), **choice.hyperparameters)
    if losses[0] != losses[1]:
        return None
    loss = float(losses[0])
    written = "log 2" if math.isclose(loss, math.log(2), rel_tol=1e-6) else format_number(loss)
    return ReferenceLine(loss, f"{written}: policy equals reference")


def _folded_sections(run: RunFolder) -> Iterable[Section]:
    for title, values in (("Settings", run.settings), ("Provenance", run.provenance)):
        if values:
            rows = tuple((Cell(key, "code"), Cell(text, "code")) for key, text in flat_rows(values))
            yield Section(title, tables=(Table(("name", "value"), rows),), folded=True)


def _objective_names(settings: Mapping[str, Any]) -> list[str]:
    """The name of the objective, or of each part of a combination."""
    given = settings.get("objective")
    if isinstance(given, Mapping):
        parts = given.get("combine") or [given]
        return [setting_text(part.get("name")) for part in parts if isinstance(part, Mapping)]
    return [setting_text(given)] if given is not None else []


def _objective_name(settings: Mapping[str, Any]) -> str:
    return " + ".join(_objective_names(settings))


def _objective_in_words(name: str) -> str:
    """The name and, if it is one of the catalog, what it stands for."""
    return f"{name} ({CATALOG[name].title})" if name in CATALOG else name


def _data_files(run: RunFolder) -> str:
    """The names of the data files, without their folders; how they were read stands below."""
    data = run.settings.get("data")
    files = data.get("files", data) if isinstance(data, Mapping) else data
    if isinstance(files, list | tuple):
        return ", ".join(PurePath(str(file)).name for file in files)
    return _short(files) if isinstance(files, Mapping) else PurePath(_short(files)).name


def _short(value: Any) -> str:
    """A part of the settings in one line: its name or file first, then what else was set."""
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(_short(item) for item in value)
    if not isinstance(value, Mapping):
        return setting_text(value)
    given = {key: below for key, below in value.items() if below not in (None, [], {})}
    leading = next((key for key in ("name", "path", "files", "file") if key in given), None)
    first = [_short(given.pop(leading))] if leading is not None else []
    return ", ".join([*first, *(f"{key} = {_short(below)}" for key, below in given.items())])


def _total(series: Series) -> float:
    """The sum of a series over its finite values; NaN if there are none."""
    values = [value for _, value in series if math.isfinite(value)]
    return math.fsum(values) if values else math.nan


def _spans_decades(series: Series) -> bool:
    values = [value for _, value in series if math.isfinite(value) and value > 0]
    return bool(values) and max(values) > 100 * min(values)


def _unit(name: str) -> str:
    return "nats" if name.startswith(("logps/", "log_ratios/")) else name.rpartition("/")[2]
