"""Step by step, `veritune train` follows TRL's DPOTrainer on the same order of records."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from veritune.batches.order import RecordOrder
from veritune.commands.display import Display
from veritune.commands.train import train
from veritune.commands.train_settings import TrainConfig
from veritune.models.tiny import byte_level_tokenizer, tiny_model, write_tiny_model

pytest.importorskip("trl")

STEPS, BATCH, RATE, SEED = 8, 4, 1e-3, 3


@pytest.fixture
def world(tmp_path: Path) -> tuple[Path, Path]:
    """A model folder, and pairs of uneven lengths."""
    rng = random.Random(0)

    def text(most: int) -> str:
        return "".join(rng.choices("abcdefgh ", k=rng.randint(1, most)))

    rows = [
        {"prompt": f"p{text(40)}", "chosen": f" c{text(30)}", "rejected": f" r{text(60)}"}
        for _ in range(STEPS * BATCH)
    ]
    records = tmp_path / "pairs.jsonl"
    records.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    model = tiny_model("qwen2", vocab_size=300, hidden_size=64, num_layers=3, seed=1)
    return write_tiny_model(tmp_path / "model", model, byte_level_tokenizer()), records


def losses_of_veritune(model: Path, records: Path, folder: Path, **settings: Any) -> list[float]:
    config = {
        "model": str(model),
        "data": str(records),
        "objective": "dpo",
        "output": str(folder / "run"),
        "cache": str(folder / "cache"),
        "train": {
            "batch_size": BATCH,
            "learning_rate": RATE,
            "schedule": "constant",
            "warmup_fraction": 0.0,
            "seed": SEED,
            **settings,
        },
    }
    train(TrainConfig.model_validate(config), Display(quiet=True))
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


def losses_of_trl(model: Path, records: Path, folder: Path) -> list[float]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    rows = [json.loads(line) for line in records.read_text().splitlines()]
    order = RecordOrder(len(rows), SEED).slice(0, len(rows))
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(str(model)),
        args=DPOConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=BATCH,
            max_steps=STEPS,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",
            max_length=None,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
        ),
        train_dataset=Dataset.from_list([rows[index] for index in order]),
        processing_class=AutoTokenizer.from_pretrained(str(model)),
    )
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_the_training_curve_is_that_of_trl(world: tuple[Path, Path], tmp_path: Path) -> None:
    ours = losses_of_veritune(*world, tmp_path)
    theirs = losses_of_trl(*world, tmp_path)
    assert len(ours) == len(theirs) == STEPS
    # The curve must have gone somewhere for its agreement to say anything.
    assert max(abs(loss - ours[0]) for loss in ours) > 0.05
    assert ours == pytest.approx(theirs, abs=1e-3)


def test_another_order_of_records_is_another_curve(
    world: tuple[Path, Path], tmp_path: Path
) -> None:
    theirs = losses_of_trl(*world, tmp_path)
    others = losses_of_veritune(*world, tmp_path, seed=SEED + 1)
    assert max(abs(one - other) for one, other in zip(others, theirs, strict=True)) > 1e-3
