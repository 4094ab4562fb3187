"""Train a policy from a file of records: a file of preferences in, an aligned model out."""

import hashlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict

from veritune import distributed, seeds
from veritune.batches.loader import GlobalBatch, Loader, num_steps
from veritune.batches.order import RecordOrder
from veritune.commands.display import Display, duration
from veritune.config import Config
from veritune.errors import DataError, SettingsError
from veritune.evaluation.held_out import EvaluationConfig, HeldOut
from veritune.models.adapters import AdapterConfig, attach_adapter, save_adapter
from veritune.models.cache import ReferenceCache, default_cache_folder
from veritune.models.forward import CausalModel
from veritune.models.legality import Legality, settle_sharing
from veritune.models.load import (
    ModelSource,
    check_vocabulary,
    end_tokens,
    find_model,
    load_hf_model,
    load_tokenizer,
    longest_input,
    quiet_libraries,
)
from veritune.models.reference import (
    ReferenceLogProbs,
    cache_identity,
    describe_reference,
    score_reference,
)
from veritune.objectives.catalog import find_card, settings_of
from veritune.provenance import versions
from veritune.records.convert import convert_records
from veritune.records.kinds import Record
from veritune.records.read import DataConfig, ReadResult, read_records
from veritune.records.split import split_by_prompt
from veritune.reports.run import run_report
from veritune.tokens.dataset import TokenizedDataset, tokenize
from veritune.tokens.encode import TextEncoder, TokenizedRecord, TokensConfig
from veritune.training.checkpoint import Position, read_checkpoint
from veritune.training.log import RunLog
from veritune.training.loop import TrainingConfig, run_loop
from veritune.training.optimizer import build_optimizer
from veritune.training.run_folder import (
    RunFolder,
    begin_run,
    finish_run,
    open_run_folder,
)
from veritune.training.step import (
    Objective,
    ObjectivePass,
    TrainingStep,
    assert_step_zero,
    mismatched_group,
)

_SCORING_BUDGET = 4


class ObjectiveConfig(Config):
    """Which objective, and its hyper-parameters beside the name."""

    model_config = ConfigDict(extra="allow")
    SHORTHAND: ClassVar[str | None] = "name"

    name: str
    """A name that `veritune objectives` lists."""


class TrainConfig(Config):
    """Settings of `veritune train`."""

    model: str
    """The starting model: a folder or a hub id; a folder with a PEFT adapter stands for its base
    with the adapter merged in."""

    data: DataConfig
    """File, list of files, or hub id."""

    objective: ObjectiveConfig
    """A name, or {name: …, hyper-parameters}."""

    output: str
    """The run folder. A folder with an unfinished run of the same settings is continued."""

    reference: str | None = None
    """What policy log-probabilities are compared with: a folder, hub id or adapter; null is the
    model itself before training."""

    adapter: AdapterConfig | None = None
    """Train low-rank adapters; null trains every weight. `adapter={}` takes the defaults."""

    tokens: TokensConfig = TokensConfig()
    train: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    cache: str | None = None
    """Folder of the reference cache; null is $VERITUNE_CACHE or the user's cache folder."""


@dataclass(frozen=True)
class RunResult:
    """What a run leaves."""

    folder: Path
    steps: int
    last_line: Mapping[str, Any]
    evaluation: Mapping[str, Any] | None


