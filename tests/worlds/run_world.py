"""Files of records, a tiny model folder and runs of `train` on them."""

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from veritune.commands.display import Display
from veritune.commands.train import RunResult, train
from veritune.commands.train_settings import TrainConfig
from veritune.config import load_config
from veritune.models.tiny import byte_level_tokenizer, tiny_model, write_tiny_model
from veritune.objectives.catalog import CATALOG

GOOD, BAD = ("fresh", "lovely", "kind"), ("stale", "awful", "rude")
_PLACES = ("bakery", "diner", "hotel", "bar", "market", "museum", "garden")
KIND_OF = {name: card.kind for name, card in CATALOG.items()}
"""The kind of records that an objective takes; pairs where it is not named."""


class Listener(Display):
    """A silent display that remembers what the user would have been told."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.facts: dict[str, str] = {}
        self.notes: list[str] = []

    def header(self, facts: Mapping[str, str]) -> None:
        self.facts.update(facts)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def told(self, words: str) -> bool:
        """Whether some note holds these words."""
        return any(words in note for note in self.notes)


def write_model(folder: Path, *, seed: int = 0) -> Path:
    """A two-layer Qwen2 over bytes, with its tokenizer."""
    tokenizer = byte_level_tokenizer()
    model = tiny_model(
        "qwen2", vocab_size=len(tokenizer), hidden_size=32, max_positions=256, seed=seed
    )
    # As many published models have it; it is on only where a run asks for it.
    model.config.attention_dropout = 0.1
    return write_tiny_model(folder, model, tokenizer)


def write_records(file: Path, kind: str, num_records: int, *, seed: int = 0) -> Path:
    """Records in which praise is good and blame is bad, in the shapes that users bring.

    Pairs and demonstrations are dialogues (some with a system message or several turns), labels
    and scored groups plain text. Two records in five are labelled desirable.
    """
    draw = random.Random(seed)
    rows = [_row(kind, number, draw) for number in range(num_records)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def _row(kind: str, number: int, draw: random.Random) -> dict[str, Any]:
    place = f"{draw.choice(_PLACES)} {number // 2}"
    good, bad = (f"It was {draw.choice(words)}." for words in (GOOD, BAD))
    if kind == "paired":
        return {"prompt": _dialogue(place, number), "chosen": _said(good), "rejected": _said(bad)}
    if kind == "demonstration":
        return {"messages": [*_dialogue(place, number), *_said(good)]}
    prompt = f"How was the {place}? "
    if kind == "unpaired":
        is_good = number % 5 in (1, 4)
        return {"prompt": prompt, "completion": good if is_good else bad, "label": is_good}
    others = [f"It was {draw.choice(words)}!" for words in (GOOD, BAD)][: number % 3]
    texts = list(dict.fromkeys([bad, good, *others]))
    scores = [1.0 if any(word in text for word in GOOD) else -1.0 for text in texts]
    return {"prompt": prompt, "completions": texts, "scores": scores}


def _dialogue(place: str, number: int) -> list[dict[str, str]]:
    turns = [{"role": "user", "content": f"How was the {place}?"}]
    if number % 4 == 1:
        turns.insert(0, {"role": "system", "content": "Be brief."})
    if number % 4 == 2:
        turns = [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi!"},
            *turns,
        ]
    return turns


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


class World:
    """A folder with a model, files of records, a cache and run folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = write_model(folder / "model")

    def records(self, kind: str, num_records: int) -> Path:
        """A file with so many records of a kind."""
        file = self.folder / f"{kind}-{num_records}.jsonl"
        return file if file.exists() else write_records(file, kind, num_records)

    def words(
        self, objective: str, run: str, *, num_records: int = 13, **changes: Any
    ) -> list[str]:
        """The words of `veritune train` for a short run; a key's dots are written as `__`."""
        settings: dict[str, Any] = {
            "model": self.model,
            "data": self.records(KIND_OF.get(objective, "paired"), num_records),
            "objective": objective,
            "output": self.folder / run,
            "cache": self.folder / "cache",
            "train.steps": 6,
            "train.batch_size": 5,
            "train.learning_rate": 3e-3,
            "train.checkpoint_every": 2,
        }
        settings |= {key.replace("__", "."): value for key, value in changes.items()}
        return [f"{key}={value}" for key, value in settings.items() if value is not None]

    def config(self, objective: str, run: str, **changes: Any) -> TrainConfig:
        """The settings of a short run."""
        return load_config(TrainConfig, None, self.words(objective, run, **changes))

    def train(
        self,
        objective: str,
        run: str,
        *,
        overwrite: bool = False,
        display: Display | None = None,
        measure: Callable[..., Any] | None = None,
        **changes: Any,
    ) -> RunResult:
        """Train in this process."""
        return train(
            self.config(objective, run, **changes),
            Display(quiet=True) if display is None else display,
            overwrite=overwrite,
            measure=measure,
        )


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The weights of the model that a run left."""
    return load_file(run / "model" / "model.safetensors")


def lines(run: Path) -> list[dict[str, Any]]:
    """What a run logged, without the seconds that it took and waited."""
    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    found = [json.loads(line) for line in text.splitlines()]
    for line in found:
        line.pop("seconds", None)
        line.pop("waited", None)
    return found


def same_weights(one: Path, other: Path) -> bool:
    """Whether two runs left bit-identical weights."""
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def largest_difference(one: Path, other: Path) -> float:
    """Over all weights, the largest difference between what two runs left."""
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys(), "both are the same architecture"
    return max(float((a[name] - b[name]).abs().max()) for name in a)
