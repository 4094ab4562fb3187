"""The forms in which log-probabilities reach an objective.

All values are in nats and float32 or wider. A sequence log-probability is the sum over the
completion's loss-bearing tokens, end-of-sequence included. The reference never carries gradient.
Whatever depends on other examples of the global batch is a field here, computed by the training
step, so that an objective stays a local formula.
"""

from dataclasses import dataclass

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


@dataclass(frozen=True)
class ScoredLogProbs:
    """B groups of up to K scored completions of one prompt, shape (B, K)."""

    completions: CompletionLogProbs

    scores: Float[Tensor, "B K"]
    """A larger score is better; 0 where `present` is False."""

    present: Bool[Tensor, "B K"]
    """True where the group has a completion; groups may be of different sizes."""


LogProbs = DemonstrationLogProbs | PairedLogProbs | UnpairedLogProbs | ScoredLogProbs