def train(
    config: TrainConfig,
    display: Display,
    *,
    overwrite: bool = False,
    measure: Callable[[CausalModel, int], Mapping[str, float] | None] | None = None,
) -> RunResult:
    """Train a policy from a file of records.

    Args:
        config: The settings of the run.
        display: Where the user is told.
        overwrite: Remove what a run left in the output folder.
        measure: Called with the policy before the first step and behind each; what it returns is
            added to the log.

    Raises:
        VerituneError: Input, settings or the run itself fail.
        Interrupted: A signal came; a checkpoint was written.
    """
    quiet_libraries()
    began = time.monotonic()
    card = find_card(config.objective.name)
    kind = card.kind
    _check_objective_settings(config)
    source, reference_source = _find_models(config)
    tokenizer = load_tokenizer(source)

    found = read_records(config.data)
    records, held_out, conversion = _records(config, found, kind)

    hf_model = load_hf_model(source, device=distributed.device(), dropout=config.train.dropout)
    check_vocabulary(hf_model, tokenizer, source)
    encoder = TextEncoder(tokenizer, config.tokens, end_tokens(hf_model))
    limit = longest_input(hf_model)
    skips = config.data.on_error == "skip"
    dataset = _tokenize(records, encoder, config.tokens, limit, skips, display)
    held = _tokenize(held_out, encoder, config.tokens, limit, skips, display) if held_out else None

    objective, config = _resolve_objective(config, dataset)
    folder = open_run_folder(Path(config.output), config, overwrite=overwrite)
    if folder.is_finished:
        display.note(f"The run in {folder.path} is complete; the model is {folder.model}.")
        return RunResult(folder.path, 0, {}, None)

    model = CausalModel(
        hf_model, precision=config.train.resolved_precision, temperature=config.train.temperature
    )
    legality = settle_sharing(
        model, [dataset[i] for i in range(min(3, len(dataset)))], config.train.sharing
    )
    plan = _plan(config, dataset, objective)
    held_batch = None if held is None else _whole_set(config, held, objective)
    display.header(
        _header(
            config,
            found,
            conversion,
            dataset,
            held,
            source,
            reference_source,
            legality,
            plan,
            objective,
            model,
        )
    )
    provenance = _provenance(dataset, source, reference_source)
    if distributed.is_main_rank():
        begin_run(folder, config, provenance)
    distributed.barrier()

    reference = None
    if card.needs_reference:
        groups = _groups_to_score(dataset, plan.loader)
        if held is not None and held_batch is not None:
            groups += _groups_of(held, held_batch)
        reference = _score(config, model, source, reference_source, groups, display)

    peft_model = None
    if config.adapter is not None:
        seed = seeds.stream_seed(config.train.seed, "adapter")
        peft_model = attach_adapter(hf_model, config.adapter, seed=seed)
    if config.train.gradient_checkpointing:
        _checkpoint_activations(hf_model)
    objective_pass = ObjectivePass(
        model, objective, dataset, reference, config.train.tokens_per_row
    )
    step = TrainingStep(
        objective_pass,
        build_optimizer(hf_model.parameters(), config.train),
        config.train,
        plan.total_steps,
        config.train.seed,
    )
    start = Position(0, 0)
    if folder.checkpoint is not None:
        start = read_checkpoint(folder.checkpoint, hf_model, step.optimizer)
        display.note(f"continuing behind step {start.step} from {folder.checkpoint}")
    else:
        _assert_step_zero(objective_pass, plan, source, reference_source, display)

    evaluate = _evaluation(config, objective, model, held, held_batch, reference, plan, display)
    evaluate.measure = None if measure is None else partial(measure, model)
    last_line = _run(config, folder, step, plan, start, evaluate, display)
    distributed.barrier()
    if distributed.is_main_rank():
        _save(config, folder, hf_model, peft_model, tokenizer, encoder, source)
        finish_run(folder, {"seconds": round(time.monotonic() - began, 1)})
        report = run_report(folder.path)
        display.note(f"model   {folder.model}\nreport  {report}")
    distributed.barrier()
    return RunResult(folder.path, plan.total_steps, last_line, evaluate.last)


@dataclass(frozen=True)
class _Plan:
    """Which records the run meets, in which order."""

    loader: Loader
    total_steps: int
    last: int
    """Records that the run sees in all."""


