"""The data of a run: records of the objective's kind, tokenized, and what became of the rest."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from veritune.commands.display import Display
from veritune.commands.train_settings import TrainConfig
from veritune.records.convert import convert_records
from veritune.records.kinds import Record
from veritune.records.read import ReadResult, read_records
from veritune.records.split import split_by_prompt
from veritune.tokens.dataset import TokenizedDataset, tokenize
from veritune.tokens.encode import TextEncoder


@dataclass(frozen=True)
class RunRecords:
    """Records to train on and held-out ones, of the objective's kind."""

    found: ReadResult
    """What the files held."""

    training: Sequence[Record]
    held_out: Sequence[Record]
    conversion: str | None
    """What was made of what, in words; None if nothing was converted."""


@dataclass(frozen=True)
class RunData:
    """Tokenized data of a run."""

    records: RunRecords
    training: TokenizedDataset
    held_out: TokenizedDataset | None

    def identity(self) -> str:
        """A hash of everything that is trained on."""
        data = self.training
        digest = hashlib.blake2b(digest_size=16)
        for array in (data.ids, data.piece_starts, data.group_starts, data.desirable):
            digest.update(array.tobytes())
        digest.update(repr(data.scores).encode())
        return digest.hexdigest()


def read_run_records(config: TrainConfig, kind: str) -> RunRecords:
    """Read, split by prompt if asked, and convert to the objective's kind.

    Raises:
        DataError: A file cannot be used, or cannot become that kind.
    """
    found = read_records(config.data)
    training: Sequence[Record] = found.records
    held_out: Sequence[Record] = ()
    if config.evaluation.data is not None:
        held_out = read_records(config.evaluation.data).records
    elif config.evaluation.fraction is not None:
        training, held_out = split_by_prompt(
            training, config.evaluation.fraction, config.train.seed
        )
    converted = convert_records(training, kind)
    conversion = None
    if found.kind != kind:
        told = ", ".join(f"{count} {what}" for what, count in converted.discarded.items())
        conversion = f"{found.kind} records to {kind} ones"
        conversion += f"; left out: {told}" if told else ""
    if held_out:
        held_out = convert_records(held_out, kind).records
    return RunRecords(found, converted.records, held_out, conversion)


def tokenize_run_records(
    config: TrainConfig,
    records: RunRecords,
    encoder: TextEncoder,
    longest_input: int,
    display: Display,
) -> RunData:
    """Training and held-out records as tokens, within the limits of settings and model."""
    max_length = min(config.tokens.max_length or longest_input, longest_input)

    def tokens(some: Sequence[Record]) -> TokenizedDataset:
        with display.counting("tokens") as progress:
            return tokenize(
                some,
                encoder,
                max_length=max_length,
                skip_problems=config.data.on_error == "skip",
                progress=lambda done: progress(done, len(some)),
            )

    held_out = tokens(records.held_out) if records.held_out else None
    return RunData(records, tokens(records.training), held_out)
