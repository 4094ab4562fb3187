"""Train a policy from a file of records: a file of preferences in, an aligned model out."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from veritune import distributed, seeds
from veritune.commands.display import Display, duration
from veritune.commands.run_data import RunData, prepare_run_data
from veritune.commands.run_header import problems_in_words, run_header
from veritune.commands.run_objective import (
    check_objective,
    keep_objective_files,
    resolve_objective,
)
from veritune.commands.run_rows import RunRows, memory_before, memory_taken, settle_rows, try_rows
from veritune.commands.train_settings import TrainConfig
from veritune.errors import RunFolderError, SettingsError
from veritune.evaluation.held_out import HeldOut
from veritune.models.adapters import attach_adapter, save_adapter
from veritune.models.cache import ReferenceCache, default_cache_folder
from veritune.models.compiled import compile_layers
from veritune.models.forward import CausalModel
from veritune.models.legality import settle_sharing
from veritune.models.load import (
    ModelSource,
    check_vocabulary,
    checkpoint_activations,
    end_tokens,
    find_model,
    load_hf_model,
    load_settings,
    load_tokenizer,
    longest_input,
    quiet_libraries,
)
from veritune.models.reference import (
    ReferenceLogProbs,
    cache_identity,
    score_reference,
    scoring_budget,
)
from veritune.models.save import save_model
from veritune.objectives.choice import Choice
from veritune.provenance import versions
from veritune.reports.run import run_report
from veritune.tokens.encode import TextEncoder, TokenizedRecord
from veritune.training.checkpoint import Position, read_checkpoint
from veritune.training.log import RunLog
from veritune.training.loop import run_loop
from veritune.training.objective_pass import Objective, ObjectivePass
from veritune.training.optimizer import build_optimizer
from veritune.training.plan import RunPlan, Streams, groups_to_score, plan_run, whole_set
from veritune.training.run_folder import (
    RunFolder,
    begin_run,
    finish_run,
    open_run_folder,
    read_provenance,
)
from veritune.training.step import TrainingStep
from veritune.training.step_zero import assert_step_zero

Measurement = Callable[[CausalModel, int], Mapping[str, float] | None]


@dataclass(frozen=True)
class RunResult:
    """What a run leaves."""

    folder: Path
    steps: int
    """Steps of the run; 0 if it was complete before."""

    last_line: Mapping[str, Any]
    """Metrics of the last step; empty if no step was left to make."""

    evaluation: Mapping[str, Any] | None
    """The last held-out measurement; None also if no step was left to make."""


def train(
    config: TrainConfig,
    display: Display,
    *,
    overwrite: bool = False,
    measure: Measurement | None = None,
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
    stand_in = check_objective(config)
    card = stand_in.card
    source, reference_source = _find_models(config)
    tokenizer = load_tokenizer(source)

    settings = load_settings(source)
    encoder = TextEncoder(tokenizer, config.tokens, end_tokens(settings))
    data = prepare_run_data(config, card.kind, encoder, longest_input(settings), display)
    before = memory_before()
    hf_model = load_hf_model(source, device=distributed.device(), dropout=config.train.dropout)
    check_vocabulary(hf_model, tokenizer, source)

    choice, config = resolve_objective(config, stand_in, data)
    objective = Objective(choice.card, choice.hyperparameters)
    folder = _open_run_folder(config, overwrite)
    _refuse_to_remove_inputs(folder, source, reference_source)
    if folder.is_finished:
        return _already_complete(folder, display)

    model = CausalModel(
        hf_model, precision=config.train.resolved_precision, temperature=config.train.temperature
    )
    first = [data.training[index] for index in range(min(3, len(data.training)))]
    legality = settle_sharing(model, first, config.train.sharing)
    plan = plan_run(config.train, data.training, objective)
    rows = settle_rows(
        config,
        model,
        data.training,
        before,
        has_other_reference=reference_source is not None
        and reference_source.identity != source.identity,
        scoring_budget=scoring_budget(model.device) if card.needs_reference else 0,
        recorded=None if folder.checkpoint is None else read_provenance(folder.path).get("rows"),
    )
    display.header(
        run_header(config, data, choice, model, source, reference_source, legality, plan, rows)
    )
    for problems in problems_in_words(data):
        display.note(problems)
    reference = None
    if card.needs_reference:
        streams: Streams = [(data.training, plan.batches())]
        if data.held_out is not None:
            held_out = whole_set(config.train, data.held_out, objective)
            streams.append((data.held_out, [held_out]))
        groups = groups_to_score(streams)
        budget = scoring_budget(model.device) * rows.settings.tokens_per_row
        reference = _score(config, model, source, reference_source, groups, budget, display)

    peft_model = None
    if config.adapter is not None:
        seed = seeds.stream_seed(config.train.seed, "adapter")
        peft_model = attach_adapter(hf_model, config.adapter, seed=seed)
    if rows.settings.checkpoint_every is not None:
        checkpoint_activations(hf_model, every=rows.settings.checkpoint_every)
    # Behind the scoring, so that the check of the first step holds compiled layers against others.
    if config.train.compiles(model.device, plan.total_steps):
        compile_layers(hf_model, is_optional=config.train.compile == "auto")
    rows = try_rows(rows, config, model, data.training, display)
    step = TrainingStep(
        ObjectivePass(model, objective, data.training, reference, rows.settings.tokens_per_row),
        build_optimizer(hf_model.parameters(), config.train),
        config.train,
        plan.total_steps,
        config.train.seed,
    )
    if folder.checkpoint is None:
        same = reference_source is None or reference_source.identity == source.identity
        _assert_step_zero(step.objective_pass, plan, same, display)
    # Behind everything that may refuse: a folder once begun holds to its settings, and a run that
    # is overwritten is gone.
    if distributed.is_main_rank():
        begin_run(folder, config, _provenance(data, choice, source, reference_source, rows))
        keep_objective_files(choice, folder.path)
    distributed.barrier()
    start = Position(0, 0)
    if folder.checkpoint is not None:
        start = read_checkpoint(folder.checkpoint, hf_model, step.optimizer)
        step.objective_pass.running.restore(start.log_ratios)
        display.note(f"continuing behind step {start.step} from {folder.checkpoint}")

    between = _Between(config, step.objective_pass, data, plan, display)
    between.measure = None if measure is None else partial(measure, model)
    last_line = _run(config, folder, step, plan, start, between, display)
    distributed.barrier()
    if distributed.is_main_rank():
        if peft_model is not None:
            save_adapter(peft_model, folder.path / "adapter", source.name)
            hf_model = peft_model.merge_and_unload()
        dtype = config.train.save_dtype
        save_model(
            folder.model, hf_model, tokenizer, source, end_tokens=encoder.end_tokens, dtype=dtype
        )
        memory, memory_in_words = memory_taken(rows)
        finish_run(folder, {"seconds": round(time.monotonic() - began, 1), "memory": memory})
        display.note(memory_in_words)
        display.note(f"model   {folder.model}\nreport  {run_report(folder.path)}")
    distributed.barrier()
    return RunResult(folder.path, plan.total_steps, last_line, between.last)


class _Between:
    """What runs between steps: held-out evaluation when due, and a measurement handed in."""

    def __init__(
        self,
        config: TrainConfig,
        training: ObjectivePass,
        data: RunData,
        plan: RunPlan,
        display: Display,
    ) -> None:
        self._display = display
        self._held_out: HeldOut | None = None
        self.last: Mapping[str, Any] | None = None
        self.measure: Callable[[int], Mapping[str, float] | None] | None = None
        if data.held_out is not None:
            self._held_out = HeldOut(
                training.on(data.held_out),
                whole_set(config.train, data.held_out, training.objective),
                config.evaluation.every,
                plan.total_steps,
            )

    def __call__(self, step: int) -> Mapping[str, Any] | None:
        """A line for the log behind this step, if anything was measured."""
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


def _find_models(config: TrainConfig) -> tuple[ModelSource, ModelSource | None]:
    source = find_model(config.model)
    if config.reference is None:
        return source, None
    return source, find_model(config.reference, setting="reference")


def _open_run_folder(config: TrainConfig, overwrite: bool) -> RunFolder:
    """The folder as every rank finds it."""
    folder = open_run_folder(Path(config.output).expanduser(), config, overwrite=overwrite)
    # No rank goes on to write before all have looked.
    distributed.barrier()
    return folder


def _refuse_to_remove_inputs(folder: RunFolder, *sources: ModelSource | None) -> None:
    """Refuse to overwrite a run whose own model is what the new run starts from."""
    if not folder.is_overwritten:
        return
    doomed = folder.path.resolve()
    for source in sources:
        if source is not None and any(f.resolve().is_relative_to(doomed) for f in source.folders):
            raise RunFolderError(
                "the run to overwrite holds a model that the new one starts from",
                where="output",
                got=f"{source.name} in {folder.path}",
                why="--overwrite would remove it",
                fix="choose another output",
            )


def _already_complete(folder: RunFolder, display: Display) -> RunResult:
    if distributed.is_main_rank() and not (folder.path / "report.html").is_file():
        run_report(folder.path)
    display.note(f"The run in {folder.path} is complete; the model is {folder.model}.")
    return RunResult(folder.path, 0, {}, None)


def _score(
    config: TrainConfig,
    model: CausalModel,
    source: ModelSource,
    reference_source: ModelSource | None,
    groups: Sequence[TokenizedRecord],
    tokens_per_row: int,
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
    cache = ReferenceCache(root, cache_identity(reference_source or source, scorer))
    started = time.monotonic()
    with display.counting("reference, tokens") as progress:
        counts = score_reference(
            scorer,
            cache,
            groups,
            tokens_per_row=tokens_per_row,
            seed=config.train.seed,
            progress=progress,
        )
    display.note(
        f"reference log-probabilities: {counts.num_scored} groups scored in "
        f"{duration(time.monotonic() - started)}, {counts.num_cached} from {cache.folder}"
    )
    return ReferenceLogProbs(cache)


def _assert_step_zero(
    objective_pass: ObjectivePass, plan: RunPlan, reference_is_policy: bool, display: Display
) -> None:
    """The step-0 assertion, and what it found in words."""
    found = assert_step_zero(
        objective_pass, plan.first_batch, reference_is_policy=reference_is_policy
    )
    if not found:
        why = (
            "the objective reads no reference"
            if objective_pass.reference is None
            else "policy and reference are not the same model"
        )
        display.note(f"step 0: nothing to verify ({why})")
        return
    text = (
        f"step 0: log-ratios are zero ({found['log_ratio_over_tolerance']:.2g} of the tolerance, "
        f"{found['log_ratio_tolerance_per_root_token']:g} nats times the root of the length)"
    )
    if "expected_loss" in found:
        text += (
            f", loss {found['loss']:.6f}, expected {found['expected_loss']:.6f} within "
            f"{found['loss_tolerance']:.1g}"
        )
    display.note(text)


def _run(
    config: TrainConfig,
    folder: RunFolder,
    step: TrainingStep,
    plan: RunPlan,
    start: Position,
    between: _Between,
    display: Display,
) -> Mapping[str, Any]:
    """The steps from `start` on; returns the last line."""
    last_line: dict[str, Any] = {}
    log = RunLog(folder.path, after_step=start.step) if distributed.is_main_rank() else None
    try:
        if start.step == 0 and (first := between(0)) is not None and log is not None:
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
                evaluate=between,
                on_step=on_step,
            )
    finally:
        if log is not None:
            log.close()
    return last_line


def _provenance(
    data: RunData,
    choice: Choice,
    source: ModelSource,
    reference: ModelSource | None,
    rows: RunRows,
) -> dict[str, Any]:
    return {
        "model": source.identity,
        "reference": (reference or source).identity,
        "objective_files": choice.file_hashes,
        "rows": rows.record(),
        "data_tokens": data.identity,
        "held_out_tokens": data.held_out_identity,
        "processes": distributed.world_size(),
        "command": " ".join(sys.argv[1:]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": versions(),
    }
