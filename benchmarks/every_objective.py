"""Train every objective that takes records on one world where the truth is known, and compare.

    python benchmarks/every_objective.py

The world is that of `veritune demo`: 84 strings under 3 prompts, a reader whose probability of
approving of each string is known, and a small transformer that was taught to speak. Every objective
gets as many of the reader's words as the others, in its own form, once as they were given and once
with one word in five turned around; `veritune train` does the rest. Every string's probability is
computed afterwards, so the distances are exact.

The rows are kept in benchmarks/results/every_objective.json, from which `make docs` writes the
tables of docs/choosing-an-objective.md.
"""

import argparse
import multiprocessing
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from kept_results import RESULTS, keep
from torch import Tensor

from veritune import seeds
from veritune.commands.demo import DemoConfig, run_settings, teach
from veritune.commands.demo_world import (
    DESIRABLE_FRACTION,
    LETTERS,
    LONGEST,
    PROMPTS,
    ExactMeasurement,
    World,
    expected,
    feedback,
    kl,
    make_world,
)
from veritune.commands.display import Display
from veritune.commands.train import train
from veritune.commands.train_settings import TrainConfig
from veritune.config import build_config
from veritune.errors import NonFiniteLossError
from veritune.laboratory.distances import total_variation
from veritune.laboratory.languages import FiniteLanguage
from veritune.models.forward import CausalModel
from veritune.objectives.card import Card
from veritune.objectives.catalog import CATALOG, find_card
from veritune.objectives.optimum import FiniteProblem
from veritune.records.kinds import Origin, Paired, Record, Scored, Unpaired
from veritune.records.write import write_records

NUM_WORDS = 19_200
"""Labels or pairs; half as many groups of four."""
GROUP_SIZE = 4
STEPS = 200
BATCH_SIZE = 128
"""Labels or pairs; half as many groups."""
FLIPPED = 0.2

# Strengths are chosen so that whoever can aim at the law of approved strings does: the reward is
# the log of the approval, and a `beta` of 1 tilts the reference by it. Who compares by another
# measure gets a strength of about the same effect; the rest keep their defaults.
SETTINGS: dict[str, dict[str, float]] = {
    **{name: {"beta": 1.0} for name in ("dpo", "minor_dpo", "nca", "bco_pair", "rpo", "rpo_mean")},
    **{name: {"beta": 1.0, "epsilon": FLIPPED} for name in ("robust_dpo", "rdpo")},
    **{name: {"beta": 1.0} for name in ("ada_dpo", "ada_dpo_quadratic", "kto", "bco")},
    **{name: {"tau": 0.25} for name in ("ipo", "ipo_mean")},
    "dpo_mean": {"beta": 3.0},
    "length_regularized_dpo": {"beta": 1.0, "alpha": 0.1},
    **{name: {"beta": 1.0, "alpha": 0.5} for name in ("ld_dpo", "ld_dpo_policy")},
    "exo_pref": {"beta": 1.0, "epsilon": 0.1192},
    "exo_pref_official": {"beta_pi": 1.0},
    "sppo": {"beta": 0.25},
    "pmle": {"gamma": 1.0},
    "pmle_kl": {"gamma": 1.0, "kl_weight": 0.05},
    **{name: {"gamma": 1.0} for name in ("rso_sigmoid_norm", "slic", "hinge_norm")},
    **{name: {"beta_pi": 1.0, "beta_r": 1.0} for name in ("exo_rw", "dpo_rw")},
    **{name: {"alpha": 1.0, "beta": 1.0} for name in ("infonca", "nca_rw")},
    "plackett_luce": {"beta": 1.0},
    "preference_distillation": {"gamma": 1.0},
}

# These learn the model behind the preferences itself, whatever the reference: their reader compares
# strings by how probable they are under the target, and not by approval.
BY_TARGET = ("pmle", "pmle_kl", "preference_distillation")


