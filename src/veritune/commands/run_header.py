"""What a run is about to do, in words, before its first step."""

from typing import Any

from veritune import distributed
from veritune.commands.run_data import RunData
from veritune.commands.train_settings import TrainConfig
from veritune.models.forward import CausalModel
from veritune.models.legality import Legality
from veritune.models.load import ModelSource
from veritune.models.reference import describe_reference
from veritune.training.plan import RunPlan
from veritune.training.step import Objective


def run_header(
    config: TrainConfig,
    data: RunData,
    objective: Objective,
    model: CausalModel,
    source: ModelSource,
    reference: ModelSource | None,
    legality: Legality,
    plan: RunPlan,
) -> dict[str, str]:
    """Names and facts: objective, model, reference, data and what was left out, steps, machine."""
    card = objective.card
    facts = {
        "objective": _objective_in_words(objective),
        "model": f"{source.name}, {_parameters_in_words(model.hf)}",
        "reference": describe_reference(source, reference)
        if card.needs_reference
        else "none; the objective reads no reference",
        "data": f"{', '.join(config.data.files)}: {data.records.found.num_rows} rows, "
        f"{len(data.training)} {data.training.kind} records, {len(data.training.ids):,} tokens",
        "converted": data.records.conversion,
        "left out": _left_out(data),
        "desirable": _desirable_in_words(data, objective),
        "held out": None if data.held_out is None else f"{len(data.held_out)} records",
        "rows": f"{legality.sharing}, up to {config.train.tokens_per_row} tokens"
        + (f" ({legality.reason})" if legality.reason else ""),
        "training": _training_in_words(config, model, plan),
        "output": config.output,
    }
    return {name: fact for name, fact in facts.items() if fact is not None}


def _objective_in_words(objective: Objective) -> str:
    name, title = objective.card.name, objective.card.title
    values = ", ".join(f"{n} = {v:.6g}" for n, v in objective.hyperparameters.items())
    return f"{name} ({title})" + (f": {values}" if values else "")


def _desirable_in_words(data: RunData, objective: Objective) -> str | None:
    """The share of desirable records, and whether a hyper-parameter was taken from it."""
    fraction = data.training.desirable_fraction
    if fraction is None:
        return None
    text = f"{fraction:.4f} of the records"
    name = objective.card.data_fraction
    if name is None:
        return text
    value = objective.hyperparameters[name]
    if abs(value - fraction) < 1e-12:
        return f"{text}; {name} is this fraction"
    return f"{text}; {name} is set to {value:.4f}"


def _training_in_words(config: TrainConfig, model: CausalModel, plan: RunPlan) -> str:
    processes = distributed.world_size()
    trained = f"adapters of rank {config.adapter.rank}" if config.adapter else "all weights"
    return (
        f"{plan.total_steps} steps of {config.train.batch_size} records, learning rate "
        f"{config.train.learning_rate:g}, {model.precision}, {trained}, {processes} "
        f"process{'es' if processes > 1 else ''} on {model.device.type}"
    )


def _left_out(data: RunData) -> str | None:
    """How many rows are not used or not whole, by reason."""
    found, lengths = data.records.found, data.training.lengths
    reasons = {
        "with problems": len(found.problems),
        "identical pairs": found.num_identical_dropped,
        "not tokenizable": len(data.training.problems),
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
