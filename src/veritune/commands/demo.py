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
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from veritune import seeds
from veritune.commands.display import Display, duration
from veritune.commands.train import train
from veritune.commands.train_settings import TrainConfig
from veritune.config import Config, build_config
from veritune.errors import NonFiniteLossError, RunFolderError
from veritune.laboratory.languages import FiniteLanguage
from veritune.models.forward import CausalModel
from veritune.models.load import find_model, load_hf_model, load_tokenizer, quiet_libraries
from veritune.models.tiny import character_tokenizer, tiny_model, write_tiny_model
from veritune.objectives.catalog import find_card
from veritune.ranges import NonNegativeInt, PositiveInt
from veritune.records.kinds import Demonstration, Origin, Paired, Record, Scored, Unpaired
from veritune.records.write import write_records
from veritune.reports.demo import DemoResult, DemoRow, Sample, demo_page
from veritune.reports.tables import demo_table
from veritune.tokens.encode import TextEncoder, TokenizedRecord, encode_record

_LETTERS = ("a", "b", "c", "d")
_PROMPTS = ("x", "y", "z")
_LONGEST = 3
_MARK = "untaught"
_DESIRABLE_FRACTION = 0.4
_TASTE = 2.5
"""How much the reader cares: log-odds of approval between a letter loved and a letter hated."""

Feedback = Literal["labels", "pairs", "target pairs"]
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


@dataclass(frozen=True)
class World:
    """The language, the reader and the distributions, all exact; X prompts, Y strings."""

    language: FiniteLanguage
    approval: Float[Tensor, "X Y"]
    """Probability that the reader approves of a string under a prompt."""

    reference: Float[Tensor, "X Y"]
    """Probabilities of the taught model, normalized over the language."""

    @property
    def target(self) -> Float[Tensor, "X Y"]:
        """The law of approved strings: reference times approval, normalized."""
        joint = self.reference * self.approval
        return joint / joint.sum(1, keepdim=True)


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
    language = FiniteLanguage(_LETTERS, _LONGEST)
    display.note(
        f"A language of {len(language.strings)} strings under {len(_PROMPTS)} prompts. Teaching a "
        "small model to speak it …"
    )
    model_folder = _teach(config, folder, language)
    measured = ExactMeasurement(model_folder, language)
    before = measured.probabilities(measured.load())
    world = _world(language, before, config.seed)
    files = _write_feedback(config, folder / "data", world)
    rows = []
    for course in _COURSES:
        row = _align(config, folder, model_folder, world, measured, course, files, before)
        display.note(
            f"{row.objective:<15}  KL to the target {row.kl_before:.4f} -> {row.kl_after:.4f} nats "
            + (row.stopped or f"in {duration(row.seconds)}")
        )
        rows.append(row)
    result = DemoResult(
        language=f"Every string of 1 to {_LONGEST} letters out of {', '.join(_LETTERS)}, written "
        f"after one of the prompts {', '.join(_PROMPTS)}. A reader approves of each string with a "
        f"known probability, {_DESIRABLE_FRACTION:.0%} of the time on average; the target is what "
        "the model says, given that the reader approves.",
        num_strings=len(language.strings),
        reward_target=_expected(world.target, world.approval),
        rows=tuple(rows),
        seconds=time.monotonic() - began,
        settings={key: str(value) for key, value in config.model_dump().items()},
    )
    page = demo_page(result, folder / "report.html")
    display.console.print(demo_table(result))
    display.note(f"page  {page}\n{duration(result.seconds)} in all")
    return result


class ExactMeasurement:
    """Probabilities of every string of the language under every prompt, by a model."""

    def __init__(self, model_folder: Path, language: FiniteLanguage) -> None:
        self._source = find_model(str(model_folder))
        encoder = TextEncoder(load_tokenizer(self._source))
        origin = Origin("demo", 0)
        scores = (0.0,) * len(language.strings)
        self._groups: list[TokenizedRecord] = [
            encode_record(encoder, Scored(prompt, language.strings, scores, origin))
            for prompt in _PROMPTS
        ]

    def load(self) -> CausalModel:
        """The taught model."""
        return CausalModel(load_hf_model(self._source, device=torch.device("cpu")))

    @torch.no_grad()
    def probabilities(self, model: CausalModel) -> Float[Tensor, "X Y"]:
        """Float64; what a row lacks to 1 the model gives to strings outside the language."""
        batch = model.batch(self._groups, range(len(self._groups)))
        sums, _, _ = model.completion_logprobs(batch)
        return sums.view(len(_PROMPTS), -1).exp()


def _teach(config: DemoConfig, folder: Path, language: FiniteLanguage) -> Path:
    """A model whose strings follow a random chain of letters, one per prompt."""
    tokenizer = character_tokenizer([*_LETTERS, *_PROMPTS])
    model = tiny_model(
        "qwen2", vocab_size=len(tokenizer), hidden_size=64, num_layers=2, seed=config.seed
    )
    raw = write_tiny_model(folder / _MARK, model, tokenizer)
    generator = seeds.stream(config.seed, "teacher")
    chain = torch.randn(len(_PROMPTS), len(_LETTERS) + 1, len(_LETTERS), generator=generator)
    law = torch.stack([_chain_law(language, chain[x]) for x in range(len(_PROMPTS))])
    records = [
        Demonstration(_PROMPTS[x], language.strings[y], Origin("teacher", n))
        for n, (x, y) in enumerate(_draw(law, config.num_records, config.seed, "demonstrations"))
    ]
    data = folder / "data" / "demonstrations.jsonl"
    data.parent.mkdir(parents=True)
    write_records(records, data)
    settings = _settings(config, raw, data, folder / "teaching", {"name": "sft"}, folder)
    settings["train"] |= {"steps": config.teaching_steps, "learning_rate": 3e-3}
    train(build_config(TrainConfig, settings, where="demo"), Display(quiet=True))
    return folder / "teaching" / "model"


