"""An objective of Veritune in a training loop of one's own: plain tensors in, a loss out.

python examples/own_training_loop.py
"""

import copy

import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from veritune.logprobs import CompletionLogProbs, UnpairedLogProbs
from veritune.objectives.unpaired.rdro import rdro_loss

PROMPT_LENGTH, COMPLETION_LENGTH, VOCABULARY = 6, 5, 64


def completion_logprobs(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Log-probability of each completion, summed over its tokens: shape (B,)."""
    logits = model(input_ids=ids).logits[:, PROMPT_LENGTH - 1 : -1]
    targets = ids[:, PROMPT_LENGTH:, None]
    return logits.log_softmax(dim=-1).gather(-1, targets).squeeze(-1).sum(dim=-1)


def main() -> None:
    torch.manual_seed(0)
    policy = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )
    reference = copy.deepcopy(policy).eval()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)

    # A made-up batch: completions that begin with an even token are desirable.
    ids = torch.randint(VOCABULARY, (32, PROMPT_LENGTH + COMPLETION_LENGTH))
    desirable = ids[:, PROMPT_LENGTH] % 2 == 0
    with torch.no_grad():
        reference_logprobs = completion_logprobs(reference, ids)

    for step in range(1, 21):
        labels = UnpairedLogProbs(
            completion=CompletionLogProbs(
                policy=completion_logprobs(policy, ids),
                length=torch.full((len(ids),), COMPLETION_LENGTH),
                reference=reference_logprobs,
            ),
            desirable=desirable,
            # Counts of the global batch: with several processes or micro-steps, their sums.
            num_desirable=int(desirable.sum()),
            num_undesirable=int((~desirable).sum()),
        )
        alpha = float(desirable.float().mean())
        loss = rdro_loss(labels, alpha=alpha).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in (1, 10, 20):
            ratio = (labels.completion.log_ratio.detach()[desirable]).exp().mean()
            print(f"step {step:2d}  loss {loss:.4f}  ratio of desirable ones {ratio:.3f}")
    print(f"a ratio above 1 / alpha = {1 / alpha:.3f} is pulled back")


if __name__ == "__main__":
    main()
