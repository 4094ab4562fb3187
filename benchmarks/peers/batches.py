"""Rows of completions under a policy and a reference, as tables: what every implementation is fed.

The policy of a batch is a tensor of logits, the reference another; gradients are taken with
respect to the former. Nothing is said of models, so the same rows go into TRL's trainers, Liger's
fused losses, the longhand formulas and Veritune.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from peers.table_policy import IGNORED, row_tables


@dataclass(frozen=True)
class Rows:
    """N completions of up to T tokens over a vocabulary of V."""

    policy: Tensor
    """Logits, shape (N, T, V)."""

    reference: Tensor
    """Logits, same shape."""

    tokens: Tensor
    """Shape (N, T)."""

    lengths: Tensor
    """Tokens that count, shape (N,); those after are padding."""

    @property
    def bears_loss(self) -> Tensor:
        """True at tokens that count, shape (N, T)."""
        return torch.arange(self.tokens.shape[1]) < self.lengths[:, None]

    @property
    def labels(self) -> Tensor:
        """The tokens, and IGNORED at padding."""
        return self.tokens.masked_fill(~self.bears_loss, IGNORED)

    def token_logprobs(self, logits: Tensor) -> Tensor:
        """Log-probabilities of the tokens under a table of logits; 0 at padding."""
        chosen = logits.log_softmax(dim=-1).gather(-1, self.tokens[..., None])[..., 0]
        return torch.where(self.bears_loss, chosen, 0)

    @property
    def policy_sums(self) -> Tensor:
        """Log-probability of each completion under the policy."""
        return self.token_logprobs(self.policy).sum(dim=1)

    @property
    def reference_sums(self) -> Tensor:
        """Log-probability of each completion under the reference."""
        return self.token_logprobs(self.reference).sum(dim=1)

    def take(self, which: Tensor) -> "Rows":
        """Some of the rows, padding cut to the longest of them."""
        longest = int(self.lengths[which].max())
        return Rows(
            self.policy[which, :longest],
            self.reference[which, :longest],
            self.tokens[which, :longest],
            self.lengths[which],
        )

    def to(self, dtype: torch.dtype) -> "Rows":
        """The same in another type."""
        return dataclasses.replace(
            self, policy=self.policy.to(dtype), reference=self.reference.to(dtype)
        )


@dataclass(frozen=True)
class Batch:
    """Rows, and what is known of them."""

    rows: Rows

    desirable: Tensor | None = None
    """Labels: True where desirable, shape (N,). None: rows are pairs, all chosen ones first."""

    mismatched: Rows | None = None
    """Labels: completions under other prompts, as many as rows."""

    behavior: Tensor | None = None
    """Samples: token log-probabilities of the law that drew them, shape (N, T)."""

    advantages: Tensor | None = None
    """Samples: one per completion, shape (N,)."""

    num_tokens: int | None = None
    """Samples: completion tokens of the whole batch that this may be a part of."""

    @property
    def num_examples(self) -> int:
        """Pairs, or rows that are not paired."""
        is_paired = self.desirable is None and self.advantages is None
        return len(self.rows.lengths) // 2 if is_paired else len(self.rows.lengths)

    def examples(self, which: Sequence[int]) -> "Batch":
        """Some of the examples, in this order, as a batch of their own."""
        index = torch.tensor(list(which))
        if self.desirable is None and self.advantages is None:
            return Batch(self.rows.take(torch.cat([index, index + self.num_examples])))
        rows = self.rows.take(index)
        width = rows.tokens.shape[1]
        return Batch(
            rows,
            desirable=None if self.desirable is None else self.desirable[index],
            mismatched=None if self.mismatched is None else self.mismatched.take(index),
            behavior=None if self.behavior is None else self.behavior[index, :width],
            advantages=None if self.advantages is None else self.advantages[index],
            num_tokens=self.num_tokens,
        )

    def with_policy(self, policy: Tensor) -> "Batch":
        """The same rows under another policy."""
        return dataclasses.replace(self, rows=dataclasses.replace(self.rows, policy=policy))

    def with_reference(self, reference: Tensor) -> "Batch":
        """The same rows under another reference."""
        return dataclasses.replace(self, rows=dataclasses.replace(self.rows, reference=reference))

    def to(self, dtype: torch.dtype) -> "Batch":
        """The same in another type."""
        return dataclasses.replace(
            self,
            rows=self.rows.to(dtype),
            mismatched=None if self.mismatched is None else self.mismatched.to(dtype),
            behavior=None if self.behavior is None else self.behavior.to(dtype),
            advantages=None if self.advantages is None else self.advantages.to(dtype),
        )


def mismatched_log_ratio(batches: Sequence[Batch]) -> Tensor:
    """Mean log-ratio of the mismatched completions of all batches, without gradient."""
    ratios = []
    for batch in batches:
        assert batch.mismatched is not None, "labels come with mismatched completions"
        ratios.append(batch.mismatched.policy_sums - batch.mismatched.reference_sums)
    return torch.cat(ratios).mean().detach()


def random_rows(generator: torch.Generator, lengths: Sequence[int], vocabulary: int = 5) -> Rows:
    """Completions of these lengths; policy and reference a few tenths of a nat apart per token."""
    shape = (len(lengths), max(lengths), vocabulary)
    reference = torch.randn(shape, generator=generator, dtype=torch.float64)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    return Rows(
        policy=reference + 0.5 * noise,
        reference=reference,
        tokens=torch.randint(vocabulary, shape[:2], generator=generator),
        lengths=torch.tensor(lengths),
    )


def random_batch(kind: str, seed: int = 0) -> Batch:
    """Six pairs, labelled completions or samples of one to seven tokens, float64."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "pairs":
        return Batch(random_rows(generator, [3, 1, 7, 4, 2, 5, 2, 6, 3, 1, 7, 4]))
    rows = random_rows(generator, [3, 1, 7, 4, 2, 5])
    if kind == "labels":
        others = random_rows(generator, [4, 3, 1, 7, 2, 5])
        # The policy likes them more than the reference does, so that z0 is above zero.
        liked = torch.nn.functional.one_hot(others.tokens, others.policy.shape[-1])
        return Batch(
            rows,
            desirable=torch.tensor([True, False, True, True, False, True]),
            mismatched=dataclasses.replace(others, policy=others.policy + 0.5 * liked),
        )
    assert kind == "samples", f"no batch of {kind}"
    moved = rows.policy + 0.3 * torch.randn(
        rows.policy.shape, generator=generator, dtype=torch.float64
    )
    return Batch(
        rows,
        behavior=rows.token_logprobs(moved),
        advantages=torch.randn(6, generator=generator, dtype=torch.float64),
        num_tokens=int(rows.lengths.sum()),
    )


