"""The data of a run: records of the objective's kind, tokenized, and what became of the rest."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from veritune.commands.display import Display
from veritune.commands.train_settings import TrainConfig
from veritune.errors import DataError
from veritune.records.convert import Converted, convert_records
from veritune.records.kinds import Record
from veritune.records.read import DataConfig, ReadResult, read_records
from veritune.records.split import split_by_prompt
from veritune.records.survey import prompts_in_common
from veritune.tokens.dataset import TokenizedDataset, tokenize
from veritune.tokens.encode import TextEncoder
from veritune.tokens.truncate import settle_max_length


@dataclass(frozen=True)
class RunRecords:
    """Records to train on and held-out ones, of the objective's kind."""

    found: ReadResult
    """What the files held."""

    training: Sequence[Record]
    held_out: Sequence[Record]
    conversion: str | None
    """What was made of what, in words; None if nothing was converted."""

    held_out_found: ReadResult | None = None
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


def data_identity(data: TokenizedDataset) -> str:
    """A hash of everything that an objective sees of a data set."""
    digest = hashlib.blake2b(digest_size=16)
    arrays = (data.ids, data.bears_loss, data.piece_starts, data.group_starts, data.desirable)
    for array in arrays:
        digest.update(array.tobytes())
    digest.update(repr(data.scores).encode())
    return digest.hexdigest()


def read_run_records(config: TrainConfig, kind: str) -> RunRecords:
    """Read, split by prompt if asked, and convert to the objective's kind.

    Raises:
        DataError: A file cannot be used, or cannot become that kind; or nothing is left to train
            on, or to hold out where that was asked for.
    """
    found = read_records(config.data)
    training: Sequence[Record] = found.records
    held_out: Sequence[Record] = ()
    held_out_found = None
    if config.evaluation.data is not None:
        held_out_found = read_records(config.evaluation.data)
        held_out = held_out_found.records
    elif config.evaluation.fraction is not None:
        training, held_out = split_by_prompt(
            training, config.evaluation.fraction, config.train.seed
        )
        if not held_out:
            raise DataError(
                "nothing is held out",
                where="evaluation.fraction",
                got=f"{config.evaluation.fraction:g} of the prompts of {', '.join(found.files)}",
                why="records of one prompt stay together, and there is one prompt only",
                fix="give held-out records by evaluation.data, or leave evaluation.fraction out",
            )
    converted = _as_kind(training, kind, "data")
    conversion = _in_words(found.kind, kind, converted)
    if not held_out:
        return RunRecords(found, converted.records, (), conversion)
    setting = "evaluation.fraction" if held_out_found is None else "evaluation.data"
    converted_held_out = _as_kind(held_out, kind, setting)
    return RunRecords(
        found,
        converted.records,
        converted_held_out.records,
        conversion,
        held_out_found,
        _in_words(held_out[0].kind, kind, converted_held_out),
        len(prompts_in_common(converted.records, converted_held_out.records)),
    )


def _as_kind(records: Sequence[Record], kind: str, setting: str) -> Converted[Record]:
    """The records as the objective's kind; at least one."""
    converted = convert_records(records, kind)
    if not converted.records:
        raise DataError(
            f"none of the {records[0].kind} records makes a {kind} record",
            where=setting,
            got=_discarded_in_words(converted),
            why=f"the objective learns from {kind} records, and all of these are left out",
            fix=f"add others, or choose an objective for {records[0].kind} data "
            "(veritune objectives)",
        )
    return converted


def _in_words(kind: str, wanted: str, converted: Converted[Record]) -> str | None:
    if kind == wanted:
        return None
    told = _discarded_in_words(converted)
    return f"{kind} records to {wanted} ones" + (f"; left out: {told}" if told else "")


def _discarded_in_words(converted: Converted[Record]) -> str:
    return ", ".join(f"{count} {what}" for what, count in converted.discarded.items())


def tokenize_run_records(
    config: TrainConfig,
    records: RunRecords,
    encoder: TextEncoder,
    model_limit: int | None,
    display: Display,
) -> RunData:
    """Training and held-out records as tokens, within the limits of settings and model.

    Raises:
        SettingsError: The settings ask for more than the model reads.
        DataError: Some record cannot be tokenized, or none is left.
    """
    max_length = settle_max_length(config.tokens.max_length, model_limit)

    def tokens(some: Sequence[Record], rules: DataConfig, setting: str) -> TokenizedDataset:
        with display.counting("tokens") as progress:
            return tokenize(
                some,
                encoder,
                max_length=max_length,
                skip_problems=rules.on_error == "skip",
                identical_pairs=rules.identical_pairs,
                setting=setting,
                progress=lambda done: progress(done, len(some)),
            )

    held_out = None
    if config.evaluation.data is not None:
        held_out = tokens(records.held_out, config.evaluation.data, "evaluation.data")
    elif records.held_out:
        held_out = tokens(records.held_out, config.data, "data")
    training = tokens(records.training, config.data, "data")
    return RunData(records, training, held_out, model_limit)
