"""The objective of a run: checked before anything is loaded, settled once the data are known."""

import shutil
from pathlib import Path

from veritune.commands.run_data import RunData
from veritune.commands.train_settings import TrainConfig
from veritune.errors import DataError, SettingsError
from veritune.objectives.choice import Choice, choose, law_breaches
from veritune.training.run_folder import OBJECTIVE_FOLDER


def check_objective(config: TrainConfig) -> Choice:
    """The objective with a stand-in for what the data say, if it can train from records.

    Raises:
        SettingsError: A name, hyper-parameter or file is wrong, the objective takes samples, it
            reads no reference where one is given, or a function of the user's own breaks a law
            without which training is meaningless.
    """
    choice = choose(config.objective, data_fraction=0.5)
    card = choice.card
    if card.takes_samples:
        raise SettingsError(
            f"the objective {card.name} takes completions that the policy samples as it trains",
            where="objective",
            got=card.name,
            why="this command trains from a file of records",
            fix="choose an objective on records, exo_rw or dpo_rw for completions with scores "
            "(veritune objectives); or call the function in a loop of your own",
        )
    if config.reference is not None and not card.needs_reference:
        raise SettingsError(
            f"the objective {card.name} reads no reference",
            where="reference",
            got=config.reference,
            fix="remove the setting, or choose an objective that compares with a reference",
        )
    law_breaches(choice)
    return choice


def resolve_objective(
    config: TrainConfig, stand_in: Choice, data: RunData
) -> tuple[Choice, TrainConfig]:
    """The objective with every hyper-parameter, and the settings with them written out.

    Args:
        config: The settings.
        stand_in: What `check_objective` gave before the data were known.
        data: Says which share of the records is desirable.

    Raises:
        DataError: It compares two classes, and one of them is empty.
    """
    fraction = data.training.desirable_fraction
    card = stand_in.card
    if card.data_fraction is not None and fraction in (0.0, 1.0):
        raise DataError(
            f"every record is {'desirable' if fraction else 'undesirable'}",
            where="data",
            why=f"{card.name} compares the two classes, and one of them is empty",
            fix="add records of the other label",
        )
    choice = choose(config.objective, data_fraction=fraction)
    return choice, config.model_copy(update={"objective": choice.config})


def keep_objective_files(choice: Choice, run: Path) -> None:
    """Copy the user's own files into the run folder."""
    for file in choice.files:
        kept = run / OBJECTIVE_FOLDER / file.name
        kept.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, kept)