class _Evaluation:
    """Evaluates when due, tells the user, and remembers the last line."""

    def __init__(self, held_out: HeldOut | None, display: Display) -> None:
        self._held_out = held_out
        self._display = display
        self.last: Mapping[str, Any] | None = None
        self.measure: Callable[[int], Mapping[str, float] | None] | None = None

    def __call__(self, step: int) -> Mapping[str, Any] | None:
        line = None if self._held_out is None else self._held_out(step)
        if line is not None:
            self.last = line
            self._display.note(held_out_in_words(line))
        measured = None if self.measure is None else self.measure(step)
        if measured is not None:
            line = {"step": step, **(line or {}), **measured}
        return line


def held_out_in_words(line: Mapping[str, Any]) -> str:
    """A line for the terminal from a held-out measurement."""
    names = ("loss", "rewards/accuracies", "rewards/margins")
    shown = [f"{n.split('/')[-1]} {line[f'eval/{n}']:.4g}" for n in names if f"eval/{n}" in line]
    return f"held out, step {line['step']}: {'  '.join(shown)}  ({line['eval/records']} records)"


def _find_models(config: TrainConfig) -> tuple[ModelSource, ModelSource | None]:
    source = find_model(config.model)
    if config.reference is None:
        return source, None
    return source, find_model(config.reference, setting="reference")


def _check_objective_settings(config: TrainConfig) -> None:
    """Refuse wrong hyper-parameters before anything is loaded."""
    card = find_card(config.objective.name)
    settings_of(card, config.objective.model_extra or {}, data_fraction=0.5)
    if config.reference is not None and not card.needs_reference:
        raise SettingsError(
            f"the objective {card.name} reads no reference",
            where="reference",
            got=config.reference,
            fix="remove the setting, or choose an objective that compares with a reference",
        )


def _records(
    config: TrainConfig, found: ReadResult, kind: str
) -> tuple[Sequence[Record], Sequence[Record], str | None]:
    """Training and held-out records of the objective's kind, and what was converted."""
    evaluation = config.evaluation
    records: Sequence[Record] = found.records
    held_out: Sequence[Record] = ()
    if evaluation.data is not None:
        if evaluation.fraction is not None:
            raise SettingsError(
                "evaluation.data and evaluation.fraction are two ways to name held-out data",
                where="evaluation",
                fix="give one of them",
            )
        held_out = read_records(evaluation.data).records
    elif evaluation.fraction is not None:
        records, held_out = split_by_prompt(records, evaluation.fraction, config.train.seed)
    converted = convert_records(records, kind)
    conversion = None
    if found.kind != kind:
        told = ", ".join(f"{count} {what}" for what, count in converted.discarded.items())
        conversion = f"{found.kind} records to {kind} ones" + (
            f"; left out: {told}" if told else ""
        )
    if held_out:
        held_out = convert_records(held_out, kind).records
    return converted.records, held_out, conversion


def _tokenize(
    records: Sequence[Record],
    encoder: TextEncoder,
    config: TokensConfig,
    limit: int,
    skips: bool,
    display: Display,
) -> TokenizedDataset:
    max_length = min(config.max_length or limit, limit)
    if max_length < 2:
        raise SettingsError(
            "a record needs at least 2 tokens", where="tokens.max_length", got=max_length
        )
    with display.counting("tokens") as progress:
        return tokenize(
            records,
            encoder,
            max_length=max_length,
            skip_problems=skips,
            progress=lambda done: progress(done, len(records)),
        )


def _resolve_objective(
    config: TrainConfig, dataset: TokenizedDataset
) -> tuple[Objective, TrainConfig]:
    """The objective with every hyper-parameter, and the settings with them written out."""
    card = find_card(config.objective.name)
    fraction = dataset.desirable_fraction
    if dataset.kind == "unpaired" and card.data_fraction is not None and fraction in (0.0, 1.0):
        raise DataError(
            f"every record is {'desirable' if fraction else 'undesirable'}",
            where="data",
            why=f"{card.name} compares the two classes, and one of them is empty",
            fix="add records of the other label",
        )
    hyperparameters = settings_of(card, config.objective.model_extra or {}, data_fraction=fraction)
    resolved = config.model_copy(
        update={"objective": ObjectiveConfig(name=card.name, **hyperparameters)}
    )
    return Objective(card, hyperparameters), resolved


