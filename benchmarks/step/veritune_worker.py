"""Veritune's own command, one step at a time."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from step import without
from step.turns import Turns
from veritune.commands.display import Display
from veritune.commands.train import train
from veritune.commands.train_settings import TrainConfig


def config_of(task: Mapping[str, Any]) -> TrainConfig:
    """The settings of a run for what a worker is asked to do."""
    settings: dict[str, Any] = {
        "model": task["model"],
        "data": task["records"],
        "objective": task["objective"],
        "output": task["output"],
        "cache": task["cache"],
        "train": {
            "batch_size": task["groups"],
            "learning_rate": task["learning_rate"],
            "schedule": "constant",
            "warmup_fraction": 0.0,
            "seed": task["seed"],
            # None between the steps that are measured.
            "checkpoint_every": 10**6,
            **task["train"],
        },
    }
    if task["adapter"]:
        settings["adapter"] = {}
    return TrainConfig.model_validate(settings)


def main() -> None:
    """Train as `veritune train` does, pausing between steps."""
    turns = Turns()
    task = turns.task
    if task["without"] is not None:
        without.PLAIN_WAYS[task["without"]]()

    def between(_: object, step: int) -> Mapping[str, float] | None:
        turns.boundary(is_last=step == task["steps"] + 1)
        return None

    train(config_of(task), Display(quiet=True), measure=between)
    turns.finish(losses=_losses(Path(task["output"])))


def _losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


if __name__ == "__main__":
    main()
