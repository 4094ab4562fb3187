"""What a check needs to know about an implementation of an objective."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from peers.batches import Batch


@dataclass(frozen=True)
class Formula:
    """A published objective, written longhand."""

    mean_loss: Callable[[Batch], Tensor]
    """What a batch's loss should be."""

    source: str
    """Paper and equation."""

    couples_examples: bool = False
    """Whether the loss of an example depends on others by definition."""

    ignores_reference: bool = False
    """Whether there is no reference in it."""

    stops_gradient: bool = False
    """Whether a part of it is a constant for the gradient, so that differences of it are not."""

    takes_optimum: bool = True
    """Whether it has a minimum inside the simplex on the laboratory's pairs."""


@dataclass(frozen=True)
class Implementation:
    """One loss of one toolkit, fed from tables."""

    library: str
    """TRL, Liger-Kernel or Veritune."""

    where: str
    """The class or function."""

    option: str
    """The setting that chooses the loss, or the empty string."""

    kind: str
    """What it takes: pairs, labels or samples."""

    mean_loss: Callable[[Batch], Tensor]
    """The loss that the toolkit would call `backward` on, for one undivided batch."""

    formula: Formula

    settings: dict[str, float | str] = field(default_factory=dict)
    """Those that differ from the defaults, and those that matter."""

    in_single_precision: bool = False
    """Whether it computes in float32 whatever it is given, by design."""

    accepts_double: bool = True
    """Whether it can be given float64 at all."""

    parts: Callable[[list[Batch]], list[Tensor]] | None = None
    """The losses of micro-batches of one accumulated step, where they know of each other; their
    sum is the step's. None: each as `mean_loss`, and the trainer takes their mean."""

    @property
    def name(self) -> str:
        """Unique, short, and accepted by --only."""
        choice = f" {self.option}" if self.option else ""
        return f"{self.library} {self.where}{choice}"
