"""The forms in which log-probabilities reach an objective.

All values are in nats and float32 or wider. A sequence log-probability is the sum over the
completion's loss-bearing tokens, end-of-sequence included. The reference never carries gradient.
Whatever depends on other examples of the global batch is a field here, computed by the training
step, so that an objective stays a local formula.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class CompletionLogProbs:
    """Log-probabilities of completions, of any one shape `S`."""

    policy: Float[Tensor, " *S"]
    """Under the policy, with gradient."""

    length: Int[Tensor, " *S"]
    """Number of tokens that the sums run over."""

    reference: Float[Tensor, " *S"] | None = None
    """Under the reference; None where the objective needs none."""

    policy_common: Float[Tensor, " *S"] | None = None
    """Under the policy, over the first tokens only: as many as the shorter completion of the pair
    has; None where the objective needs none."""

    reference_common: Float[Tensor, " *S"] | None = None
    """The same under the reference."""

    @property
    def log_ratio(self) -> Float[Tensor, " *S"]:
        """Policy minus reference, in nats."""
        assert self.reference is not None, "an objective with a log-ratio declares its reference"
        return self.policy - self.reference


@dataclass(frozen=True)
class DemonstrationLogProbs:
    """Completions to imitate, shape (B,)."""

    completion: CompletionLogProbs


@dataclass(frozen=True)
class PairedLogProbs:
    """Chosen and rejected completions of B pairs, each of shape (B,)."""

    chosen: CompletionLogProbs
    rejected: CompletionLogProbs

    mean_log_ratio: Float[Tensor, ""] | None = None
    """Mean log-ratio of the completions of earlier steps, chosen and rejected counted alike; 0 at
    the first step; without gradient; None where the objective needs none."""


@dataclass(frozen=True)
class UnpairedLogProbs:
    """B labelled completions, shape (B,), and what the global batch says about them."""

    completion: CompletionLogProbs

    desirable: Bool[Tensor, " B"]
    """True where the completion was labelled desirable."""

    num_desirable: int
    """Desirable examples in the global batch, over all micro-steps and ranks."""

    num_undesirable: int
    """Undesirable examples in the global batch."""

    mismatched_log_ratio: Float[Tensor, ""] | None = None
    """Mean log-ratio, over the global batch, of completions under prompts they do not belong to;
    without gradient; None where the objective needs none."""

    mean_log_ratio: Float[Tensor, ""] | None = None
    """Mean log-ratio of the completions of earlier steps, both labels counted alike: the mean of
    the two class means; 0 at the first step; without gradient; None where the objective needs
    none."""


@dataclass(frozen=True)
class ScoredLogProbs:
    """B groups of up to K scored completions of one prompt, shape (B, K)."""

    completions: CompletionLogProbs

    scores: Float[Tensor, "B K"]
    """A larger score is better; 0 where `present` is False."""

    present: Bool[Tensor, "B K"]
    """True where the group has a completion; groups may be of different sizes."""


@dataclass(frozen=True)
class SampledLogProbs:
    """B groups of up to K completions that the policy itself supplied, token by token.

    The law that produced them is the behavior: the policy as it was when it sampled. It is a
    constant; the loss is a function of the policy alone, and where policy and behavior are still
    equal its gradient is the policy gradient. Entries outside `bears_loss` are never read.
    """

    policy: Float[Tensor, "B K T"]
    """Log-probability of each token under the policy, with gradient."""

    behavior: Float[Tensor, "B K T"]
    """The same under the behavior, without gradient."""

    bears_loss: Bool[Tensor, "B K T"]
    """True at the tokens of a completion, end-of-sequence included. A completion without any such
    token is absent: groups may be of different sizes."""

    rewards: Float[Tensor, "B K"]
    """Reward of each completion; 0 where it is absent."""

    reference: Float[Tensor, "B K T"] | None = None
    """Under the reference; None where the objective needs none."""

    advantages: Float[Tensor, "B K T"] | None = None
    """How much better than expected each token turned out, as a value model says, without
    gradient; None where the objective needs none."""

    @property
    def present(self) -> Bool[Tensor, "B K"]:
        """True where the group has a completion."""
        return self.bears_loss.any(dim=-1)

    @property
    def completions(self) -> CompletionLogProbs:
        """Sums over tokens under policy and reference, and the number of tokens."""
        return CompletionLogProbs(
            policy=self._sum(self.policy),
            length=self.bears_loss.sum(dim=-1),
            reference=None if self.reference is None else self._sum(self.reference),
        )

    @property
    def behavior_log_ratio(self) -> Float[Tensor, "B K T"]:
        """Policy minus behavior at each token; 0 at tokens that bear no loss."""
        return torch.where(self.bears_loss, self.policy - self.behavior, 0)

    @property
    def behavior_sums(self) -> Float[Tensor, "B K"]:
        """Log-probability of each completion under the behavior."""
        return self._sum(self.behavior)

    def _sum(self, tokens: Float[Tensor, "B K T"]) -> Float[Tensor, "B K"]:
        return torch.where(self.bears_loss, tokens, 0).sum(dim=-1)


LogProbs = (
    DemonstrationLogProbs | PairedLogProbs | UnpairedLogProbs | ScoredLogProbs | SampledLogProbs
)

FormT = TypeVar("FormT", bound=CompletionLogProbs | LogProbs)


def detached(form: FormT, device: torch.device) -> FormT:
    """The same values without gradient, on a device."""

    def of(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().to(device)
        return detached(value, device) if isinstance(value, CompletionLogProbs) else value

    values: dict[str, Any] = {field.name: of(getattr(form, field.name)) for field in fields(form)}
    return replace(form, **values)
