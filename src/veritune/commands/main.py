"""The `veritune` command: its words, their help, and how errors leave it."""

import json
import sys
import traceback
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from veritune import __version__, distributed
from veritune.commands.check import CheckConfig, check
from veritune.commands.cite import cite
from veritune.commands.demo import DemoConfig, demo
from veritune.commands.display import Display
from veritune.commands.lab import LabConfig, lab
from veritune.commands.objectives import show_objectives
from veritune.commands.settings import show_settings
from veritune.commands.tiny import TinyConfig, write_tiny
from veritune.commands.train import train
from veritune.commands.train_settings import TrainConfig
from veritune.config import Config, ConfigT, load_config
from veritune.errors import SettingsError, VerituneError, VerituneWarning
from veritune.findings import COMMAND_LINE
from veritune.training.loop import Interrupted

app = typer.Typer(
    name="veritune",
    help="Align language models with preference data, by objectives whose targets are known.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

# `--train.steps=20` is taken as `train.steps=20`: many tools of the field write settings so.
_TAKES_SETTINGS: dict[str, Any] = {
    "no_args_is_help": True,
    "context_settings": {"ignore_unknown_options": True},
}

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SETTINGS.yaml|KEY=VALUE",
        help="A settings file, then settings that replace those of the file; either may be left "
        "out. A key reaches into a part with a dot.",
        show_default=False,
    ),
]

LabWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="METHOD|KEY=VALUE",
        help="An objective, an algorithm or a theorem, and settings; without one, all theorems.",
        show_default=False,
    ),
]

CheckWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FILE|SETTINGS.yaml|KEY=VALUE",
        help="Files of records, a settings file, and settings that replace those of the file.",
        show_default=False,
    ),
]

_CONFIGS: dict[str, type[Config]] = {
    "train": TrainConfig,
    "check": CheckConfig,
    "tiny": TinyConfig,
    "demo": DemoConfig,
    "lab": LabConfig,
}


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        typer.echo(f"veritune {__version__}")
        raise typer.Exit


@app.command("check", **_TAKES_SETTINGS)
def _check(words: CheckWords = None) -> None:
    """Say what is in a file of records, what is wrong with it, and how a model will see it.

    Examples:

        veritune check pairs.jsonl

        veritune check pairs.jsonl model=Qwen/Qwen2.5-0.5B-Instruct evaluation=held-out.jsonl

    The exit code is 2 if some row cannot be used. All settings: `veritune settings check`.
    """
    given = _joined(words or [])
    files = [word for word in given if _is_data(word)]
    others = [word for word in given if not _is_data(word)]
    if files:
        others.append(f"data.files={json.dumps(files, ensure_ascii=False)}")
    found = check(_settings(CheckConfig, others), Display())
    if found.num_problems:
        _say(
            f"{found.num_problems:,} of {found.num_rows:,} rows cannot be used; they are listed "
            "in the report"
        )
        raise typer.Exit(2)


@app.command("train", **_TAKES_SETTINGS)
def _train(
    words: Words = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove the run that the output folder holds.")
    ] = False,
) -> None:
    """Align a model with preference data: records in, a model folder and a report out.

    Examples:

        veritune train run.yaml

        veritune train run.yaml objective=rdro train.learning_rate=1e-6 output=runs/second

        veritune train model=DIR data=pairs.jsonl objective=dpo objective.beta=0.1 output=runs/a

    The settings that matter most: `model`, `data`, `objective`, `output`, `reference`, `adapter`,
    `train.epochs` or `train.steps`, `train.batch_size`, `train.learning_rate`, `train.seed`,
    `tokens.max_length`, `evaluation.data` or `evaluation.fraction`. All of them, with defaults and
    meaning: `veritune settings`.

    A run that was interrupted goes on when the same command is given again.
    """
    train(_settings(TrainConfig, words or []), Display(), overwrite=overwrite)


@app.command("settings")
def _show_settings(
    command: Annotated[
        Literal["train", "check", "tiny", "demo"], typer.Argument(help="Whose settings.")
    ] = "train",
) -> None:
    """List every setting of a command: key, default, choices and meaning.

    Example:

        veritune settings check
    """
    show_settings(_CONFIGS[command], Display())


