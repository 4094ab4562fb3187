"""A pass over a global batch as one would write it on paper: slow, plain and in float64.

One completion at a time, from all logits of a model that knows nothing of rows; then averages,
class counts, baseline and metrics as their definitions say. Only the formula of one example is the
objective's own.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

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
from veritune.training.objective_pass import Objective


class Measured(NamedTuple):
    """What is known of one completion of a record, all of it and within the common length."""

    policy: Tensor
    reference: Tensor | None
    length: int
    policy_common: Tensor
    reference_common: Tensor | None


@dataclass(frozen=True)
class Expected:
    """What a pass must give."""

    loss: float
    metrics: dict[str, float]
    gradients: dict[str, Tensor]
    baseline: float | None


def wide(model: Any) -> Any:
    """A float64 copy, with attention written out by transformers."""
    other = copy.deepcopy(model).double().eval()
    other.set_attn_implementation("eager")
    return other


def sequence_logprob(
    model: Any, prompt: Any, completion: Any, temperature: float, first: int | None = None
) -> Tensor:
    """log p(completion | prompt) over its loss-bearing tokens or the first of them, one by one."""
    ids = torch.tensor([*prompt.tolist(), *completion.ids.tolist()])
    logits = model(input_ids=ids[None], use_cache=False).logits[0] / temperature
    total = logits.new_zeros(())
    counted = 0
    for place, (token, counts) in enumerate(
        zip(completion.ids.tolist(), completion.bears_loss.tolist(), strict=True)
    ):
        if counts and (first is None or counted < first):
            counted += 1
            total = total + logits[len(prompt) + place - 1].log_softmax(-1)[token]
    return total


def longhand(
    policy: Any,
    reference: Any,
    objective: Objective,
    dataset: TokenizedDataset,
    indices: Sequence[int],
    *,
    temperature: float = 1.0,
) -> Expected:
    """Loss, metrics and gradients of the mean loss over the records of a batch."""
    policy = wide(policy)
    reference = wide(reference) if objective.card.needs_reference else None
    baseline = None
    if objective.card.needs_mismatched:
        baseline = _baseline(policy, reference, dataset, indices, temperature)
    labels = [bool(dataset.desirable[i]) for i in indices] if dataset.kind == "unpaired" else []
    examples = [_example(policy, reference, dataset, i, temperature) for i in indices]
    num_tokens = sum(int(sum(c.bears_loss)) for i in indices for c in dataset[i].completions)
    divisor = num_tokens if objective.card.name == "sft" else len(indices)

    total = torch.zeros((), dtype=torch.float64)
    for index, completions in zip(indices, examples, strict=True):
        data = _form(dataset, index, completions, labels, baseline)
        total = total + objective.loss(data).sum() / divisor
    total.backward()
    return Expected(
        loss=total.item(),
        metrics=_metrics(objective, dataset, indices, examples, labels),
        gradients={
            name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None
        },
        baseline=baseline,
    )


def _example(
    policy: Any, reference: Any, dataset: TokenizedDataset, index: int, temperature: float
) -> list[Measured]:
    """Each completion of a record."""
    group = dataset[index]
    lengths = [int(sum(completion.bears_loss)) for completion in group.completions]

    def both(model: Any, completion: Any) -> tuple[Tensor, Tensor]:
        whole, common = (
            sequence_logprob(model, group.prompt, completion, temperature, first)
            for first in (None, min(lengths))
        )
        return whole, common

    found = []
    for completion, length in zip(group.completions, lengths, strict=True):
        ours, ours_common = both(policy, completion)
        theirs, theirs_common = None, None
        if reference is not None:
            with torch.no_grad():
                theirs, theirs_common = both(reference, completion)
        found.append(Measured(ours, theirs, length, ours_common, theirs_common))
    return found


def _baseline(
    policy: Any,
    reference: Any,
    dataset: TokenizedDataset,
    indices: Sequence[int],
    temperature: float,
) -> float:
    """Mean log-ratio of each record's prompt with the completion of the next other prompt."""
    ratios = []
    for place, index in enumerate(indices):
        own = dataset[index].prompt
        following = [*indices[place + 1 :], *indices[:place]]
        other = next(i for i in following if dataset[i].prompt.tolist() != own.tolist())
        completion = dataset[other].completions[0]
        with torch.no_grad():
            ratios.append(
                float(
                    sequence_logprob(policy, own, completion, temperature)
                    - sequence_logprob(reference, own, completion, temperature)
                )
            )
    return sum(ratios) / len(ratios)