def _prompt_keys(dataset: TokenizedDataset, objective: Objective) -> list[bytes] | None:
    """Keys of prompts where mismatched partners are asked for.

    Raises:
        DataError: There is one prompt only, so no completion is a mismatch.
    """
    if not objective.card.needs_mismatched:
        return None
    keys = [dataset[index].prompt.tobytes() for index in range(len(dataset))]
    if len(set(keys)) < 2:
        raise DataError(
            f"{objective.card.name} needs at least two different prompts",
            where="data",
            why="its baseline is estimated from completions under prompts they do not belong to",
            fix="add records, or choose an objective without a baseline, such as rdro",
        )
    return keys


def _plan(config: TrainConfig, dataset: TokenizedDataset, objective: Objective) -> _Plan:
    settings = config.train
    total = settings.steps or num_steps(len(dataset), settings.batch_size, settings.epochs)
    last = (
        total * settings.batch_size
        if settings.steps is not None
        else max(1, round(settings.epochs * len(dataset)))
    )
    order = RecordOrder(len(dataset), settings.seed, dataset.desirable)
    loader = Loader(order, settings.batch_size, last, _prompt_keys(dataset, objective))
    return _Plan(loader, total, last)


def _whole_set(config: TrainConfig, dataset: TokenizedDataset, objective: Objective) -> GlobalBatch:
    """A data set as one global batch."""
    order = RecordOrder(len(dataset), config.train.seed, dataset.desirable)
    keys = _prompt_keys(dataset, objective)
    batch, _ = next(Loader(order, len(dataset), len(dataset), keys).batches())
    return batch


def _groups_of(dataset: TokenizedDataset, batch: GlobalBatch) -> list[TokenizedRecord]:
    """Every group of which a batch needs reference log-probabilities."""
    groups = [dataset[index] for index in batch.indices]
    for index, partner in zip(batch.indices, batch.mismatched, strict=False):
        if partner is not None:
            groups.append(mismatched_group(dataset, index, partner))
    return groups


def _groups_to_score(dataset: TokenizedDataset, loader: Loader) -> list[TokenizedRecord]:
    return [group for batch, _ in loader.batches() for group in _groups_of(dataset, batch)]


def _score(
    config: TrainConfig,
    model: CausalModel,
    source: ModelSource,
    reference_source: ModelSource | None,
    groups: list[TokenizedRecord],
    display: Display,
) -> ReferenceLogProbs:
    """Reference log-probabilities of all groups, from the cache or scored now."""
    scorer = model
    if reference_source is not None and reference_source.identity != source.identity:
        scorer = CausalModel(
            load_hf_model(reference_source, device=distributed.device()),
            precision=model.precision,
            temperature=model.temperature,
        )
        check_same_vocabulary(model, scorer, reference_source)
        settle_sharing(scorer, groups[:3], config.train.sharing)
    root = Path(config.cache).expanduser() if config.cache else default_cache_folder()
    identity = cache_identity(reference_source or source, scorer)
    cache = ReferenceCache(root, identity)
    started = time.monotonic()
    with display.counting("reference") as progress:
        scored = score_reference(
            scorer,
            cache,
            groups,
            tokens_per_row=_SCORING_BUDGET * config.train.tokens_per_row,
            seed=config.train.seed,
            progress=progress,
        )
    display.note(
        f"reference log-probabilities: {scored} groups scored in "
        f"{duration(time.monotonic() - started)}, {len({g.key() for g in groups}) - scored} from "
        f"{cache.folder}"
    )
    return ReferenceLogProbs(cache)


