"""Say what is in a file of records, what is wrong with it, and how a model will see it."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from veritune.batches.pack import row_tokens
from veritune.commands.check_memory import show_memory
from veritune.commands.display import Display
from veritune.commands.examples import names_of_completions, show_example
from veritune.config import Config
from veritune.errors import DataError, Problems, TokenizationError
from veritune.models.adapters import AdapterConfig
from veritune.models.load import (
    end_tokens,
    find_model,
    load_settings,
    load_tokenizer,
    longest_input,
    quiet_libraries,
)
from veritune.ranges import NonNegativeInt
from veritune.records.kinds import Record
from veritune.records.read import DataConfig, ReadResult, read_records
from veritune.records.survey import Survey, prompts_in_common, survey_records
from veritune.tokens.chunk import identical_pair_problem, is_identical
from veritune.tokens.dataset import TokenizedDataset, tokenize
from veritune.tokens.encode import TextEncoder, TokenizedRecord, TokensConfig
from veritune.tokens.truncate import LengthCounts, fit_length, settle_max_length
from veritune.training.loop import TrainingConfig

_PERCENTILES = (0, 5, 25, 50, 75, 95, 100)
_SHOWN_LEAKS = 3
_DISPERSION_BEYOND_CHANCE = 2.0
"""Spread of labels between prompts, in multiples of chance, that is called more than chance."""


class CheckConfig(Config):
    """Settings of `veritune check`."""

    data: DataConfig
    """The records to look at."""

    model: str | None = None
    """A model whose tokenizer and chat template show what it will see; null looks at text only."""

    evaluation: DataConfig | None = None
    """Held-out records, to look for prompts that are on both sides."""

    tokens: TokensConfig = TokensConfig()
    train: TrainingConfig = TrainingConfig()
    adapter: AdapterConfig | None = None
    """Adapters that the run would train, for its memory; null is every weight."""

    examples: NonNegativeInt = 3
    """Records shown token by token (with `model`)."""


@dataclass(frozen=True)
class CheckResult:
    """What was found."""

    kind: str
    num_rows: int
    num_records: int
    num_problems: int
    """Rows that cannot be used, for what they hold or for what the tokenizer makes of it."""

    survey: Survey
    num_leaking_prompts: int
    dataset: TokenizedDataset | None


def check(config: CheckConfig, display: Display) -> CheckResult:
    """Read, survey and (with a model) tokenize the records, and tell about all of it.

    Raises:
        DataError: No record can be used.
        ModelError: The model has no usable tokenizer.
    """
    quiet_libraries()
    # Every problem is told, whatever `on_error` says; the exit code tells them from a sound file.
    found = read_records(config.data.model_copy(update={"on_error": "skip"}))
    survey = survey_records(found.records)
    leaks = _leaking_records(config, found.records)
    display.header(_facts(config, found, survey, leaks))
    for record in leaks[:_SHOWN_LEAKS]:
        display.note(f"  {record.origin}")
    dataset = None
    problems = Problems()
    problems.join(found.problems)
    if config.model is not None:
        dataset, cut_alike = _show_tokens(config, config.model, found.records, display)
        problems.join(dataset.problems)
        for problem in cut_alike:
            problems.add(problem)
    if problems:
        display.note(f"\n{len(problems):,} of {found.num_rows:,} rows cannot be used")
        display.note(str(problems))
        display.note(
            "data.on_error=skip trains without them; they are counted in the run's header."
        )
    return CheckResult(
        found.kind,
        found.num_rows,
        len(found.records),
        len(problems),
        survey,
        len(leaks),
        dataset,
    )


def _facts(
    config: CheckConfig, found: ReadResult, survey: Survey, leaks: Sequence[Record]
) -> dict[str, str]:
    facts = {
        "file": ", ".join(config.data.files),
        "kind": found.kind,
        "rows": f"{found.num_rows:,}, of which {len(found.records):,} can be used",
        "prompts": f"{survey.num_prompts:,} distinct",
    }
    if found.kind == "scored":
        sizes = ", ".join(f"{n:,} with {k}" for k, n in survey.num_by_completions.items())
        facts["completions"] = f"records by number of completions: {sizes}"
        low, high = survey.score_range or (0.0, 0.0)
        facts["scores"] = f"from {low:g} to {high:g}"
        facts["ties"] = (
            f"{survey.num_with_ties:,} records with equal scores, "
            f"{survey.num_all_tied:,} with one score for all"
        )
    facts["duplicates"] = f"{survey.num_duplicates:,} records repeat an earlier one"
    if found.kind == "paired":
        if config.data.identical_pairs != "stop":
            count = survey.num_identical_pairs + found.num_identical_dropped
            facts["identical pairs"] = f"{count:,}"
        facts["contradictions"] = (
            f"{survey.num_reversed_pairs:,} pairs in both orders, {survey.num_cyclic_prompts:,} "
            "prompts with a circle of preferences"
        )
    if found.kind == "unpaired":
        facts["contradictions"] = f"{survey.num_conflicting_labels:,} completions with both labels"
        fraction = survey.desirable_fraction or 0
        facts["desirable"] = f"{fraction:.4f} of the records (rdro's alpha, ddro's t)"
        facts["by prompt"] = _desirable_by_prompt(survey)
    if config.evaluation is not None:
        held_out = ", ".join(config.evaluation.files)
        facts["leaks"] = f"{len(leaks):,} prompts are held out too, in {held_out}"
    return facts


def _desirable_by_prompt(survey: Survey) -> str:
    if survey.desirable_fraction_range is None:
        return "no prompt has several labels"
    low, high = survey.desirable_fraction_range
    text = (
        f"from {low:.2f} to {high:.2f} over {survey.num_prompts_with_several_labels:,} prompts "
        "with several labels"
    )
    if survey.label_dispersion is None:
        return text
    is_more = survey.label_dispersion > _DISPERSION_BEYOND_CHANCE
    verdict = "more than chance" if is_more else "no more than chance"
    return f"{text}; spread {survey.label_dispersion:.1f} times that of chance ({verdict})"


def _leaking_records(config: CheckConfig, records: Sequence[Record]) -> Sequence[Record]:
    """Records whose prompt is held out too."""
    if config.evaluation is None:
        return ()
    held_out = read_records(config.evaluation.model_copy(update={"on_error": "skip"})).records
    return prompts_in_common(records, held_out)


def _show_tokens(
    config: CheckConfig, model: str, records: Sequence[Record], display: Display
) -> tuple[TokenizedDataset, list[TokenizationError]]:
    """The records as tokens, and pairs that only the limit makes a problem."""
    source = find_model(model)
    settings = load_settings(source)
    encoder = TextEncoder(load_tokenizer(source), config.tokens, end_tokens(settings))
    max_length = settle_max_length(config.tokens.max_length, longest_input(settings))
    # Nothing is cut here, so that the lengths are those of the data and not those of the limit.
    dataset = tokenize(
        records,
        encoder,
        max_length=sys.maxsize,
        skip_problems=True,
        identical_pairs=config.data.identical_pairs,
    )
    counts = LengthCounts()
    fitted = _fitted(dataset, encoder, max_length, counts)
    display.note("")
    display.console.print(_length_table(dataset))
    shared = sum(row_tokens(group, shares_prefix=True) for _, group in fitted)
    apart = sum(row_tokens(group, shares_prefix=False) for _, group in fitted)
    facts = {
        "limit": f"{max_length:,} tokens for a prompt with its longest completion",
        "would be cut": f"{counts.cut_prompts:,} prompts at their beginning, "
        f"{counts.cut_completions:,} completions at their end",
        "would be dropped": f"{counts.dropped:,} of {len(dataset):,} records",
        "one epoch": f"{shared:,} tokens to compute with shared prompts, {apart:,} without",
    }
    num_alike = 0
    cut_alike: list[TokenizationError] = []
    if dataset.kind == "paired":
        alike = [group for _, group in fitted if is_identical(group)]
        num_alike = dataset.dropped_identical + len(alike)
        if config.data.identical_pairs == "stop":
            cut_alike = [identical_pair_problem(group) for group in alike]
    if num_alike:
        facts["same tokens"] = f"{num_alike:,} pairs within the limit"
    if dataset.num_without_end:
        facts["ends"] = f"{dataset.num_without_end:,} completions end in no end-of-sequence token"
    if encoder.end_of_turn is not None and encoder.end_of_turn not in {
        encoder.eos,
        *end_tokens(settings),
    }:
        token = encoder.tokenizer.convert_ids_to_tokens(encoder.end_of_turn)
        facts["end of turn"] = (
            f"the template ends a turn by {token}, at which the model's generation does not stop; "
            "the saved model's generation settings will include it"
        )
    display.header(facts)
    # Prompts alone are no data to train on.
    if any(group.completions for _, group in fitted):
        show_memory(config.train, config.adapter, settings, [g for _, g in fitted], display)
    for index, group in fitted[: config.examples]:
        show_example(group, names_of_completions(dataset, index), encoder, display)
    return dataset, cut_alike


def _fitted(
    dataset: TokenizedDataset, encoder: TextEncoder, max_length: int, counts: LengthCounts
) -> list[tuple[int, TokenizedRecord]]:
    """The groups as a run would see them, with their indices.

    Raises:
        DataError: None would be left, or the settings say to stop at what is too long.
    """
    bos = encoder.tokenizer.bos_token_id
    fitted = [
        (index, group)
        for index in range(len(dataset))
        if (group := fit_length(dataset[index], max_length, encoder.config, counts, bos=bos))
    ]
    if not fitted:
        raise DataError(
            "every record is too long",
            where="tokens.max_length",
            got=max_length,
            fix="raise it, or set tokens.long_completions=cut",
        )
    return fitted


def _length_table(dataset: TokenizedDataset) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("length in tokens")
    for percentile in _PERCENTILES:
        name = {0: "min", 50: "median", 100: "max"}.get(percentile, f"{percentile} %")
        table.add_column(name, justify="right")
    rows: dict[str, NDArray[np.int64]] = {
        "prompt": dataset.prompt_lengths(),
        "completion": dataset.completion_lengths(),
    }
    for name, lengths in rows.items():
        if len(lengths):
            values = np.percentile(lengths, _PERCENTILES, method="nearest")
            table.add_row(name, *(f"{int(value):,}" for value in values))
    return table
