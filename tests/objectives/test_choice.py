from pathlib import Path

import pytest

from veritune.config import build_config
from veritune.errors import SettingsError
from veritune.objectives.choice import ObjectiveConfig, choose, law_breaches

FILE = """
from torch.nn.functional import logsigmoid
from veritune.logprobs import PairedLogProbs

def good(pairs: PairedLogProbs, *, beta: float = 0.1):
    return -logsigmoid(beta * (pairs.chosen.log_ratio - pairs.rejected.log_ratio))

def summed(pairs: PairedLogProbs):
    return pairs.chosen.policy.sum()

def overflowing(pairs: PairedLogProbs):
    return (pairs.rejected.log_ratio - pairs.chosen.log_ratio).exp()
"""


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def config(**values) -> ObjectiveConfig:
    return build_config(ObjectiveConfig, values, where="objective")


def test_a_name_chooses_from_the_catalog_and_writes_out_the_defaults():
    choice = choose(config(name="rdro"), data_fraction=0.39)

    assert choice.card.name == "rdro"
    assert choice.hyperparameters == {"alpha": 0.39}
    assert choice.config.model_dump() == {"name": "rdro", "combine": None, "alpha": 0.39}
    assert choose(choice.config, data_fraction=0.7).hyperparameters == {"alpha": 0.39}
    assert law_breaches(choice) == []


def test_a_combination_writes_out_the_defaults_of_its_parts():
    choice = choose(
        config(combine=["rdro", {"name": "kto", "weight": 0.5, "beta": 0.3}]), data_fraction=0.39
    )

    assert choice.card.name == "rdro+kto"
    assert choice.hyperparameters["rdro.alpha"] == 0.39
    assert choice.hyperparameters["rdro.weight"] == 1.0
    assert choice.hyperparameters["kto.weight"] == 0.5
    assert choice.hyperparameters["kto.beta"] == 0.3
    again = choose(choice.config, data_fraction=0.9)
    assert again.hyperparameters == choice.hyperparameters


def test_a_function_of_a_file_trains_under_its_own_settings(file):
    choice = choose(config(name=f"{file}:good", beta=0.7), data_fraction=None)

    assert choice.hyperparameters == {"beta": 0.7}
    assert choice.card.needs_reference
    assert choice.files == (file,)
    assert len(choice.file_hashes[str(file)]) == 64
    assert law_breaches(choice) == []


def test_a_function_of_a_file_can_be_part_of_a_combination(file):
    choice = choose(config(combine=["dpo", {"name": f"{file}:good"}]), data_fraction=None)

    assert choice.card.name == "dpo+good"
    assert choice.files == (file,)


def test_a_function_without_which_training_is_meaningless_is_refused(file):
    choice = choose(config(name=f"{file}:summed"), data_fraction=None)

    with pytest.raises(SettingsError, match="one loss per example"):
        law_breaches(choice)


def test_other_breaches_are_told(file):
    choice = choose(config(name=f"{file}:overflowing"), data_fraction=None)

    assert "finite at extreme log ratios" in law_breaches(choice)[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "no objective is named"),
        ({"name": "dpo", "combine": ["dpo", "ipo"]}, "no name or hyper-parameters of its own"),
        ({"combine": ["dpo", "ipo"], "beta": 0.1}, "give them to its parts"),
        ({"combine": [{"name": "dpo", "gamma": 0.1}, "ipo"]}, "gamma"),
        ({"name": "dop"}, "did you mean dpo"),
    ],
)
def test_settings_that_name_no_objective_are_refused(values, message):
    with pytest.raises(SettingsError, match=message):
        choose(config(**values), data_fraction=None)


def test_a_part_without_a_positive_weight_is_refused():
    with pytest.raises(SettingsError, match="weight"):
        config(combine=["dpo", {"name": "ipo", "weight": 0}])
