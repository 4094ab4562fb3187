"""What an objective adds to a step: time of its loss and gradient on plain tensors.

    python benchmarks/objective_cost.py

A step computes log-probabilities with a model, then the loss of each example, then gradients; all
but the loss is the same for every objective of a kind. 600 examples in float32, one thread; every
objective in turn, again and again, and the median of the turns.
"""

import statistics
import time

import torch

from veritune.objectives.catalog import CATALOG, settings_of
from veritune.objectives.laws import Tables, Trial

TURNS = 31
REPEATS = 100
REQUIRED = {"pmle_kl": {"kl_weight": 0.2}}


def tiled(tables: Tables) -> Tables:
    """The same rows many times over, in float32."""
    policy, reference, behavior = (
        table.repeat(REPEATS, 1).float()
        for table in (tables.policy, tables.reference, tables.behavior)
    )
    return Tables(policy.requires_grad_(), reference, behavior)


def seconds(trial: Trial) -> float:
    """One loss with its gradient."""
    tables = tiled(trial.tables())
    began = time.perf_counter()
    trial.loss(tables).sum().backward()
    return time.perf_counter() - began


def main() -> None:
    """Measure and print, the slowest first."""
    torch.set_num_threads(1)
    trials = {
        name: Trial(card, settings_of(card, REQUIRED.get(name, {}), data_fraction=0.39))
        for name, card in CATALOG.items()
    }
    for trial in trials.values():
        seconds(trial)
    turns = [{name: seconds(trial) for name, trial in trials.items()} for _ in range(TURNS)]
    medians = {name: statistics.median(turn[name] for turn in turns) for name in trials}
    for name, median in sorted(medians.items(), key=lambda item: -item[1]):
        ratio = median / medians["dpo"]
        print(f"{name:<32}{median * 1e3:8.2f} ms  {ratio:6.2f} times dpo's")


if __name__ == "__main__":
    main()