def check_same_vocabulary(policy: CausalModel, reference: CausalModel, source: ModelSource) -> None:
    """Refuse a reference whose token ids cannot be those of the policy."""
    sizes = [m.hf.get_input_embeddings().weight.shape[0] for m in (policy, reference)]
    if sizes[0] != sizes[1]:
        raise SettingsError(
            "policy and reference have vocabularies of different size",
            where="reference",
            got=f"{source.name}: {sizes[1]} tokens, the policy has {sizes[0]}",
            why="one text would be two different sequences of tokens",
            fix="choose a reference of the same family",
        )


def _assert_step_zero(
    objective_pass: ObjectivePass,
    plan: _Plan,
    source: ModelSource,
    reference_source: ModelSource | None,
    display: Display,
) -> None:
    same = reference_source is None or reference_source.identity == source.identity
    first, _ = next(plan.loader.batches())
    found = assert_step_zero(objective_pass, first, reference_is_policy=same)
    if not found:
        display.note("step 0: nothing to verify (policy and reference are not the same model)")
        return
    text = f"step 0: log-ratios are zero ({found['log_ratio_over_tolerance']:.2g} of the tolerance)"
    if "expected_loss" in found:
        text += f", loss {found['loss']:.6f}, expected {found['expected_loss']:.6f}"
    display.note(text)


def _evaluation(
    config: TrainConfig,
    objective: Objective,
    model: CausalModel,
    held: TokenizedDataset | None,
    batch: GlobalBatch | None,
    reference: ReferenceLogProbs | None,
    plan: _Plan,
    display: Display,
) -> _Evaluation:
    if held is None or batch is None:
        return _Evaluation(None, display)
    held_pass = ObjectivePass(model, objective, held, reference, config.train.tokens_per_row)
    return _Evaluation(
        HeldOut(held_pass, batch, config.evaluation.every, plan.total_steps), display
    )


def _run(
    config: TrainConfig,
    folder: RunFolder,
    step: TrainingStep,
    plan: _Plan,
    start: Position,
    evaluate: _Evaluation,
    display: Display,
) -> Mapping[str, Any]:
    """The steps from `start` on; returns the last line."""
    last_line: dict[str, Any] = {}
    log = RunLog(folder.path, after_step=start.step) if distributed.is_main_rank() else None
    try:
        if start.step == 0 and (first := evaluate(0)) is not None and log is not None:
            log.write(first)
        with display.training(plan.total_steps, start.step) as show:

            def on_step(line: Mapping[str, Any]) -> None:
                last_line.clear()
                last_line.update(line)
                show(line)

            run_loop(
                step,
                plan.loader,
                log,
                run=folder.path,
                start=start,
                total_steps=plan.total_steps,
                config=config.train,
                evaluate=evaluate,
                on_step=on_step,
            )
    finally:
        if log is not None:
            log.close()
    return last_line


def _save(
    config: TrainConfig,
    folder: RunFolder,
    hf_model: Any,
    peft_model: Any,
    tokenizer: Any,
    encoder: TextEncoder,
    source: ModelSource,
) -> None:
    """The aligned model as a plain model folder, and the adapter beside it."""
    if peft_model is not None:
        save_adapter(peft_model, folder.path / "adapter", source.name)
        hf_model = peft_model.merge_and_unload()
    if config.train.save_dtype == "bf16":
        hf_model = hf_model.to(torch.bfloat16)
    hf_model.generation_config.eos_token_id = sorted(encoder.end_tokens)
    hf_model.config._attn_implementation = None
    hf_model.save_pretrained(str(folder.model))
    tokenizer.save_pretrained(str(folder.model))


def _checkpoint_activations(hf_model: Any) -> None:
    """Recompute activations in the backward pass; newer transformers has a new name for it."""
    if hasattr(hf_model, "activation_checkpointing_enable"):
        hf_model.activation_checkpointing_enable()
    else:
        hf_model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )


