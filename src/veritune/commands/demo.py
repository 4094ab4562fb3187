"""Align a small model toward a distribution that is known exactly, by the objectives of the papers.

1. A small language: every string over four letters up to a length, under a few prompts.
2. A small model is taught to speak it (`objective: sft`); its exact distribution is the reference.
3. A reader approves of each string with a known probability. The target is the distribution of
   approved strings; feedback is drawn from the reader in the form that each objective takes.
4. `veritune train` aligns the model with each objective, as it would any other model.
5. Every string's probability is computed, so the distance to the target is exact.
"""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from veritune.commands.demo_world import (
    DESIRABLE_FRACTION,
    LETTERS,
    LONGEST,
    PROMPTS,
    ExactMeasurement,
    Feedback,
    World,
    demonstrations,
    expected,
    feedback,
    kl,
    make_world,
)
from veritune.commands.display import Display, duration
from veritune.commands.train import train
from veritune.commands.train_settings import TrainConfig
from veritune.config import Config, build_config
from veritune.errors import NonFiniteLossError, RunFolderError
from veritune.laboratory.languages import FiniteLanguage
from veritune.models.forward import CausalModel
from veritune.models.load import quiet_libraries
from veritune.models.tiny import character_tokenizer, tiny_model, write_tiny_model
from veritune.objectives.catalog import find_card
from veritune.ranges import NonNegativeInt, PositiveInt
from veritune.records.write import write_records
from veritune.reports.demo import DemoResult, DemoRow, Sample, demo_page
from veritune.reports.tables import demo_table

_MARK = "untaught"
_FEEDBACK_IN_WORDS: dict[Feedback, str] = {
    "labels": "thumbs up or down on single strings, from the reader's probability of approval",
    "pairs": "pairs, compared by Bradley-Terry with the log of the approval probability as reward",
    "target pairs": "pairs, compared by how probable the two are under the target",
}


@dataclass(frozen=True)
class _Course:
    """How one objective is run in the demo."""

    objective: dict[str, Any]
    feedback: Feedback
    claims_target: bool


_COURSES = (
    _Course({"name": "rdro"}, "labels", True),
    # The loss of plain ddro is infinite once t * rho reaches 1 for an undesirable string, and
    # sampled feedback brings that about: the demo shows where it stops, and its stabilized form.
    _Course({"name": "ddro"}, "labels", True),
    _Course({"name": "ddro_stabilized"}, "labels", True),
    # At epsilon = 1 / (1 + e^2) the fixed point (2p - 1) log((1 - epsilon) / epsilon) agrees with
    # logit(p) to first order, which is as near to Bradley-Terry as this objective comes.
    _Course({"name": "exo_pref", "beta": 1.0, "epsilon": 0.1192}, "pairs", False),
    _Course({"name": "dpo", "beta": 1.0}, "pairs", True),
    _Course({"name": "pmle", "gamma": 1.0}, "target pairs", True),
)


class DemoConfig(Config):
    """Settings of `veritune demo`."""

    output: str = "demo-run"
    """Folder for everything that the demo makes."""

    overwrite: bool = False
    """Remove the folder first, if a demo made it."""

    num_records: PositiveInt = 20000
    """Labels, or pairs, that each objective gets."""

    teaching_steps: PositiveInt = 400
    """Steps in which the model learns to speak the language."""

    steps: PositiveInt = 300
    """Steps of each alignment."""

    seed: NonNegativeInt = 0
    """Another seed draws other feedback and other orders."""


def demo(config: DemoConfig, display: Display) -> DemoResult:
    """Run the demonstration and write its page.

    Raises:
        RunFolderError: The output folder is not empty.
    """
    quiet_libraries()
    began = time.monotonic()
    folder = Path(config.output).expanduser()
    if config.overwrite and (folder / _MARK).is_dir():
        shutil.rmtree(folder)
    if folder.exists() and any(folder.iterdir()):
        raise RunFolderError(
            "the output folder is not empty",
            where="output",
            got=str(folder),
            fix="add overwrite=true if a demo made it, or choose another: output=NAME",
        )
    language = FiniteLanguage(LETTERS, LONGEST)
    display.note(
        f"A language of {len(language.strings)} strings under {len(PROMPTS)} prompts. Teaching a "
        "small model to speak it …"
    )
    model_folder = teach(config, folder, language)
    measured = ExactMeasurement(model_folder, language)
    before = measured.probabilities(measured.load())
    world = make_world(language, before, config.seed)
    files: dict[Feedback, Path] = {}
    for form, records in feedback(world, config.num_records, config.seed).items():
        files[form] = folder / "data" / f"{form.replace(' ', '-')}.jsonl"
        write_records(records, files[form])
    rows = []
    for course in _COURSES:
        row = _align(config, folder, model_folder, world, measured, course, files, before)
        display.note(
            f"{row.objective:<15}  KL to the target {row.kl_before:.4f} -> {row.kl_after:.4f} nats "
            + (row.stopped or f"in {duration(row.seconds)}")
        )
        rows.append(row)
    result = DemoResult(
        language=f"Every string of 1 to {LONGEST} letters out of {', '.join(LETTERS)}, written "
        f"after one of the prompts {', '.join(PROMPTS)}. A reader approves of each string with a "
        f"known probability, {DESIRABLE_FRACTION:.0%} of the time on average; the target is what "
        "the model says, given that the reader approves.",
        num_strings=len(language.strings),
        reward_target=expected(world.target, world.approval),
        rows=tuple(rows),
        seconds=time.monotonic() - began,
        settings={key: str(value) for key, value in config.model_dump().items()},
    )
    page = demo_page(result, folder / "report.html")
    display.console.print(demo_table(result))
    display.note(f"page  {page}\n{duration(result.seconds)} in all")
    return result


