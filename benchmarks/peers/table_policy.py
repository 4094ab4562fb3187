"""A policy that is a table of logits, with the outputs that trainers expect of a language model.

The first token of a row names a table; the others are its completion. A trainer that is given
such a policy runs its own code from the model's output on, and the log-probabilities are ours to
choose. With one table, one-token completions and the vocabulary as the language, the policy is a
law over finitely many completions, and a mean over a batch that holds them in proportion is an
expectation.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

IGNORED = -100
"""The label of a token that bears no loss."""


@dataclass
class TableOutput:
    """The fields that trainers read, by the names that they read them by."""

    logits: Tensor
    log_probs: Tensor | None = None
    entropy: Tensor | None = None
    log_sum_sq_probs: Tensor | None = None
    mean_logits: Tensor | None = None
    is_top1: Tensor | None = None
    label_mask: Tensor | None = None
    loss: Tensor | None = None
    aux_loss: Tensor | None = None


class TablePolicy(nn.Module):
    """Next-token logits that depend on the first token of the row and on the position only."""

    def __init__(self, tables: Tensor) -> None:
        """Keep the tables.

        Args:
            tables: Shape (number of first tokens, positions, vocabulary); position 0 is the first
                token of the completion.
        """
        super().__init__()
        self.tables = tables

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        fused_lm_head: bool = False,
        **_: Any,
    ) -> TableOutput:
        """Logits of every position; with `fused_lm_head`, what TRL's fused head returns."""
        steps = input_ids.shape[1] - 1
        logits = self.tables[input_ids[:, 0], :steps]
        if not fused_lm_head:
            # The last position predicts a token that no row has.
            return TableOutput(torch.cat([logits, torch.zeros_like(logits[:, :1])], dim=1))
        assert labels is not None, "the fused head scores labels"
        targets = labels[:, 1:]
        counts = targets != IGNORED
        every = logits.log_softmax(dim=-1)
        chosen = every.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        known, probability = every.detach(), every.detach().exp()
        entropy = -torch.where(probability > 0, probability * known, 0).sum(dim=-1)
        return TableOutput(
            logits=logits,
            log_probs=torch.where(counts, chosen, 0),
            entropy=torch.where(counts, entropy, 0),
            log_sum_sq_probs=torch.where(counts, (2 * known).logsumexp(dim=-1), 0),
            mean_logits=torch.where(counts, known.clamp(min=-1e6).mean(dim=-1), 0),
            is_top1=counts & (known.argmax(dim=-1) == targets),
            label_mask=counts,
        )


def row_tables(token_logprobs: Tensor) -> Tensor:
    """One table per row over two tokens, the first of which has the given log-probabilities.

    Args:
        token_logprobs: Shape (rows, positions), below zero.
    """
    # log(1 - p); near p = 1 the other branch keeps the digits, and neither sees the other's side.
    near = token_logprobs > -0.6931
    far_side = torch.log1p(-torch.exp(torch.where(near, -1.0, token_logprobs)))
    near_side = torch.log(-torch.expm1(torch.where(near, token_logprobs, -1.0)))
    return torch.stack([token_logprobs, torch.where(near, near_side, far_side)], dim=-1)
