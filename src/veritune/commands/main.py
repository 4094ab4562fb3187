"""The `veritune` command: its words, their help, and how errors leave it."""

import sys
import traceback
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from veritune import __version__, distributed
from veritune.commands.check import CheckConfig, check
from veritune.commands.demo import DemoConfig, demo
from veritune.commands.display import Display
from veritune.commands.objectives import show_objectives
from veritune.commands.tiny import TinyConfig, write_tiny
from veritune.commands.train import TrainConfig, train
from veritune.config import load_config
from veritune.errors import SettingsError, VerituneError
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

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SETTINGS.yaml] [KEY=VALUE]...",
        help="A settings file, then settings that replace those of the file; either may be left "
        "out. A key reaches into a part with a dot.",
        show_default=False,
    ),
]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        typer.echo(f"veritune {__version__}")
        raise typer.Exit


@app.command("check", no_args_is_help=True)
def _check(words: Words = None) -> None:
    """Say what is in a file of records, what is wrong with it, and how a model will see it.

    Examples:

        veritune check pairs.jsonl

        veritune check pairs.jsonl model=Qwen/Qwen2.5-0.5B-Instruct evaluation=held-out.jsonl
    """
    files = [word for word in words or [] if "=" not in word and not _is_yaml(word)]
    others = [word for word in words or [] if word not in files]
    if files:
        others.append("data=[" + ", ".join(repr(file) for file in files) + "]")
    found = check(_settings(CheckConfig, others), Display())
    if found.num_problems:
        raise typer.Exit(2)


@app.command("train", no_args_is_help=True)
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
def _settings_help() -> None:
    """List every setting of `veritune train`: key, default and meaning."""
    _print_settings(TrainConfig, "")


@app.command("objectives")
def _objectives(
    name: Annotated[str | None, typer.Argument(help="Print this objective's card in full.")] = None,
) -> None:
    """List the objectives, or print the card of one.

    Example:

        veritune objectives rdro
    """
    show_objectives(name, Display())


@app.command("tiny", no_args_is_help=True)
def _tiny(words: Words = None) -> None:
    """Write a small model with random weights, to try things on without a download.

    Example:

        veritune tiny output=tiny-qwen2 data=pairs.jsonl vocab_size=4096
    """
    write_tiny(_settings(TinyConfig, words or []), Display())


@app.command("demo")
def _demo(words: Words = None) -> None:
    """Align a small model toward a distribution that is known exactly, by five objectives.

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
        app(standalone_mode=False)
    except typer.Exit as request:
        sys.exit(request.exit_code)
    except VerituneError as error:
        _say(f"{type(error).__name__}: {error}")
        sys.exit(error.exit_code)
    except Interrupted as order:
        _say(str(order))
        sys.exit(order.exit_code)
    except KeyboardInterrupt:
        _say("interrupted before the first step; nothing was lost")
        sys.exit(130)
    except Exception as error:
        if hasattr(error, "format_message"):
            _say(f"{error.format_message()}\nSee veritune --help.")
            sys.exit(2)
        traceback.print_exc()
        sys.exit(1)
    finally:
        distributed.stop()


def _settings(kind: Any, words: list[str]) -> Any:
    """Settings from an optional YAML file and key=value words."""
    file = None
    if words and "=" not in words[0]:
        file, words = Path(words[0]), words[1:]
        if not _is_yaml(str(file)):
            raise SettingsError(
                "the first word is neither a YAML file nor key=value",
                where="command line",
                got=str(file),
                fix="name the settings file run.yaml, or write for example data=pairs.jsonl",
            )
    return load_config(kind, file, words)


def _is_yaml(word: str) -> bool:
    return "=" not in word and word.lower().endswith((".yaml", ".yml"))


def _print_settings(kind: Any, prefix: str) -> None:
    console = Console(highlight=False)
    for name, field in kind.model_fields.items():
        below = _config_of(field.annotation)
        default = "required" if field.is_required() else _default_in_words(field)
        console.print(f"[bold]{prefix}{name}[/bold]  ({default})", soft_wrap=True)
        if field.description:
            console.print("    " + " ".join(field.description.split()), markup=False)
        if below is not None:
            _print_settings(below, f"{prefix}{name}.")


def _default_in_words(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    return "see below" if hasattr(value, "model_fields") else repr(value).replace("None", "null")


def _config_of(annotation: Any) -> Any:
    from veritune.config import Config

    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, Config):
            return candidate
    return None


def _show_warning(message: Any, category: Any, *_: Any, **__: Any) -> None:
    from veritune.errors import VerituneWarning

    if issubclass(category, VerituneWarning):
        _say(f"warning: {message}")


def _say(text: str) -> None:
    if distributed.is_main_rank():
        print(text, file=sys.stderr)
