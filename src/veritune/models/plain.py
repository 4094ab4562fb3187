"""The plain way to a log-probability: one sequence, no packing, no padding, all logits.

Slow and obviously right. The legality check and the tests compare everything else with it.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.tokens.encode import TokenizedRecord


@torch.no_grad()
def plain_logprobs(
    hf_model: Any, group: TokenizedRecord, *, temperature: float = 1.0
) -> Float[Tensor, " K"]:
    """Sequence log-probability of each completion, from the model's own logits, in nats.

    Args:
        hf_model: A causal language model, set to an attention of transformers' own.
        group: One prompt and its completions.
        temperature: The logits are divided by it.

    Returns:
        Sums over loss-bearing tokens, in the model's dtype but at least float32.
    """
    device = next(hf_model.parameters()).device
    sums = []
    for completion in group.completions:
        ids = torch.tensor(
            [[*group.prompt.tolist(), *completion.ids.tolist()]], dtype=torch.long, device=device
        )
        logits = hf_model(input_ids=ids, use_cache=False).logits[0]
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
        start = len(group.prompt)
        logprobs = wide[start - 1 : -1].log_softmax(-1).gather(1, ids[0, start:, None])[:, 0]
        sums.append(logprobs[torch.from_numpy(completion.bears_loss).to(device)].sum())
    return torch.stack(sums)