def _chain_law(language: FiniteLanguage, logits: Float[Tensor, "S A"]) -> Float[Tensor, " Y"]:
    """Probabilities of strings whose letters depend on the one before, all lengths equally."""
    logprobs = logits.double().log_softmax(-1)
    place = {letter: number for number, letter in enumerate(_LETTERS)}
    values = []
    for string in language.strings:
        before, total = len(_LETTERS), 0.0
        for letter in string:
            total += float(logprobs[before, place[letter]])
            before = place[letter]
        values.append(total)
    return torch.tensor(values, dtype=torch.float64).exp() / _LONGEST


def _world(language: FiniteLanguage, before: Float[Tensor, "X Y"], seed: int) -> World:
    """The reader's approval, shifted so that each prompt has the same share of approved strings.

    RDRO and DDRO take the reference for the mixture of approved and disapproved strings, with one
    share for all prompts; here that holds exactly.
    """
    reference = before / before.sum(1, keepdim=True)
    generator = seeds.stream(seed, "reader")
    taste = _TASTE * (torch.rand(len(_PROMPTS), len(_LETTERS), generator=generator).double() - 0.5)
    counts = torch.tensor(
        [[string.count(letter) for letter in _LETTERS] for string in language.strings]
    ).double()
    liking = taste @ counts.T
    low, high = torch.full((len(_PROMPTS), 1), -50.0), torch.full((len(_PROMPTS), 1), 50.0)
    low, high = low.double(), high.double()
    for _ in range(80):
        middle = (low + high) / 2
        share = (reference * torch.sigmoid(liking + middle)).sum(1, keepdim=True)
        low = torch.where(share < _DESIRABLE_FRACTION, middle, low)
        high = torch.where(share < _DESIRABLE_FRACTION, high, middle)
    return World(language, torch.sigmoid(liking + middle), reference)


def _write_feedback(config: DemoConfig, folder: Path, world: World) -> Mapping[Feedback, Path]:
    """The reader's feedback on strings that the reference wrote, in three forms."""
    strings, n = world.language.strings, config.num_records
    coin = torch.rand(3, n, generator=seeds.stream(config.seed, "coins")).double()
    singles = _draw(world.reference, n, config.seed, "first")
    # The second string of a pair answers the same prompt as the first.
    seconds = (
        torch.stack([world.reference[x] for x, _ in singles])
        .multinomial(1, generator=seeds.stream(config.seed, "second"))[:, 0]
        .tolist()
    )
    records: dict[Feedback, list[Record]] = {"labels": [], "pairs": [], "target pairs": []}
    for number, ((x, first), second) in enumerate(zip(singles, seconds, strict=True)):
        prompt, origin = _PROMPTS[x], Origin("reader", number)
        desirable = bool(coin[0, number] < world.approval[x, first])
        records["labels"].append(Unpaired(prompt, strings[first], desirable, origin))
        if first == second:
            continue
        values: tuple[tuple[Feedback, Tensor], ...] = (
            ("pairs", world.approval[x]),
            ("target pairs", world.target[x]),
        )
        for place, (form, value) in enumerate(values, start=1):
            wins = coin[place, number] < value[first] / (value[first] + value[second])
            better, worse = (first, second) if wins else (second, first)
            records[form].append(Paired(prompt, strings[better], strings[worse], origin))
    files: dict[Feedback, Path] = {}
    for form, drawn in records.items():
        files[form] = folder / f"{form.replace(' ', '-')}.jsonl"
        write_records(drawn, files[form])
    return files


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
        distance = _kl(world.target, latest)
        curve.append((step, distance))
        return {"exact/kl": distance, "exact/reward": _expected(latest, world.approval)}

    settings = _settings(
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
        kl_before=_kl(world.target, before),
        kl_after=_kl(world.target, latest),
        reward_before=_expected(before, world.approval),
        reward_after=_expected(latest, world.approval),
        seconds=time.monotonic() - began,
        curve=tuple(curve),
        samples=_samples(world, before, latest),
        stopped=stopped,
    )


def _settings(
    config: DemoConfig,
    model: Path,
    data: Path,
    output: Path,
    objective: dict[str, Any],
    folder: Path,
) -> dict[str, Any]:
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
            prompt=_PROMPTS[0],
            completion=world.language.strings[y],
            target_probability=float(target[y]),
            before=float(before[0, y]),
            after=float(after[0, y]),
        )
        for y in target.argsort(descending=True)[:num].tolist()
    )


def _draw(law: Float[Tensor, "X Y"], num: int, seed: int, stream: str) -> list[tuple[int, int]]:
    """Prompt and string of draws: prompts in turn, strings from the law of the prompt."""
    generator = seeds.stream(seed, stream)
    prompts = torch.arange(num) % len(law)
    strings = law[prompts].multinomial(1, generator=generator)[:, 0]
    return list(zip(prompts.tolist(), strings.tolist(), strict=True))


def _kl(target: Float[Tensor, "X Y"], policy: Float[Tensor, "X Y"]) -> float:
    """KL(target || policy) in nats, the mean over prompts; exact."""
    return float((target * (target / policy).log()).sum(1).mean())


def _expected(law: Float[Tensor, "X Y"], reward: Float[Tensor, "X Y"]) -> float:
    """Expected reward over the language, the mean over prompts; exact."""
    return float((law * reward).sum(1).mean())
