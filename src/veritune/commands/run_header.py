"""What a run is about to do, in words, before its first step."""

import math
from typing import Any

from veritune import distributed
from veritune.commands.run_data import RunData
from veritune.commands.run_rows import RunRows
from veritune.commands.train_settings import TrainConfig
from veritune.errors import Problems
from veritune.models.forward import CausalModel
from veritune.models.legality import Legality
from veritune.models.load import ModelSource
from veritune.models.reference import describe_reference
from veritune.objectives.choice import Choice, law_breaches, num_laws
from veritune.records.read import Found
from veritune.tokens.dataset import TokenizedDataset
from veritune.training.plan import RunPlan


def run_header(
    config: TrainConfig,
    data: RunData,
    choice: Choice,
    model: CausalModel,
    source: ModelSource,
    reference: ModelSource | None,
    legality: Legality,
    plan: RunPlan,
    rows: RunRows,
) -> dict[str, str]:
    """Names and facts: objective, model, reference, data and what was left out, steps, machine."""
    card = choice.card
    facts = {
        "objective": _objective_in_words(choice),
        "laws": _laws_in_words(choice),
        "model": f"{source.name}, {_parameters_in_words(model.hf)}",
        "reference": describe_reference(source, reference)
        if card.needs_reference
        else "none; the objective reads no reference",
        "data": f"{', '.join(config.data.files)}: {data.records.found.num_rows} rows, "
        f"{len(data.training)} {data.training.kind} records, {len(data.training.ids):,} tokens",
        "tokens": data.preparation,
        "converted": data.records.conversion,
        "left out": _left_out(data.records.found, data.training),
        "desirable": _desirable_in_words(data, choice, config.train.batch_size),
        "ends": _without_end(data.training),
        **_held_out_in_words(data),
        "length": _length_in_words(data),
        "layout": legality.sharing + (f" ({legality.reason})" if legality.reason else ""),
        **rows.facts(),
        "training": _training_in_words(config, model, plan),
        "output": config.output,
    }
    return {name: fact for name, fact in facts.items() if fact is not None}


def _objective_in_words(choice: Choice) -> str:
    name, title = choice.card.name, choice.card.title
    values = ", ".join(f"{n} = {v:.6g}" for n, v in choice.hyperparameters.items())
    return f"{name} ({title})" + (f": {values}" if values else "")


def _laws_in_words(choice: Choice) -> str | None:
    """Of a function of the user's own; the catalog is known to be sound."""
    if not choice.files:
        return None
    return "; ".join(law_breaches(choice)) or f"all {num_laws()} hold"


def _desirable_in_words(data: RunData, choice: Choice, batch_size: int) -> str | None:
    """The share of desirable records, what was taken from it, and whether batches hold both."""
    fraction = data.training.desirable_fraction
    if fraction is None:
        return None
    text = f"{fraction:.4f} of the records"
    name = choice.card.data_fraction
    if name is None:
        return text
    value = choice.hyperparameters[name]
    same = abs(value - fraction) < 1e-12
    text += f"; {name} is this fraction" if same else f"; {name} is set to {value:.4f}"
    rarer = min(fraction, 1 - fraction)
    if rarer * batch_size < 1:
        text += (
            f"; caution: a batch of {batch_size} holds {rarer * batch_size:.2g} of the rarer class "
            "on average, and without one the other class alone is learned from: raise "
            f"train.batch_size to {math.ceil(1 / rarer)} or more"
        )
    return text


def _training_in_words(config: TrainConfig, model: CausalModel, plan: RunPlan) -> str:
    processes = distributed.world_size()
    trained = f"adapters of rank {config.adapter.rank}" if config.adapter else "all weights"
    return (
        f"{plan.total_steps} steps of {config.train.batch_size} records, learning rate "
        f"{config.train.learning_rate:g}, {model.precision}, {trained}, {processes} "
        f"process{'es' if processes > 1 else ''} on {model.device.type}"
        + (", compiled" if config.train.compiles(model.device, plan.total_steps) else "")
    )


def problems_in_words(data: RunData) -> list[str]:
    """Every problem for which a row is left out, the first twenty of each step by file and line."""
    records = data.records
    steps: list[tuple[str, Problems]] = [
        ("rows of data cannot be used", records.found.problems),
        ("records of data cannot be tokenized", data.training.problems),
    ]
    if records.held_out_found is not None:
        steps.append(("held-out rows cannot be used", records.held_out_found.problems))
    if data.held_out is not None:
        steps.append(("held-out records cannot be tokenized", data.held_out.problems))
    return [
        f"{len(problems):,} {what} and are left out:\n{problems}"
        for what, problems in steps
        if problems
    ]


def _held_out_in_words(data: RunData) -> dict[str, str | None]:
    """What is held out, what was left out of it, and whether it is really held out."""
    held_out, records = data.held_out, data.records
    if held_out is None:
        return {}
    both = records.num_prompts_on_both_sides
    return {
        "held out": f"{len(held_out)} records",
        "held out, converted": records.held_out_conversion,
        "left out of held out": _left_out(records.held_out_found, held_out),
        "ends of held out": _without_end(held_out),
        "prompts on both sides": f"{both:,}; held-out numbers flatter the model" if both else None,
    }


def _length_in_words(data: RunData) -> str:
    limit = data.model_limit
    told = "the model states no limit" if limit is None else f"the model's limit is {limit:,}"
    return f"at most {data.training.max_length:,} tokens ({told})"


def _without_end(dataset: TokenizedDataset) -> str | None:
    count = dataset.num_without_end
    return f"{count:,} completions end in no end-of-sequence token" if count else None


def _left_out(found: Found | None, dataset: TokenizedDataset) -> str | None:
    """How many rows are not used or not whole, by reason."""
    lengths = dataset.lengths
    reasons = {
        "with problems": 0 if found is None else len(found.problems),
        "identical pairs": 0 if found is None else found.num_identical_dropped,
        "not tokenizable": len(dataset.problems),
        "pairs of the same tokens": dataset.dropped_identical,
        "dropped, completion too long": lengths.dropped_long_completions,
        "dropped, prompt too long": lengths.dropped_long_prompts,
        "prompts cut at their beginning": lengths.cut_prompts,
        "completions cut at their end": lengths.cut_completions,
    }
    told = [f"{count} {reason}" for reason, count in reasons.items() if count]
    return ", ".join(told) or None


def _parameters_in_words(hf_model: Any) -> str:
    total = sum(parameter.numel() for parameter in hf_model.parameters())
    for size, unit in ((1e9, "billion"), (1e6, "million")):
        if total >= size:
            return f"{total / size:.2f} {unit} parameters"
    return f"{total:,} parameters"