@app.command("objectives")
def _objectives(
    name: Annotated[str | None, typer.Argument(help="Print this objective's card in full.")] = None,
) -> None:
    """List the objectives, or print the card of one.

    Example:

        veritune objectives rdro
    """
    show_objectives(name, Display())


@app.command("cite", no_args_is_help=True)
def _cite(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RUN|NAME",
            help="The folder of a run, or the name of an objective or an algorithm.",
            show_default=False,
        ),
    ],
) -> None:
    """Print the BibTeX of what a run used: the papers of its objective, and Veritune.

    Above each entry a comment says why it is cited.

    Examples:

        veritune cite runs/dpo > references.bib

        veritune cite rdro
    """
    cite(target, Display())


@app.command("lab", context_settings={"ignore_unknown_options": True})
def _lab(words: LabWords = None) -> None:
    """Check the theorems of the papers here and now; a page shows what was found.

    All of them take a few minutes on two cores. The exit code is 1 if one does not hold.

    Example:

        veritune lab rdro
    """
    words = [f"method={word}" if "=" not in word else word for word in words or []]
    results = lab(_settings(LabConfig, words), Display())
    if not all(result.holds for result in results):
        raise typer.Exit(1)


@app.command("tiny", **_TAKES_SETTINGS)
def _tiny(words: Words = None) -> None:
    """Write a small model with random weights, to try things on without a download.

    Example:

        veritune tiny output=tiny-qwen2 data=pairs.jsonl vocab_size=4096
    """
    write_tiny(_settings(TinyConfig, words or []), Display())


@app.command("demo", context_settings={"ignore_unknown_options": True})
def _demo(words: Words = None) -> None:
    """Align a small model toward a distribution that is known exactly, by six objectives.

    Takes a few minutes on two cores and downloads nothing.

    Example:

        veritune demo output=demo-run
    """
    demo(_settings(DemoConfig, words or []), Display())


def main() -> None:
    """Run the command line; errors raised on purpose leave it as messages with an exit code."""
    warnings.showwarning = _show_warning
    try:
        distributed.start()
        # Without its standalone mode, typer gives the code of an exit back in place of leaving.
        sys.exit(app(standalone_mode=False) or 0)
    except VerituneError as error:
        _say(f"{type(error).__name__}: {error}")
        sys.exit(error.exit_code)
    except Interrupted as order:
        _say(str(order))
        sys.exit(order.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _say("interrupted")
        sys.exit(130)
    except Exception as error:
        # typer's errors of usage have no common class that it exports.
        if hasattr(error, "format_message"):
            if message := error.format_message():
                _say(f"{message}\nSee veritune --help.")
            sys.exit(2)
        traceback.print_exc()
        sys.exit(1)
    finally:
        distributed.stop()


def _settings(kind: type[ConfigT], words: list[str]) -> ConfigT:
    """Settings from an optional YAML file and key=value words."""
    words = _joined(words)
    files = [word for word in words if _is_yaml(word)]
    if words and "=" not in words[0] and not _is_yaml(words[0]):
        raise SettingsError(
            "the first word is neither a YAML file nor key=value",
            where=COMMAND_LINE,
            got=words[0],
            fix="name the settings file run.yaml, or write for example data=pairs.jsonl",
        )
    if len(files) > 1:
        raise SettingsError(
            "there are several settings files", where=COMMAND_LINE, got=files, fix="give one"
        )
    overrides = [word for word in words if word not in files]
    return load_config(kind, Path(files[0]) if files else None, overrides)


def _joined(words: list[str]) -> list[str]:
    """The words with `--key value`, as many tools write it, as `--key=value`."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _is_yaml(word: str) -> bool:
    return "=" not in word and word.lower().endswith((".yaml", ".yml"))


def _is_data(word: str) -> bool:
    return not word.startswith("-") and "=" not in word and not _is_yaml(word)


def _show_warning(message: Any, category: Any, *_: Any, **__: Any) -> None:
    if issubclass(category, VerituneWarning):
        _say(f"warning: {message}")


def _say(text: str) -> None:
    if distributed.is_main_rank():
        print(text, file=sys.stderr)
