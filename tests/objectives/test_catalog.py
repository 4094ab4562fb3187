import itertools

import pytest

from veritune.errors import SettingsError
from veritune.objectives.catalog import (
    CATALOG,
    describe,
    find_card,
    hyperparameters,
    settings_of,
)

EVERY_NAME = list(CATALOG)


def test_the_catalog_lists_kinds_of_data_together():
    kinds = [card.kind for card in CATALOG.values()]

    assert list(dict.fromkeys(kinds)) == [
        "demonstration",
        "paired",
        "scored",
        "unpaired",
        "sampled",
    ]
    assert len([a for a, b in itertools.pairwise(kinds) if a != b]) == 4


def test_find_card_returns_the_card_of_the_name():
    assert find_card("rdro").loss.__name__ == "rdro_loss"


@pytest.mark.parametrize(("typed", "meant"), [("dp0", "dpo"), ("EXO-RW", "exo_rw")])
def test_find_card_refuses_an_unknown_name_and_gives_the_nearest(typed, meant):
    with pytest.raises(SettingsError, match=f"did you mean {meant}") as caught:
        find_card(typed)
    assert typed in str(caught.value)


def test_find_card_lists_all_names_when_none_is_near():
    with pytest.raises(SettingsError, match="the objectives are sft, dpo, "):
        find_card("zzzzzzzz")


def test_hyperparameters_hold_range_default_and_meaning():
    beta = hyperparameters(find_card("dpo"))["beta"]

    assert beta.default == 0.1
    assert beta.range == "greater than 0"
    assert beta.meaning.startswith("Weight of the KL penalty")


def test_settings_are_the_defaults_when_nothing_is_given():
    assert settings_of(find_card("exo_pref"), {}, data_fraction=None) == {
        "beta": 0.1,
        "epsilon": 1e-3,
    }


def test_settings_take_what_is_given_and_pass_whole_numbers_as_numbers():
    settings = settings_of(find_card("kto"), {"beta": 1}, data_fraction=0.3)

    assert settings == {"beta": 1.0, "lambda_desirable": 1.0, "lambda_undesirable": 1.0}
    assert isinstance(settings["beta"], float)


@pytest.mark.parametrize(("name", "hyperparameter"), [("rdro", "alpha"), ("ddro", "t")])
def test_the_mixture_fraction_is_that_of_the_data_unless_given(name, hyperparameter):
    card = find_card(name)

    assert settings_of(card, {}, data_fraction=0.39) == {hyperparameter: 0.39}
    assert settings_of(card, {hyperparameter: 0.2}, data_fraction=0.39) == {hyperparameter: 0.2}


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_settings_refuse_a_fraction_from_data_of_one_label(fraction):
    with pytest.raises(SettingsError, match="the data have only one label"):
        settings_of(find_card("rdro"), {}, data_fraction=fraction)

    assert settings_of(find_card("rdro"), {"alpha": 0.5}, data_fraction=fraction) == {"alpha": 0.5}


def test_settings_refuse_a_missing_fraction_when_the_data_do_not_give_it():
    with pytest.raises(SettingsError, match="the setting alpha is missing"):
        settings_of(find_card("rdro"), {}, data_fraction=None)


def test_settings_refuse_an_unknown_hyperparameter_and_give_the_nearest():
    with pytest.raises(SettingsError, match=r"unknown setting betta(.|\n)*did you mean beta\?$"):
        settings_of(find_card("dpo"), {"betta": 0.1}, data_fraction=None)


def test_settings_refuse_hyperparameters_of_an_objective_without_any():
    with pytest.raises(SettingsError, match="objective sft: unknown setting beta"):
        settings_of(find_card("sft"), {"beta": 0.1}, data_fraction=None)


@pytest.mark.parametrize("name", EVERY_NAME)
def test_the_description_names_every_hyperparameter_its_range_and_the_source(name):
    card = CATALOG[name]
    text = describe(card)

    assert card.title in text
    assert "loss" in text
    for parameter in hyperparameters(card).values():
        assert f"  {parameter.name}: {parameter.range}; " in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_objectives_without_a_reference_are_these():
    assert {card.name for card in CATALOG.values() if not card.needs_reference} == {
        *("sft", "pmle", "simpo", "orpo", "slic", "slic_hf", "mpo", "chosen_nll"),
        *("chosen_nll_mean", "preference_distillation", "online_preference_distillation"),
        *("optidice_kl", "optidice_chi_square", "optidice_soft_chi_square"),
        *("reverse_kl", "ppo", "dr_grpo"),
    }


def test_a_file_without_a_function_is_told_what_to_add():
    with pytest.raises(SettingsError, match=r"my_loss\.py:my_loss"):
        find_card("my_loss.py")
