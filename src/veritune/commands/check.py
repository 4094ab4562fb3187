"""Say what is in a file of records, what is wrong with it, and how a model will see it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from veritune.batches.pack import row_tokens
from veritune.commands.display import Display
from veritune.config import Config
from veritune.errors import join_problems
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
from veritune.tokens.dataset import TokenizedDataset, tokenize
from veritune.tokens.encode import TextEncoder, TokenizedRecord, TokensConfig

_PERCENTILES = (0, 5, 25, 50, 75, 95, 100)
_SHOWN_TOKENS = 160
_LOSS_OPEN, _LOSS_CLOSE = "⟦", "⟧"


class CheckConfig(Config):
    """Settings of `veritune check`."""

    data: DataConfig
    """The records to look at."""

    model: str | None = None
    """A model whose tokenizer and chat template show what it will see; null looks at text only."""

    evaluation: DataConfig | None = None
    """Held-out records, to look for prompts that are on both sides."""

    tokens: TokensConfig = TokensConfig()
    examples: NonNegativeInt = 3
    """Records shown token by token (with `model`)."""


@dataclass(frozen=True)
class CheckResult:
    """What was found."""

    kind: str
    num_records: int
    num_problems: int
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
    _show_survey(config, found, survey, display)
    leaks = _show_leaks(config, found.records, display)
    dataset = None
    problems = len(found.problems)
    if config.model is not None:
        dataset = _show_tokens(config, config.model, found.records, display)
        problems += len(dataset.problems)
    shown = [*found.problems, *(dataset.problems if dataset is not None else ())]
    if shown:
        display.note(f"\n{problems} of {found.num_rows} rows cannot be used")
        display.note(join_problems(shown))
        display.note(
            "data.on_error=skip trains without them; they are counted in the run's header."
        )
    return CheckResult(found.kind, len(found.records), problems, survey, leaks, dataset)


def _show_survey(config: CheckConfig, found: ReadResult, survey: Survey, display: Display) -> None:
    facts = {
        "file": ", ".join(config.data.files),
        "kind": found.kind,
        "rows": f"{found.num_rows:,}, of which {len(found.records):,} can be used",
        "prompts": f"{survey.num_prompts:,} different ones",
    }
    if found.kind == "scored":
        sizes = ", ".join(f"{n:,} with {k}" for k, n in survey.num_by_completions.items())
        facts["completions"] = sizes
        low, high = survey.score_range or (0.0, 0.0)
        facts["scores"] = (
            f"{low:g} to {high:g}; {survey.num_with_ties:,} records with ties, "
            f"{survey.num_all_tied:,} with one score for all"
        )
    facts["duplicates"] = f"{survey.num_duplicates:,} records repeat an earlier one"
    if found.kind == "paired":
        facts["identical pairs"] = f"{survey.num_identical_pairs + found.num_identical_dropped:,}"
        facts["contradictions"] = (
            f"{survey.num_reversed_pairs:,} pairs in both orders, {survey.num_cyclic_prompts:,} "
            "prompts with a circle of preferences"
        )
    if found.kind == "unpaired":
        facts["contradictions"] = f"{survey.num_conflicting_labels:,} completions with both labels"
        facts["desirable"] = _desirable_in_words(survey)
    facts["empty completions"] = f"{survey.num_empty_completions:,}"
    display.header(facts)


def _desirable_in_words(survey: Survey) -> str:
    text = f"{survey.desirable_fraction or 0:.4f} of the records (rdro's alpha, ddro's t)"
    if survey.desirable_fraction_range is None:
        return text + "; no prompt has several labels"
    low, high = survey.desirable_fraction_range
    text += (
        f"; by prompt from {low:.2f} to {high:.2f} over "
        f"{survey.num_prompts_with_several_labels:,} prompts with several labels"
    )
    if survey.label_dispersion is not None:
        verdict = "more than chance" if survey.label_dispersion > 2 else "no more than chance"
        text += f" (spread {survey.label_dispersion:.1f} times that of chance: {verdict})"
    return text


def _show_leaks(config: CheckConfig, records: Sequence[Record], display: Display) -> int:
    if config.evaluation is None:
        return 0
    held_out = read_records(config.evaluation.model_copy(update={"on_error": "skip"})).records
    shared = prompts_in_common(records, held_out)
    display.header({"leaks": f"{len(shared):,} prompts are in both {_files(config)}"})
    for record in shared[:3]:
        display.note(f"  {record.origin}")
    return len(shared)


def _files(config: CheckConfig) -> str:
    held_out = config.evaluation.files if config.evaluation is not None else ()
    return f"{', '.join(config.data.files)} and {', '.join(held_out)}"


def _show_tokens(
    config: CheckConfig, model: str, records: Sequence[Record], display: Display
) -> TokenizedDataset:
    source = find_model(model)
    settings = load_settings(source)
    encoder = TextEncoder(load_tokenizer(source), config.tokens, end_tokens(settings))
    limit = longest_input(settings)
    max_length = min(config.tokens.max_length or limit, limit)
    dataset = tokenize(records, encoder, max_length=max_length, skip_problems=True)
    display.note("")
    display.console.print(_length_table(dataset))
    lengths = dataset.lengths
    shared = sum(row_tokens(dataset[i], shares_prefix=True) for i in range(len(dataset)))
    apart = sum(row_tokens(dataset[i], shares_prefix=False) for i in range(len(dataset)))
    facts = {
        "limit": f"{max_length:,} tokens for a prompt with its longest completion",
        "would be cut": f"{lengths.cut_prompts:,} prompts at their beginning, "
        f"{lengths.cut_completions:,} completions at their end",
        "would be dropped": f"{lengths.dropped:,} records",
        "one epoch": f"{shared:,} tokens to compute with shared prompts, {apart:,} without",
    }
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
    for index in range(min(config.examples, len(dataset))):
        _show_example(dataset[index], encoder, display)
    return dataset


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


def _show_example(group: TokenizedRecord, encoder: TextEncoder, display: Display) -> None:
    """One record as the model sees it; tokens that bear loss stand between brackets."""
    display.note(f"\n{group.origin}: prompt of {len(group.prompt)} tokens")
    display.console.print(_tokens_as_text(encoder, group.prompt, None), soft_wrap=True)
    for number, completion in enumerate(group.completions, start=1):
        counted = int(completion.bears_loss.sum())
        display.note(
            f"completion {number}: {len(completion.ids)} tokens, {counted} bear loss (between "
            f"{_LOSS_OPEN} and {_LOSS_CLOSE})"
        )
        text = _tokens_as_text(encoder, completion.ids, completion.bears_loss)
        display.console.print(text, soft_wrap=True)


def _tokens_as_text(
    encoder: TextEncoder, ids: NDArray[np.int32], bears_loss: NDArray[np.bool_] | None
) -> Text:
    text = Text()
    half = _SHOWN_TOKENS // 2
    for start, stop in _parts(len(ids), half):
        if start:
            text.append(f" … {start - half} tokens … ", style="dim italic")
        mask = np.zeros(len(ids), bool) if bears_loss is None else bears_loss
        for counts, run in groupby(range(start, stop), key=lambda place: bool(mask[place])):
            places = list(run)
            decoded = encoder.tokenizer.decode(
                ids[places].tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            if counts:
                text.append(f"{_LOSS_OPEN}{decoded}{_LOSS_CLOSE}", style="green")
            else:
                text.append(decoded)
    return text


def _parts(length: int, half: int) -> Iterator[tuple[int, int]]:
    """The whole of a short text; the first and the last half of a long one."""
    if length <= 2 * half:
        yield 0, length
    else:
        yield 0, half
        yield length - half, length