def teach(config: DemoConfig, folder: Path, language: FiniteLanguage) -> Path:
    """A model whose strings follow a random chain of letters, one per prompt."""
    tokenizer = character_tokenizer([*LETTERS, *PROMPTS])
    model = tiny_model(
        "qwen2", vocab_size=len(tokenizer), hidden_size=64, num_layers=2, seed=config.seed
    )
    raw = write_tiny_model(folder / _MARK, model, tokenizer)
    records = demonstrations(language, config.num_records, config.seed)
    data = folder / "data" / "demonstrations.jsonl"
    data.parent.mkdir(parents=True)
    write_records(records, data)
    settings = run_settings(config, raw, data, folder / "teaching", {"name": "sft"}, folder)
    settings["train"] |= {"steps": config.teaching_steps, "learning_rate": 3e-3}
    train(build_config(TrainConfig, settings, where="demo"), Display(quiet=True))
    return folder / "teaching" / "model"


def _align(
    config: DemoConfig,
    folder: Path,
    model_folder: Path,
    world: World,
    measured: ExactMeasurement,
    course: _Course,
    files: Mapping[Feedback, Path],
    before: Float[Tensor, "X Y"],
) -> DemoRow:
    """One objective: train, and measure exactly on the way."""
    name = course.objective["name"]
    began = time.monotonic()
    curve: list[tuple[int, float]] = []
    latest = before

    def measure(model: CausalModel, step: int) -> Mapping[str, float] | None:
        nonlocal latest
        # Closely at first, where curves are steep and a run may stop.
        if step % 10 and step > 30 and step != config.steps:
            return None
        latest = measured.probabilities(model)
        distance = kl(world.target, latest)
        curve.append((step, distance))
        return {"exact/kl": distance, "exact/reward": expected(latest, world.approval)}

    settings = run_settings(
        config, model_folder, files[course.feedback], folder / name, course.objective, folder
    )
    stopped = None
    try:
        train(
            build_config(TrainConfig, settings, where="demo"), Display(quiet=True), measure=measure
        )
    except NonFiniteLossError as error:
        stopped = (
            f"stopped at {error.where}, because its loss became infinite (the ratio reached its "
            "pole); no update was made with it"
        )
    return DemoRow(
        objective=name,
        title=find_card(name).title,
        claims_target=course.claims_target,
        feedback=_FEEDBACK_IN_WORDS[course.feedback],
        kl_before=kl(world.target, before),
        kl_after=kl(world.target, latest),
        reward_before=expected(before, world.approval),
        reward_after=expected(latest, world.approval),
        seconds=time.monotonic() - began,
        curve=tuple(curve),
        samples=_samples(world, before, latest),
        stopped=stopped,
    )


def run_settings(
    config: DemoConfig,
    model: Path,
    data: Path,
    output: Path,
    objective: dict[str, Any],
    folder: Path,
) -> dict[str, Any]:
    """Settings of a short run in the demo's world, as `veritune train` reads them."""
    return {
        "model": str(model),
        "data": str(data),
        "objective": objective,
        "output": str(output),
        "cache": str(folder / "cache"),
        "train": {
            "steps": config.steps,
            "batch_size": 256,
            "learning_rate": 1e-3,
            "seed": config.seed,
            "checkpoint_every": 10**9,
        },
    }


def _samples(world: World, before: Tensor, after: Tensor, *, num: int = 6) -> tuple[Sample, ...]:
    """The strings of the first prompt that the target finds most probable."""
    target = world.target[0]
    return tuple(
        Sample(
            prompt=PROMPTS[0],
            completion=world.language.strings[y],
            target_probability=float(target[y]),
            before=float(before[0, y]),
            after=float(after[0, y]),
        )
        for y in target.argsort(descending=True)[:num].tolist()
    )