@dataclass(frozen=True)
class Row:
    """What one objective did."""

    objective: str
    kind: str
    seed: int
    flipped: float
    kl_to_target: float
    """KL(law of approved strings || policy), nats, mean over prompts."""
    approval: float
    """Probability that the reader approves of what the policy says."""
    moved: float
    """KL(policy || reference) over the language, nats; what lies outside is left out."""
    outside: float
    """Probability that the policy says something outside the language, which no reader ever saw."""
    largest: float
    """The largest probability of a string, mean over prompts."""
    to_own_optimum: float | None
    """Total variation to the law that the card claims, at these hyper-parameters and data without
    flips; None where the card claims none."""
    stopped: str
    """Where training ended early, else empty."""


def run(config: DemoConfig, model: Path, case: tuple[str, float]) -> Row:
    """Train by one objective and measure exactly where that led."""
    torch.set_num_threads(1)
    name, flipped = case
    card = find_card(name)
    measured = ExactMeasurement(model, FiniteLanguage(LETTERS, LONGEST))
    latest = measured.probabilities(measured.load())
    world = make_world(FiniteLanguage(LETTERS, LONGEST), latest, config.seed)
    folder = Path(config.output) / f"{name}-{flipped:.0%}"
    data = folder.with_suffix(".jsonl")
    write_records(words(world, name, card.kind, flipped, config.seed), data)

    def measure(trained: CausalModel, step: int) -> None:
        nonlocal latest
        # Where the loss may end, training may stop at any step.
        if step == STEPS or not card.finite_everywhere:
            latest = measured.probabilities(trained)

    objective = {"name": name, **SETTINGS.get(name, {})}
    settings = run_settings(config, model, data, folder, objective, Path(config.output))
    settings["train"]["batch_size"] = BATCH_SIZE // (2 if card.kind == "scored" else 1)
    stopped = ""
    try:
        train(
            build_config(TrainConfig, settings, where="benchmark"),
            Display(quiet=True),
            measure=measure,
        )
    except NonFiniteLossError as error:
        stopped = error.where
    return measured_row(card, flipped, world, latest, config.seed, stopped)


def measured_row(
    card: Card, flipped: float, world: World, policy: Float[Tensor, "X Y"], seed: int, stopped: str
) -> Row:
    """What is known of a policy, exact."""
    # rDPO claims its optimum for turned labels, the others for labels as they were given.
    is_claimed = flipped == 0 and card.name != "rdpo"
    inside = policy / policy.sum(1, keepdim=True)
    return Row(
        objective=card.name,
        kind=card.kind,
        seed=seed,
        flipped=flipped,
        kl_to_target=kl(world.target, policy),
        approval=expected(policy, world.approval),
        moved=float((inside * (inside / world.reference).log()).sum(1).mean()),
        outside=float(1 - policy.sum(1).mean()),
        largest=float(policy.max(1).values.mean()),
        to_own_optimum=distance_to_own_optimum(card, world, policy) if is_claimed else None,
        stopped=stopped,
    )


def distance_to_own_optimum(card: Card, world: World, policy: Float[Tensor, "X Y"]) -> float | None:
    """Total variation to the law that the card claims, the mean over prompts."""
    if card.optimum is None:
        return None
    given: dict[str, float] = dict(SETTINGS.get(card.name, {}))
    if card.data_fraction is not None:
        given[card.data_fraction] = DESIRABLE_FRACTION
    distances = []
    for x in range(len(PROMPTS)):
        claimed = card.optimum(problem_of(world, x, card.name), **given)
        distances.append(total_variation(policy[x].log(), claimed))
    return sum(distances) / len(distances)


def problem_of(world: World, x: int, name: str) -> FiniteProblem:
    """The exact laws of the data under one prompt."""
    reference, approval = world.reference[x], world.approval[x]
    value = value_of(world, name)[x]
    pairs = reference.outer(reference).fill_diagonal_(0)
    return FiniteProblem(
        reference=reference.log(),
        reward=value.log(),
        preferences=value[:, None] / (value[:, None] + value[None, :]),
        pair_law=pairs / pairs.sum(),
        desirable=(reference * approval / (reference * approval).sum()).log(),
        undesirable=(reference * (1 - approval) / (reference * (1 - approval)).sum()).log(),
        desirable_fraction=DESIRABLE_FRACTION,
    )


def value_of(world: World, name: str) -> Float[Tensor, "X Y"]:
    """What the reader compares by, positive: its logarithm is the reward."""
    return world.target if name in BY_TARGET else world.approval


