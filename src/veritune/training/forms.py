"""Sums per completion to the form of log-probabilities that an objective takes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
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
    completion: CompletionLogProbs,
    facts: GlobalFacts,
) -> LogProbs:
    """The objective's form, from the completions of the given groups, in order, shape (S,)."""
    if dataset.kind == "scored":
        return _scored(dataset, indices, completion)
    if dataset.kind == "paired":
        chosen, rejected = (_every(completion, slice(side, None, 2)) for side in (0, 1))
        return PairedLogProbs(chosen, rejected, mean_log_ratio=facts.mean_log_ratio)
    if dataset.kind == "demonstration":
        return DemonstrationLogProbs(completion)
    assert dataset.kind == "unpaired", f"no form for {dataset.kind}"
    return UnpairedLogProbs(
        completion,
        desirable=torch.from_numpy(dataset.desirable[list(indices)]).to(completion.policy.device),
        num_desirable=facts.num_desirable,
        num_undesirable=facts.num_examples - facts.num_desirable,
        mismatched_log_ratio=facts.mismatched_log_ratio,
        mean_log_ratio=facts.mean_log_ratio,
    )


def _every(completion: CompletionLogProbs, which: slice) -> CompletionLogProbs:
    """Some of the completions, with all that is known of them."""

    def of(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[which]

    return CompletionLogProbs(
        completion.policy[which],
        completion.length[which],
        of(completion.reference),
        policy_common=of(completion.policy_common),
        reference_common=of(completion.reference_common),
    )


def _scored(
    dataset: TokenizedDataset, indices: Sequence[int], completion: CompletionLogProbs
) -> ScoredLogProbs:
    """Groups of different sizes as one rectangle, with `present` saying what is there."""
    scores = [dataset.scores[index] for index in indices]
    sizes = torch.tensor([len(group) for group in scores])
    width = int(sizes.max())
    policy, reference = completion.policy, completion.reference
    present = (torch.arange(width) < sizes[:, None]).to(policy.device)

    def spread(values: Tensor) -> Tensor:
        return values.new_zeros(present.shape).masked_scatter(present, values)

    return ScoredLogProbs(
        CompletionLogProbs(
            spread(policy),
            spread(completion.length),
            None if reference is None else spread(reference),
        ),
        scores=spread(
            torch.tensor([s for g in scores for s in g], device=policy.device, dtype=policy.dtype)
        ),
        present=present,
    )
