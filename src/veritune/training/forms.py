"""Sums per completion to the form of log-probabilities that an objective takes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from veritune.logprobs import (
    CompletionLogProbs,
    DemonstrationLogProbs,
    LogProbs,
    PairedLogProbs,
    ScoredLogProbs,
    UnpairedLogProbs,
)
from veritune.tokens.dataset import TokenizedDataset


@dataclass(frozen=True)
class GlobalFacts:
    """What the global batch says, beyond the examples of one row."""

    num_examples: int
    num_tokens: int
    """Loss-bearing tokens of the batch."""

    num_desirable: int = 0
    mismatched_log_ratio: Tensor | None = None
    mean_log_ratio: Tensor | None = None


def assemble(
    dataset: TokenizedDataset,
    indices: Sequence[int],
    policy: Float[Tensor, " S"],
    lengths: Int[Tensor, " S"],
    reference: Float[Tensor, " S"] | None,
    facts: GlobalFacts,
) -> LogProbs:
    """The objective's form, from sums over the completions of the given groups, in order."""
    if dataset.kind == "scored":
        return _scored(dataset, indices, policy, lengths, reference)
    if dataset.kind == "paired":
        sides = [
            CompletionLogProbs(
                policy[side::2], lengths[side::2], None if reference is None else reference[side::2]
            )
            for side in (0, 1)
        ]
        return PairedLogProbs(sides[0], sides[1], mean_log_ratio=facts.mean_log_ratio)
    completion = CompletionLogProbs(policy, lengths, reference)
    if dataset.kind == "demonstration":
        return DemonstrationLogProbs(completion)
    assert dataset.kind == "unpaired", f"no form for {dataset.kind}"
    return UnpairedLogProbs(
        completion,
        desirable=torch.from_numpy(dataset.desirable[list(indices)]).to(policy.device),
        num_desirable=facts.num_desirable,
        num_undesirable=facts.num_examples - facts.num_desirable,
        mismatched_log_ratio=facts.mismatched_log_ratio,
        mean_log_ratio=facts.mean_log_ratio,
    )


def _scored(
    dataset: TokenizedDataset,
    indices: Sequence[int],
    policy: Tensor,
    lengths: Tensor,
    reference: Tensor | None,
) -> ScoredLogProbs:
    """Groups of different sizes as one rectangle, with `present` saying what is there."""
    scores = [dataset.scores[index] for index in indices]
    sizes = torch.tensor([len(group) for group in scores])
    width = int(sizes.max())
    present = (torch.arange(width) < sizes[:, None]).to(policy.device)

    def spread(values: Tensor) -> Tensor:
        return values.new_zeros(present.shape).masked_scatter(present, values)

    return ScoredLogProbs(
        CompletionLogProbs(
            spread(policy), spread(lengths), None if reference is None else spread(reference)
        ),
        scores=spread(
            torch.tensor([s for g in scores for s in g], device=policy.device, dtype=policy.dtype)
        ),
        present=present,
    )