def _provenance(
    dataset: TokenizedDataset, source: ModelSource, reference: ModelSource | None
) -> dict[str, Any]:
    digest = hashlib.blake2b(digest_size=16)
    for array in (dataset.ids, dataset.piece_starts, dataset.group_starts, dataset.desirable):
        digest.update(array.tobytes())
    digest.update(repr(dataset.scores).encode())
    return {
        "model": source.identity,
        "reference": (reference or source).identity,
        "data_tokens": digest.hexdigest(),
        "processes": distributed.world_size(),
        "command": " ".join(sys.argv[1:]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": versions(),
    }


def _header(
    config: TrainConfig,
    found: ReadResult,
    conversion: str | None,
    dataset: TokenizedDataset,
    held: TokenizedDataset | None,
    source: ModelSource,
    reference_source: ModelSource | None,
    legality: Legality,
    plan: _Plan,
    objective: Objective,
    model: CausalModel,
) -> dict[str, str]:
    """What the run is about to do, in words."""
    settings = config.train
    hyper = ", ".join(f"{n} = {v:.6g}" for n, v in objective.hyperparameters.items())
    facts = {
        "objective": f"{objective.card.name} ({objective.card.title})"
        + (f": {hyper}" if hyper else ""),
        "model": f"{source.name}, {_count_parameters(model.hf)}",
        "reference": describe_reference(source, reference_source)
        if objective.card.needs_reference
        else "none; the objective reads no reference",
        "data": f"{', '.join(config.data.files)}: {found.num_rows} rows, {len(dataset)} "
        f"{dataset.kind} records, {len(dataset.ids):,} tokens",
    }
    if conversion is not None:
        facts["converted"] = conversion
    left_out = _left_out(found, dataset)
    if left_out:
        facts["left out"] = left_out
    if dataset.desirable_fraction is not None:
        facts["desirable"] = f"{dataset.desirable_fraction:.4f} of the records"
        name = objective.card.data_fraction
        if name is not None:
            share = objective.hyperparameters[name]
            same = abs(share - dataset.desirable_fraction) < 1e-12
            facts["desirable"] += (
                f"; {name} is this fraction" if same else f"; {name} is set to {share:.4f}"
            )
    if held is not None:
        facts["held out"] = f"{len(held)} records"
    facts["rows"] = f"{legality.sharing}, up to {settings.tokens_per_row} tokens" + (
        f" ({legality.reason})" if legality.reason else ""
    )
    facts["training"] = (
        f"{plan.total_steps} steps of {settings.batch_size} records, learning rate "
        f"{settings.learning_rate:g}, {model.precision}, "
        + (f"adapters of rank {config.adapter.rank}" if config.adapter else "all weights")
        + f", {distributed.world_size()} process"
        + ("es" if distributed.world_size() > 1 else "")
        + f" on {model.device.type}"
    )
    facts["output"] = config.output
    return facts


def _left_out(found: ReadResult, dataset: TokenizedDataset) -> str | None:
    """How many rows are not used or not whole, by reason."""
    lengths = dataset.lengths
    reasons = {
        "with problems": len(found.problems),
        "not tokenizable": len(dataset.problems),
        "dropped, completion too long": lengths.dropped_long_completions,
        "dropped, prompt too long": lengths.dropped_long_prompts,
        "prompts cut at their beginning": lengths.cut_prompts,
        "completions cut at their end": lengths.cut_completions,
    }
    told = [f"{count} {reason}" for reason, count in reasons.items() if count]
    return ", ".join(told) or None


def _count_parameters(hf_model: Any) -> str:
    total = sum(parameter.numel() for parameter in hf_model.parameters())
    for size, unit in ((1e9, "billion"), (1e6, "million")):
        if total >= size:
            return f"{total / size:.2f} {unit} parameters"
    return f"{total:,} parameters"
