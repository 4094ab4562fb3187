"""What every objective of the catalog must satisfy."""

import inspect
import math

import pytest
from pydantic import TypeAdapter, ValidationError

from veritune.errors import SettingsError
from veritune.objectives.catalog import hyperparameters, settings_of
from veritune.objectives.laws import LAWS, Law
from veritune.objectives.parameters import equation, source


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_the_law_holds(law: Law, trial):
    assert list(law.breaches(trial)) == []


def test_an_objective_on_given_data_with_a_reference_states_its_initial_loss(card):
    """Samples have no such value: the behavior need not be the reference."""
    if card.needs_reference and card.kind != "sampled":
        assert card.initial_loss is not None


def test_loss_optimum_and_initial_loss_take_the_same_hyperparameters(card):
    def keywords(function):
        return {
            name: (argument.annotation, argument.default)
            for name, argument in inspect.signature(function).parameters.items()
            if argument.kind is argument.KEYWORD_ONLY
        }

    for function in (card.optimum, card.initial_loss):
        if function is not None:
            assert keywords(function) == keywords(card.loss)


def test_invalid_hyperparameters_are_refused_with_their_range(card, settings):
    for parameter in hyperparameters(card).values():
        for value in (-1.0, 0.0, 0.5, 1.0, 2.0, math.inf, math.nan, "many"):
            try:
                TypeAdapter(parameter.annotation).validate_python(value)
            except ValidationError:
                with pytest.raises(SettingsError, match=parameter.name) as caught:
                    settings_of(card, settings | {parameter.name: value}, data_fraction=None)
                message = str(caught.value)
                assert repr(value) in message
                if isinstance(value, float) and math.isfinite(value):
                    bounds = parameter.range.replace("at least", "greater than or equal to")
                    bounds = bounds.replace("at most", "less than or equal to")
                    assert any(bound in message for bound in bounds.split(" and "))
        with pytest.raises(SettingsError, match=parameter.name):
            settings_of(card, settings | {parameter.name: -1.0}, data_fraction=None)


def test_the_docstring_holds_the_equation_the_source_and_every_hyperparameter(card):
    assert "loss" in equation(card.loss)
    assert "=" in equation(card.loss)
    assert source(card.loss)
    for parameter in hyperparameters(card).values():
        assert parameter.meaning, parameter.name
        assert parameter.range != "any", parameter.name
        assert parameter.name in equation(card.loss)


def test_the_card_names_existing_hyperparameters(card):
    known = hyperparameters(card)

    assert card.data_fraction is None or card.data_fraction in known
    assert card.reward_scale is None or card.reward_scale in known
    assert card.normalizer in ("examples", "tokens")
    assert card.source
    assert card.title
    assert card.target


def test_the_name_of_the_objective_is_that_of_its_file_and_functions(card):
    assert card.loss.__module__.rpartition(".")[2] == card.name
    if card.optimum is not None:
        assert card.optimum.__name__ == f"{card.name}_optimum"
    if card.initial_loss is not None:
        assert card.initial_loss.__name__ == f"{card.name}_initial_loss"
