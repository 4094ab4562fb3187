"""The data of a run: tokenized records of the objective's kind, and what became of the rest."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from veritune import distributed
from veritune.commands.display import Display, duration, rate_in_words
from veritune.commands.train_settings import TrainConfig
from veritune.models.cache import default_cache_folder
from veritune.records.read import Found
from veritune.tokens.dataset import TokenizedDataset
from veritune.tokens.encode import TextEncoder
from veritune.tokens.prepare import Prepared, Recipe, prepare
from veritune.tokens.stored import Side
from veritune.tokens.truncate import settle_max_length


@dataclass(frozen=True)
class RunRecords:
    """What the files of a run held, and what was made of it."""

    found: Found
    """What the files held."""

    conversion: str | None
    """What was made of what, in words; None if nothing was converted."""

    held_out_found: Found | None = None
    """What the held-out files held; None where nothing is held out, or a share of the data."""

    held_out_conversion: str | None = None
    """As `conversion`, of the held-out records."""

    num_prompts_on_both_sides: int = 0
    """Prompts that are trained on and held out."""


@dataclass(frozen=True)
class RunData:
    """Tokenized data of a run."""

    records: RunRecords
    training: TokenizedDataset
    held_out: TokenizedDataset | None
    model_limit: int | None
    """The most tokens that the model was made for; None if it states none."""

    identity: str
    """A hash of everything that an objective sees of the records that are trained on."""

    held_out_identity: str | None
    preparation: str
    """Where the tokens come from and how long it took, in words."""


def prepare_run_data(
    config: TrainConfig, kind: str, encoder: TextEncoder, model_limit: int | None, display: Display
) -> RunData:
    """Read, split by prompt if asked, convert to the objective's kind, and tokenize; or take what
    an earlier run kept of the same data.

    Of several ranks one prepares the data, and the others take what it kept.

    Args:
        config: The settings of the run.
        kind: The objective's kind of data.
        encoder: Text to ids.
        model_limit: The most tokens that the model was made for; None if it states none.
        display: Where progress is shown.

    Raises:
        SettingsError: The settings ask for more than the model reads, or the cache folder cannot be
            written.
        DataError: A file cannot be used, or cannot become that kind; some record cannot be
            tokenized; or nothing is left to train on, or to hold out where that was asked for.
    """
    max_length = settle_max_length(config.tokens.max_length, model_limit)
    root = Path(config.cache).expanduser() if config.cache else default_cache_folder()
    fraction, seed = config.evaluation.fraction, config.train.seed
    recipes = [Recipe(config.data, kind, max_length, "data", fraction, seed)]
    if config.evaluation.data is not None:
        recipes.append(Recipe(config.evaluation.data, kind, max_length, "evaluation.data"))
    prepared: list[Prepared] = []
    with distributed.main_rank_first():
        for recipe in recipes:
            with display.counting("tokens") as progress:
                prepared.append(
                    prepare(recipe, encoder, root, progress=lambda rows: progress(rows, None))
                )
    first, found = prepared[0].entry, None
    held_out = first.held_out
    if len(prepared) > 1:
        held_out, found = prepared[1].entry.kept, prepared[1].entry.found
    records = RunRecords(
        first.found,
        first.kept.conversion,
        found,
        None if held_out is None else held_out.conversion,
        0 if held_out is None else _num_prompts_in_common(first.kept, held_out),
    )
    return RunData(
        records,
        first.kept.dataset,
        None if held_out is None else held_out.dataset,
        model_limit,
        first.kept.identity,
        None if held_out is None else held_out.identity,
        "; ".join(_in_words(each) for each in prepared),
    )


def _num_prompts_in_common(one: Side, other: Side) -> int:
    return len(np.intersect1d(one.prompts, other.prompts, assume_unique=True))


def _in_words(prepared: Prepared) -> str:
    if prepared.was_kept:
        return f"from {prepared.folder} in {prepared.seconds:.1f} s"
    rows = prepared.entry.found.num_rows
    return (
        f"{rows:,} rows prepared in {duration(prepared.seconds)} "
        f"({rate_in_words(rows / prepared.seconds)}), kept in {prepared.folder}"
    )