def words(world: World, name: str, kind: str, flipped: float, seed: int) -> list[Record]:
    """What the reader says, in the form that an objective takes; a share of it turned around."""
    coins = torch.rand(NUM_WORDS, generator=seeds.stream(seed, "flips")) < flipped
    if kind == "scored":
        return groups(world, name, coins.tolist(), seed)
    form = "labels" if kind == "unpaired" else "pairs"
    records = feedback(world, NUM_WORDS, seed)["target pairs" if name in BY_TARGET else form]
    return [
        turned(record) if turn else record
        for record, turn in zip(records, coins.tolist(), strict=False)
    ]


def turned(record: Record) -> Record:
    """The same record with the opposite word."""
    if isinstance(record, Paired):
        return replace(record, chosen=record.rejected, rejected=record.chosen)
    assert isinstance(record, Unpaired), "scores are not turned but shuffled"
    return replace(record, desirable=not record.desirable)


def groups(world: World, name: str, shuffled: Sequence[bool], seed: int) -> list[Record]:
    """Strings of the reference under one prompt with their scores; in some these are shuffled.

    A ranking is drawn by Plackett-Luce: it is the order of the scores, each with Gumbel noise.
    """
    strings = world.language.strings
    num = NUM_WORDS // 2
    generator = seeds.stream(seed, "groups")
    reward = value_of(world, name).log()
    records: list[Record] = []
    for number in range(num):
        x = number % len(PROMPTS)
        drawn = world.reference[x].multinomial(GROUP_SIZE, True, generator=generator)
        noise = torch.rand(GROUP_SIZE, generator=generator).double().clamp_min(1e-12)
        order = torch.randperm(GROUP_SIZE, generator=generator)
        scores = reward[x][drawn]
        if name == "plackett_luce":
            scores = scores - (-noise.log()).log()
        if shuffled[number]:
            scores = scores[order]
        completions = tuple(strings[y] for y in drawn.tolist())
        origin = Origin("reader", number)
        records.append(Scored(PROMPTS[x], completions, tuple(scores.tolist()), origin))
    return records


def in_words(row: Row) -> str:
    """One line for the terminal."""
    own = "" if row.to_own_optimum is None else f"  TV to its own optimum {row.to_own_optimum:.3f}"
    return (
        f"{row.objective:<26} flipped {row.flipped:.0%}  KL to target {row.kl_to_target:.4f}  "
        f"approval {row.approval:.3f}  "
        f"outside {row.outside:.3f}  moved {row.moved:.3f}{own}  {row.stopped}"
    )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="objectives; all if none is named")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=2, help="worlds, each with its own language")
    parser.add_argument("--output", type=Path, default=RESULTS / "every_objective.json")
    given = parser.parse_args()
    names = given.names or [n for n, card in CATALOG.items() if not card.takes_samples]
    names = [find_card(name).name for name in names if name != "sft"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows, untrained, best = [], [], []
        for seed in range(given.seeds):
            config = DemoConfig(
                output=str(folder / str(seed)), num_records=NUM_WORDS, steps=STEPS, seed=seed
            )
            language = FiniteLanguage(LETTERS, LONGEST)
            print(f"seed {seed}: teaching the model to speak …", flush=True)
            model = teach(config, Path(config.output), language)
            measured = ExactMeasurement(model, language)
            before = measured.probabilities(measured.load())
            world = make_world(language, before, seed)
            untrained.append(measured_row(find_card("sft"), FLIPPED, world, before, seed, ""))
            best.append(expected(world.target, world.approval))
            cases = [(name, flipped) for flipped in (0.0, FLIPPED) for name in names]
            context = multiprocessing.get_context("spawn")
            with context.Pool(given.processes) as pool:
                for row in pool.imap(partial(run, config, model), cases):
                    print(in_words(row), flush=True)
                    rows.append(row)
    facts = {
        "words": NUM_WORDS,
        "steps": STEPS,
        "untrained": [asdict(row) for row in untrained],
        "target_approval": best,
        "rows": [asdict(row) for row in rows],
    }
    keep(given.output, facts)


if __name__ == "__main__":
    main()
