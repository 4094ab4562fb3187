"""Card: what is published about an objective, in one place.

Everything that is said of an objective elsewhere (settings and their ranges, documentation,
laws in the tests, the step-0 assertion, citation) is read from its card.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from veritune.logprobs import LogProbs


@dataclass(frozen=True)
class Card:
    """What is published about one objective."""

    loss: Callable[..., Tensor]
    """The pure function `<name>_loss(data, *, hyper-parameters) -> (B,)`."""

    data: type[LogProbs]
    """The form of log-probabilities that it takes."""

    source: str
    """The paper, as `arXiv:…` or a citation, with the equation."""

    title: str
    """What the letters stand for, in a few words."""

    target: str
    """What the minimizer is, in a sentence; or that none is claimed."""

    elsewhere: str = ""
    """What other toolkits call it, and their settings; or what they compute by the same name."""

    optimum: Callable[..., Tensor] | None = None
    """`<name>_optimum(problem, *, hyper-parameters) -> (Y,)` log-probabilities; None if unclaimed.
    Its assumptions (on the reference, on the preferences) are in `target` and in its docstring."""

    initial_loss: Callable[..., Tensor] | None = None
    """The loss when the policy equals the reference: a closed form of the same arguments as `loss`,
    derived on its own, that reads no policy log-probability. None if there is no such form."""

    needs_reference: bool = True
    """Whether reference log-probabilities are read at all."""

    needs_mismatched: bool = False
    """Whether `mismatched_log_ratio` of the unpaired form is read."""

    needs_mean_log_ratio: bool = False
    """Whether `mean_log_ratio` of the paired or unpaired form is read."""

    needs_common_length: bool = False
    """Whether `policy_common` and `reference_common` of the paired form are read."""

    needs_advantages: bool = False
    """Whether `advantages` of the sampled form is read."""

    normalizer: str = "examples"
    """What the sum of losses over the global batch is divided by: "examples" or "tokens"."""

    finite_everywhere: bool = True
    """Whether loss and gradient are finite for log-ratios of any size (|g| up to 1e4 nats)."""

    data_fraction: str | None = None
    """The hyper-parameter that defaults to the data's desirable fraction (`alpha` or `t`)."""

    reward_scale: str | None = None
    """The hyper-parameter that turns a log-ratio into the logged `rewards/…`; None means 1.
    It is for the log only and says nothing about the loss."""

    @property
    def name(self) -> str:
        """The name under which the objective is chosen: that of its function without `_loss`."""
        return self.loss.__name__.removesuffix("_loss")

    @property
    def kind(self) -> str:
        """The kind of records that it takes: demonstration, paired, sampled, scored or
        unpaired."""
        return self.data.__name__.removesuffix("LogProbs").lower()

    @property
    def takes_samples(self) -> bool:
        """Whether the policy supplies the completions; else they come from a file of records."""
        return self.kind == "sampled"
