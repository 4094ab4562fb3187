"""An objective of Veritune inside TRL's DPOTrainer: one method of the trainer is replaced.

    pip install trl
    python examples/inside_trl.py

TRL tokenizes, collates, scores the reference and steps; the loss is Veritune's.
"""

import tempfile
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import DPOConfig, DPOTrainer

from veritune.logprobs import CompletionLogProbs, PairedLogProbs
from veritune.models.tiny import byte_level_tokenizer, tiny_model
from veritune.objectives.paired.exo_pref import exo_pref_loss


class ExoTrainer(DPOTrainer):
    """DPOTrainer with the loss of EXO, from summed log-probabilities of policy and reference."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        counts = inputs["completion_mask"][:, 1:].bool()
        logits = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).logits[:, :-1]
        targets = inputs["input_ids"][:, 1:, None]
        tokens = logits.float().log_softmax(dim=-1).gather(-1, targets).squeeze(-1)
        # TRL's batch is all chosen completions, then all rejected ones.
        chosen, rejected = torch.where(counts, tokens, 0).sum(dim=-1).chunk(2)
        chosen_length, rejected_length = counts.sum(dim=-1).chunk(2)
        pairs = PairedLogProbs(
            chosen=CompletionLogProbs(chosen, chosen_length, inputs["ref_chosen_logps"]),
            rejected=CompletionLogProbs(rejected, rejected_length, inputs["ref_rejected_logps"]),
        )
        return exo_pref_loss(pairs, beta=self.beta).mean()


def main() -> None:
    pairs = [
        {"prompt": f"Count to {n}:", "chosen": " " + " ".join("12345"[:n]), "rejected": " no"}
        for n in range(1, 6)
    ]
    tokenizer = byte_level_tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        trainer = ExoTrainer(
            model=tiny_model("llama", vocab_size=len(tokenizer), hidden_size=32, seed=0),
            args=DPOConfig(
                output_dir=folder,
                beta=0.1,
                max_steps=10,
                per_device_train_batch_size=5,
                learning_rate=1e-3,
                precompute_ref_log_probs=True,
                logging_steps=1,
                report_to="none",
                save_strategy="no",
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(pairs),
            processing_class=tokenizer,
        )
        trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    print(f"loss of the first step {losses[0]:.4f}, of the last {losses[-1]:.4f}")


if __name__ == "__main__":
    main()