def _form(
    dataset: TokenizedDataset,
    index: int,
    completions: list[Measured],
    labels: list[bool],
    baseline: float | None,
) -> LogProbs:
    """One example in the form of its kind."""

    def column(*places: int, rank: int = 1) -> CompletionLogProbs:
        chosen = [completions[place] for place in places]
        shape = (len(places),) if rank == 1 else (1, len(places))

        def side_by_side(values: list[Tensor | None]) -> Tensor | None:
            known = [value for value in values if value is not None]
            return torch.stack(known).view(shape) if known else None

        return CompletionLogProbs(
            policy=torch.stack([c.policy for c in chosen]).view(shape),
            length=torch.tensor([c.length for c in chosen]).view(shape),
            reference=side_by_side([c.reference for c in chosen]),
            policy_common=side_by_side([c.policy_common for c in chosen]),
            reference_common=side_by_side([c.reference_common for c in chosen]),
        )

    if dataset.kind == "paired":
        return PairedLogProbs(column(0), column(1), mean_log_ratio=torch.tensor(0.0).double())
    if dataset.kind == "demonstration":
        return DemonstrationLogProbs(column(0))
    if dataset.kind == "scored":
        scores = torch.tensor([dataset.scores[index]], dtype=torch.float64)
        every = column(*range(len(completions)), rank=2)
        return ScoredLogProbs(every, scores, torch.ones_like(scores, dtype=torch.bool))
    return UnpairedLogProbs(
        column(0),
        desirable=torch.tensor([bool(dataset.desirable[index])]),
        num_desirable=sum(labels),
        num_undesirable=len(labels) - sum(labels),
        mismatched_log_ratio=None if baseline is None else torch.tensor(baseline).double(),
        mean_log_ratio=torch.tensor(0.0).double(),
    )


def _metrics(
    objective: Objective,
    dataset: TokenizedDataset,
    indices: Sequence[int],
    examples: list[list[Measured]],
    labels: list[bool],
) -> dict[str, float]:
    scales = {
        "dpo": "beta", "robust_dpo": "beta", "ipo": "tau", "exo_pref": "beta",
        "exo_pref_official": "beta_pi", "pmle": "gamma", "pmle_kl": "gamma",
        "exo_rw": "beta_pi", "dpo_rw": "beta_pi", "kto": "beta",
    }  # fmt: skip
    name = scales.get(objective.card.name, objective.card.reward_scale)
    scale = 1.0 if name is None else objective.hyperparameters[name]
    logps = [[c[0].item() for c in example] for example in examples]
    rewards = [
        [scale * (c[0] if c[1] is None else c[0] - c[1]).item() for c in example]
        for example in examples
    ]
    if dataset.kind == "demonstration":
        return {"logps/completions": mean([own[0] for own in logps])}
    if dataset.kind == "paired":
        found = {
            "rewards/chosen": mean([r[0] for r in rewards]),
            "rewards/rejected": mean([r[1] for r in rewards]),
            "rewards/accuracies": mean([ordered(r[0], r[1]) for r in rewards]),
            "logps/chosen": mean([own[0] for own in logps]),
            "logps/rejected": mean([own[1] for own in logps]),
        }
    elif dataset.kind == "unpaired":
        good = [place for place, label in enumerate(labels) if label]
        bad = [place for place, label in enumerate(labels) if not label]
        found = {
            "rewards/chosen": mean([rewards[p][0] for p in good]),
            "rewards/rejected": mean([rewards[p][0] for p in bad]),
            "logps/chosen": mean([logps[p][0] for p in good]),
            "logps/rejected": mean([logps[p][0] for p in bad]),
        }
    else:
        scores = [dataset.scores[index] for index in indices]
        comparisons = []
        for s, r in zip(scores, rewards, strict=True):
            for i, j in combinations(range(len(s)), 2):
                if s[i] != s[j]:
                    comparisons.append(ordered(r[i], r[j]) if s[i] > s[j] else ordered(r[j], r[i]))
        pairs = list(zip(scores, rewards, strict=True))
        found = {
            "rewards/chosen": mean([r[s.index(max(s))] for s, r in pairs]),
            "rewards/rejected": mean([r[s.index(min(s))] for s, r in pairs]),
            "rewards/accuracies": mean(comparisons),
        }
    found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
    return found


def mean(values: Sequence[float]) -> float:
    """The plain mean."""
    return sum(values) / len(values)


def ordered(better: float, worse: float) -> float:
    """1 if the better one is larger, 1/2 if both are equal, else 0."""
    return 1.0 if better > worse else 0.5 if better == worse else 0.0
