"""A loss function of a user's own file, as a card like any other."""

import dataclasses
import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from torch import Tensor

from veritune.errors import SettingsError
from veritune.logprobs import LogProbs
from veritune.objectives.card import Card
from veritune.objectives.laws import Trial, what_is_read
from veritune.objectives.parameters import source, summary

_FORMS: tuple[type[Any], ...] = typing.get_args(LogProbs)
_LIKE = "my_loss.py:my_loss"


class Loaded(NamedTuple):
    """A card made from a file."""

    card: Card
    is_own: bool
    """Whether the file has a card itself; else one was made of signature and docstring."""


def is_custom(name: str) -> bool:
    """Whether a name is a file and a function in it: `path/to/my_loss.py:my_loss`."""
    return ".py:" in name


def custom_file(name: str) -> Path:
    """The file of such a name."""
    return Path(name.rpartition(":")[0]).expanduser()


def load_card(name: str) -> Loaded:
    """The card of a function in a file: its own, if the file has a `CARD` for it, or one made of
    its signature and docstring.

    The function takes one of the forms of log-probabilities, which its annotation names, and
    keyword-only numbers, its hyper-parameters; it returns the loss of each example, not reduced.

    Args:
        name: `path/to/my_loss.py:my_loss`.

    Raises:
        SettingsError: There is no such file or function, or it has another signature.
    """
    file, function_name = custom_file(name), name.rpartition(":")[2]
    module = _load(file, name)
    function = getattr(module, function_name, None)
    if not callable(function):
        found = [n for n, v in vars(module).items() if inspect.isfunction(v) and n[0] != "_"]
        raise SettingsError(
            f"{file.name} has no function of this name",
            where="objective",
            got=function_name,
            fix=f"its functions are {', '.join(found) or 'none'}",
        )
    own_card = getattr(module, "CARD", None)
    if isinstance(own_card, Card) and own_card.loss is function:
        return Loaded(own_card, is_own=True)
    if not function.__doc__:
        function.__doc__ = f"The function {function_name} of {file.name}."
    form = _form(function, name)
    card = Card(
        loss=function,
        data=form,
        source=source(function) or file.name,
        title=summary(function).rstrip("."),
        target="not stated: the function has no card of its own",
        reward_scale="beta" if "beta" in inspect.signature(function).parameters else None,
    )
    return Loaded(card, is_own=False)


def declare_what_is_read(card: Card, hyperparameters: Mapping[str, float]) -> Card:
    """The card with what a trial shows that the function reads: reference, baselines, advantages.

    Raises:
        SettingsError: The function fails on a small example.
    """
    reads = on_a_small_example(lambda: what_is_read(Trial(card, hyperparameters)), card)
    return dataclasses.replace(
        card,
        needs_reference=reads["reference"],
        needs_mismatched=reads["mismatched_log_ratio"],
        needs_mean_log_ratio=reads["mean_log_ratio"],
        needs_common_length=reads["common length"],
        needs_advantages=reads["advantages"],
    )


def on_a_small_example(call: Callable[[], Any], card: Card) -> Any:
    """What the call gives; an exception of the user's function becomes a message.

    Raises:
        SettingsError: The function failed.
    """
    try:
        return call()
    # Whatever a function of the user's own may raise.
    except Exception as error:
        raise SettingsError(
            f"the function {card.loss.__name__} fails on a small example: "
            f"{type(error).__name__}: {error}",
            where="objective",
            got=inspect.getsourcefile(card.loss),
            why=f"it is called with {card.data.__name__} of 6 examples",
            fix="call it with such data in a test of your own (docs/adding-an-objective.md)",
        ) from error


def _load(file: Path, name: str) -> ModuleType:
    if not file.is_file():
        raise SettingsError(
            "there is no such file",
            where="objective",
            got=name,
            fix=f"give the path of a Python file and a function in it, like {_LIKE}",
        )
    # A name of its own: two files called loss.py may be loaded in one process.
    module_name = f"veritune_custom_{abs(hash(file.resolve()))}"
    specification = importlib.util.spec_from_file_location(module_name, file)
    assert specification is not None, "a file that ends in .py is a module"
    assert specification.loader is not None, "a file that ends in .py is a module"
    module = importlib.util.module_from_spec(specification)
    sys.modules[module_name] = module
    try:
        specification.loader.exec_module(module)
    # Whatever a file of the user's own may raise.
    except Exception as error:
        raise SettingsError(
            f"the file cannot be imported: {type(error).__name__}: {error}",
            where="objective",
            got=str(file),
            fix=f"make `python {file}` run without an error",
        ) from error
    return module


def _form(function: Callable[..., Tensor], name: str) -> Any:
    """The form that the first parameter is annotated with."""
    parameters = list(inspect.signature(function).parameters.values())
    hints = typing.get_type_hints(function)
    annotation = hints.get(parameters[0].name) if parameters else None
    form = next((form for form in _FORMS if form is annotation), None)
    if form is None:
        raise SettingsError(
            "the first parameter is not annotated with a form of log-probabilities",
            where="objective",
            got=f"{name}{inspect.signature(function)}",
            why="the form says which kind of records the objective takes",
            fix=f"annotate it with one of {', '.join(f.__name__ for f in _FORMS)}",
        )
    for parameter in parameters[1:]:
        if parameter.kind is not parameter.KEYWORD_ONLY:
            raise SettingsError(
                "a hyper-parameter is not keyword-only",
                where="objective",
                got=f"{name}{inspect.signature(function)}",
                fix=f"write a * before {parameter.name}: def my_loss(pairs, *, beta: float = 0.1)",
            )
        if not isinstance(parameter.default, int | float) and (
            parameter.default is not parameter.empty
        ):
            raise SettingsError(
                "a hyper-parameter is not a number",
                where="objective",
                got=f"{parameter.name} = {parameter.default!r}",
                fix="make another function for another variant",
            )
    return form