def extreme_rows(log_ratios: Sequence[float], dtype: torch.dtype = torch.float32) -> Rows:
    """One-token completions with these log-ratios, in nats."""
    ratio = torch.tensor(log_ratios, dtype=torch.float64)[:, None]
    # The larger of both log-probabilities is -1 nat.
    policy, reference = -1 + ratio.clamp(max=0), -1 - ratio.clamp(min=0)
    return Rows(
        row_tables(policy).to(dtype),
        row_tables(reference).to(dtype),
        tokens=torch.zeros(len(log_ratios), 1, dtype=torch.long),
        lengths=torch.ones(len(log_ratios), dtype=torch.long),
    )


def extreme_batches(kind: str, sizes: Sequence[float]) -> list[tuple[str, Batch]]:
    """One example for each combination of log-ratios, and its words."""
    found = []
    if kind == "pairs":
        for chosen, rejected in itertools.product(sizes, repeat=2):
            words = f"log-ratios {chosen:g} (chosen) and {rejected:g} (rejected)"
            found.append((words, Batch(extreme_rows([chosen, rejected]))))
        return found
    for size in sizes:
        rows = extreme_rows([size])
        if kind == "labels":
            for is_desirable, point in itertools.product((True, False), sizes):
                words = f"log-ratio {size:g}, {'' if is_desirable else 'un'}desirable"
                batch = Batch(rows, torch.tensor([is_desirable]), extreme_rows([point]))
                found.append((f"{words}, mismatched {point:g}", batch))
        else:
            # The behavior is the reference: the ratio to both is the same.
            behavior = rows.token_logprobs(rows.reference)
            for advantage in (1.0, -1.0):
                batch = Batch(
                    rows,
                    behavior=behavior,
                    advantages=torch.tensor([advantage]),
                    num_tokens=1,
                )
                found.append((f"log-ratio {size:g}, advantage {advantage:g}", batch))
    return found
