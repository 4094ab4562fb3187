"""The formulas of objectives on samples longhand, advantages given.

As in `published.py`, which has those on pairs and on labels.
"""

import torch
from torch import Tensor

from peers.batches import Batch
from peers.implementation import Formula
from peers.published import sigmoid


class _Tokens:
    """Token-level quantities of a batch of samples."""

    def __init__(self, batch: Batch) -> None:
        rows = batch.rows
        assert batch.behavior is not None, "samples have a behavior"
        assert batch.advantages is not None, "samples have advantages"
        self.counts = rows.bears_loss
        self.logprob = rows.token_logprobs(rows.policy)
        self.log_ratio = self.logprob - batch.behavior
        self.ratio = self.log_ratio.exp()
        self.away = rows.token_logprobs(rows.reference) - self.logprob
        self.advantage = batch.advantages[:, None]
        self.lengths = rows.lengths.to(self.logprob.dtype)

    def clipped(self, ratio: Tensor, epsilon: float) -> Tensor:
        inside = ratio.clamp(1 - epsilon, 1 + epsilon)
        return -torch.minimum(ratio * self.advantage, inside * self.advantage)

    def total(self, of_tokens: Tensor) -> Tensor:
        return torch.where(self.counts, of_tokens, 0).sum(dim=1)


def grpo(epsilon: float, beta: float) -> Formula:
    def loss(batch: Batch) -> Tensor:
        t = _Tokens(batch)
        penalty = t.away.exp() - t.away - 1
        return (t.total(t.clipped(t.ratio, epsilon) + beta * penalty) / t.lengths).mean()

    return Formula(
        loss,
        "Shao et al. 2024, arXiv:2402.03300, eq. 3, advantages given",
        ignores_reference=beta == 0,
        takes_optimum=False,
    )


def gspo(epsilon: float) -> Formula:
    def loss(batch: Batch) -> Tensor:
        t = _Tokens(batch)
        ratio = (t.total(t.log_ratio) / t.lengths).exp()[:, None]
        return t.clipped(ratio, epsilon).mean()

    return Formula(
        loss,
        "Zheng et al. 2025, arXiv:2507.18071, eq. 5, advantages given",
        ignores_reference=True,
        takes_optimum=False,
    )


def luspo(epsilon: float) -> Formula:
    def loss(batch: Batch) -> Tensor:
        t = _Tokens(batch)
        ratio = (t.total(t.log_ratio) / t.lengths).exp()[:, None]
        return (t.clipped(ratio, epsilon)[:, 0] * t.lengths).mean()

    return Formula(
        loss,
        "arXiv:2602.05261, LUSPO, advantages given",
        ignores_reference=True,
        takes_optimum=False,
    )


def per_token_of_the_batch(epsilon: float, source: str) -> Formula:
    def loss(batch: Batch) -> Tensor:
        t = _Tokens(batch)
        return t.total(t.clipped(t.ratio, epsilon)).sum() / t.lengths.sum()

    return Formula(loss, source, couples_examples=True, ignores_reference=True, takes_optimum=False)


def dr_grpo(epsilon: float, longest: int) -> Formula:
    def loss(batch: Batch) -> Tensor:
        t = _Tokens(batch)
        return (t.total(t.clipped(t.ratio, epsilon)) / longest).mean()

    return Formula(
        loss,
        "Liu et al. 2025, arXiv:2503.20783, over a constant length, advantages given",
        ignores_reference=True,
        takes_optimum=False,
    )


def cispo(largest: float) -> Formula:
    def loss(batch: Batch) -> Tensor:
        t = _Tokens(batch)
        weight = t.ratio.clamp(max=largest).detach()
        return t.total(-weight * t.advantage * t.logprob).sum() / t.lengths.sum()

    return Formula(
        loss,
        "arXiv:2506.13585, CISPO, advantages given",
        couples_examples=True,
        stops_gradient=True,
        ignores_reference=True,
        takes_optimum=False,
    )


def sapo(temperature_positive: float, temperature_negative: float) -> Formula:
    def loss(batch: Batch) -> Tensor:
        t = _Tokens(batch)
        tau = torch.where(t.advantage > 0, temperature_positive, temperature_negative)
        gate = sigmoid(tau * (t.ratio - 1)) * 4 / tau
        return (t.total(-gate * t.advantage) / t.lengths).mean()

    return Formula(
        loss,
        "arXiv:2511.20347, SAPO, advantages given",
        ignores_reference=True,
        takes_optimum=False,
    )


def rloo(epsilon: float) -> Formula:
    def loss(batch: Batch) -> Tensor:
        t = _Tokens(batch)
        ratio = t.total(t.log_ratio).exp()[:, None]
        return t.clipped(ratio, epsilon).mean()

    return Formula(
        loss,
        "Ahmadian et al. 2024, arXiv:2402.14740, completions as actions, with PPO's clip, "
        "advantages given",
        ignores_reference=True,
        takes_optimum=False,
    )
