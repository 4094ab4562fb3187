"""TRL's DPOTrainer, one step at a time."""

import os
from pathlib import Path
from typing import Any

from step.cases import peer_pairs
from step.turns import Turns


def main() -> None:
    """Train with the trainer's own loop, pausing between steps."""
    turns = Turns()
    task = turns.task
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    class Pause(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            turns.boundary()

        def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            turns.boundary(is_last=state.global_step == state.max_steps)

    on_gpu = torch.cuda.is_available()
    arguments: dict[str, Any] = {"use_cpu": True, "bf16": False} if not on_gpu else {}
    config = DPOConfig(
        output_dir=task["output"],
        per_device_train_batch_size=task["rows_per_device"],
        gradient_accumulation_steps=task["accumulation"],
        max_steps=task["steps"] + 1,
        learning_rate=task["learning_rate"],
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        # The default of 1,024 tokens would cut what Veritune keeps.
        max_length=None,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=task["seed"],
        **arguments,
        **task["train"],
    )
    adapter = None
    if task["adapter"]:
        adapter = LoraConfig(
            r=16, lora_alpha=32.0, target_modules="all-linear", task_type="CAUSAL_LM"
        )
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(task["model"], dtype=task["dtype"]),
        args=config,
        train_dataset=Dataset.from_list(peer_pairs(Path(task["records"]), task["order"])),
        processing_class=AutoTokenizer.from_pretrained(task["model"]),
        peft_config=adapter,
        callbacks=[Pause()],
    )
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    turns.finish(losses=losses, **_tokens(trainer.train_dataset))


def _tokens(dataset: Any) -> dict[str, list[int]]:
    """Tokens of every row as the trainer sees them, to hold against the other toolkit's."""
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    return {name: [len(ids) for ids in dataset[name]] for name in columns}


if __name__ == "__main__":
    main()
