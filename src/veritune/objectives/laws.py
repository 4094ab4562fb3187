"""What every objective must satisfy, checked on small tables of log-probabilities.

The training step averages losses over the global batch, cuts the batch as memory asks, and adds up
gradients; that is right only for a function that treats examples separately. Other laws guard the
numbers. All of them hold for the catalog, and a function of a user's own is held to them before it
trains.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

from veritune.logprobs import (
    CompletionLogProbs,
    DemonstrationLogProbs,
    LogProbs,
    PairedLogProbs,
    SampledLogProbs,
    ScoredLogProbs,
    UnpairedLogProbs,
)
from veritune.objectives.card import Card

_NUM_EXAMPLES = 6
_NUM_COLUMNS = {"demonstration": 1, "paired": 2, "sampled": 6, "scored": 3, "unpaired": 1}
_EXTREMES = (-1e4, -90.0, -1.0, 0.0, 1.0, 90.0, 1e4)
_MOST_EXTREME_ROWS = 2000


@dataclass(frozen=True)
class Tables:
    """What an objective is fed from: a row for each example, a column for each completion.

    For sampled data a column is a token.
    """

    policy: Float[Tensor, "B columns"]
    reference: Float[Tensor, "B columns"] | None
    behavior: Float[Tensor, "B columns"]
    mismatched_log_ratio: float = 0.3
    mean_log_ratio: float = 0.2
    advantage: float = 0.5
    common_share: float = 0.6
    """Part of a rejected completion's log-probability that lies within the length of the chosen
    one, which is the shorter."""

    def rows(self, which: slice | Tensor) -> "Tables":
        """These examples only, or in another order."""
        reference = None if self.reference is None else self.reference[which]
        return dataclasses.replace(
            self, policy=self.policy[which], reference=reference, behavior=self.behavior[which]
        )

    def to(self, dtype: torch.dtype) -> "Tables":
        """The same numbers in another type."""
        reference = None if self.reference is None else self.reference.to(dtype)
        return dataclasses.replace(
            self,
            policy=self.policy.to(dtype),
            reference=reference,
            behavior=self.behavior.to(dtype),
        )


@dataclass(frozen=True)
class Trial:
    """An objective with its hyper-parameters, fed from plain tables instead of from a model."""

    card: Card
    hyperparameters: Mapping[str, float]

    def tables(self) -> Tables:
        """Six examples in float64, policy and behavior within half a nat of the reference, where
        every objective is defined."""
        generator = torch.Generator().manual_seed(0)
        shape = (_NUM_EXAMPLES, _NUM_COLUMNS[self.card.kind])
        reference = -10 + torch.randn(shape, generator=generator, dtype=torch.float64)
        near = [torch.rand(shape, generator=generator).double() - 0.5 for _ in range(2)]
        return Tables(reference + near[0], reference, reference + 0.3 * near[1])

    def loss(self, tables: Tables) -> Tensor:
        """Loss of each row."""
        return self.card.loss(self.data(tables), **self.hyperparameters)

    def data(self, tables: Tables) -> LogProbs:
        """The objective's form of data.

        Labels alternate and the counts of the global batch are those of a larger one; every second
        group lacks its last completion.
        """
        kind, policy, reference = self.card.kind, tables.policy, tables.reference
        is_even = torch.arange(len(policy)) % 2 == 0
        mean = policy.new_tensor(tables.mean_log_ratio)
        if kind == "demonstration":
            return DemonstrationLogProbs(_column(tables, 0))
        if kind == "paired":
            chosen = _with_common_length(_column(tables, 0), 1.0)
            rejected = _with_common_length(_column(tables, 1), tables.common_share)
            return PairedLogProbs(chosen, rejected, mean_log_ratio=mean)
        if kind == "unpaired":
            return UnpairedLogProbs(
                completion=_column(tables, 0),
                desirable=is_even,
                num_desirable=39,
                num_undesirable=61,
                mismatched_log_ratio=policy.new_tensor(tables.mismatched_log_ratio),
                mean_log_ratio=mean,
            )
        present = torch.ones(len(policy), 3, dtype=torch.bool)
        present[~is_even, -1] = False
        row = policy.new_tensor([0.7, -1.1, 0.4])
        scores = (row.roll(1) + torch.outer(is_even.to(row), row)).where(present, 0)
        if kind == "scored":
            length = torch.full_like(present, 5, dtype=torch.long)
            return ScoredLogProbs(CompletionLogProbs(policy, length, reference), scores, present)
        return _sampled(tables, scores, present)


def _column(tables: Tables, column: int) -> CompletionLogProbs:
    return CompletionLogProbs(
        policy=tables.policy[:, column],
        length=torch.full((len(tables.policy),), 5 + 2 * column),
        reference=None if tables.reference is None else tables.reference[:, column],
    )


def _with_common_length(completion: CompletionLogProbs, share: float) -> CompletionLogProbs:
    reference = completion.reference
    return dataclasses.replace(
        completion,
        policy_common=share * completion.policy,
        reference_common=None if reference is None else share * reference,
    )


def _sampled(tables: Tables, rewards: Tensor, present: Tensor) -> SampledLogProbs:
    """Three completions of two tokens, the second of them of one."""
    shape = (len(tables.policy), 3, 2)
    bears_loss = present[..., None].repeat(1, 1, 2)
    bears_loss[:, 1, 1] = False
    signs = tables.policy.new_tensor([[1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]])
    return SampledLogProbs(
        policy=tables.policy.view(shape),
        behavior=tables.behavior.view(shape),
        bears_loss=bears_loss,
        rewards=rewards,
        reference=None if tables.reference is None else tables.reference.view(shape),
        advantages=(tables.advantage * signs).expand(shape),
    )


@dataclass(frozen=True)
class Law:
    """Something that every objective must satisfy."""

    breaches: Callable[[Trial], Iterator[str]]
    """What is wrong, once for each thing found; nothing where the law holds."""

    remedy: str = ""
    """What to do where it is broken, for a law without which training is meaningless and not only
    less exact; empty for the others."""

    @property
    def is_essential(self) -> bool:
        """Whether training is refused where it is broken."""
        return bool(self.remedy)

    @property
    def name(self) -> str:
        """The law as a sentence."""
        return self.breaches.__name__.replace("_", " ")


def breaches(card: Card, hyperparameters: Mapping[str, float]) -> Iterator[tuple[Law, str]]:
    """Every law that an objective breaks, and what was found.

    An objective that breaks an essential law is not looked at further: the others presuppose it.
    """
    trial = Trial(card, hyperparameters)
    for law in LAWS:
        found = list(law.breaches(trial))
        yield from ((law, what) for what in found)
        if found and law.is_essential:
            return


def every_example_has_one_loss_in_the_dtype_of_the_data(trial: Trial) -> Iterator[str]:
    """Shape (B,), float32 for float32 data; none for none."""
    for dtype in (torch.float32, torch.float64):
        tables = trial.tables().to(dtype)
        for batch in (tables, tables.rows(slice(0))):
            loss, wanted = trial.loss(batch), (len(batch.policy),)
            if loss.shape != wanted:
                yield f"the shape is {tuple(loss.shape)} for {wanted[0]} examples"
            elif loss.dtype != dtype:
                yield f"the loss of {dtype} data is {loss.dtype}"


def every_example_has_a_gradient(trial: Trial) -> Iterator[str]:
    """Near the reference the loss of every example depends on the policy, and autograd sees it."""
    if not trial.loss(_with_gradient(trial.tables())).requires_grad:
        yield "autograd finds no way from the loss back to the policy"
    elif (_influence(trial, trial.tables()).diagonal() == 0).any():
        yield "the gradient of an example near the reference is zero"


def _with_gradient(tables: Tables) -> Tables:
    return dataclasses.replace(tables, policy=tables.policy.clone().requires_grad_())


def _influence(trial: Trial, tables: Tables) -> Float[Tensor, "B B"]:
    """Size of the gradient of each example's loss (row) at each example (column)."""
    jacobian = torch.autograd.functional.jacobian(  # type: ignore[no-untyped-call]
        lambda policy: trial.loss(dataclasses.replace(tables, policy=policy)), tables.policy
    )
    assert isinstance(jacobian, Tensor), "one input has one Jacobian"
    return jacobian.abs().sum(dim=-1)


def examples_do_not_influence_each_other(trial: Trial) -> Iterator[str]:
    """The gradient of an example's loss is zero at every other example."""
    tables = trial.tables()
    influence = _influence(trial, tables)
    if (influence - torch.diag(influence.diagonal()) != 0).any():
        yield "the loss of an example depends on the policy at another"
    alone, among = trial.loss(tables.rows(slice(1))), trial.loss(tables)[:1]
    if not torch.allclose(alone, among, rtol=1e-12, atol=1e-12):
        yield f"an example has loss {alone.item():.9g} alone and {among.item():.9g} among others"


def permuting_examples_permutes_losses(trial: Trial) -> Iterator[str]:
    """The place in the batch does not matter."""
    # Even with even: the tables give every second example another label.
    order = torch.tensor([4, 5, 0, 3, 2, 1])
    tables = trial.tables()
    if not torch.equal(trial.loss(tables.rows(order)), trial.loss(tables)[order]):
        yield "examples in another order have other losses"


def the_gradient_equals_finite_differences(trial: Trial) -> Iterator[str]:
    """Near the reference, and up to six nats from it where the loss is finite."""
    tables = trial.tables()
    points = [("near the reference", tables.policy, 1e-7)]
    if trial.card.finite_everywhere and tables.reference is not None:
        # The tangents of the catalog begin below 4.4 nats, and at 10 nats for ratios.
        steps = torch.linspace(-6, 6, tables.policy.numel(), dtype=torch.float64)
        away = tables.reference + steps.view_as(tables.policy)
        points.append(("up to 6 nats from the reference", away, 1e-5))
    for where, policy, tolerance in points:
        start = policy.clone().requires_grad_()

        def loss(given: Tensor) -> Tensor:
            return trial.loss(dataclasses.replace(tables, policy=given))

        try:
            torch.autograd.gradcheck(loss, start, eps=1e-6, atol=tolerance)
        except GradcheckError as error:
            yield f"{where}: {' '.join(str(error).split())[:300]}"


def loss_and_gradient_are_finite_at_extreme_log_ratios(trial: Trial) -> Iterator[str]:
    """Up to 10,000 nats from the reference, in float32 and float64.

    An objective whose card says that it is not finite everywhere may be infinite, but not NaN, and
    its gradient is finite all the same.
    """
    num_columns = _NUM_COLUMNS[trial.card.kind]
    every = list(itertools.product(_EXTREMES, repeat=num_columns))
    # A stride that is no power of 7 meets every combination of neighboring columns.
    rows = every[:: max(1, len(every) // _MOST_EXTREME_ROWS + 1)]
    for dtype in (torch.float32, torch.float64):
        # Each combination twice, so that it meets both labels, and groups with and without a gap.
        log_ratio = torch.tensor(rows, dtype=dtype).repeat_interleave(2, dim=0)
        reference = torch.full_like(log_ratio, -2e4)
        policy = (reference + log_ratio).requires_grad_()
        loss = trial.loss(Tables(policy, reference, reference))
        (gradient,) = torch.autograd.grad(loss.sum(), policy)
        for what, values in (("loss", loss), ("gradient", gradient)):
            may_be_infinite = what == "loss" and not trial.card.finite_everywhere
            bad = values.isnan() if may_be_infinite else ~values.isfinite()
            if bad.any():
                row = int(bad.view(len(rows) * 2, -1).any(dim=1).nonzero()[0])
                nats = ", ".join(f"{value:g}" for value in log_ratio[row].tolist())
                yield f"the {what} is {values[row].tolist()} at log-ratios of {nats} nats ({dtype})"
        if not trial.card.finite_everywhere and loss.isfinite().all():
            yield "the card says that the loss is not finite everywhere, and it is"


def facts_of_the_batch_of_any_size_keep_the_loss_finite(trial: Trial) -> Iterator[str]:
    """Baselines of 10,000 nats and advantages of 10,000."""
    for value in _EXTREMES:
        tables = dataclasses.replace(
            trial.tables(), mismatched_log_ratio=value, mean_log_ratio=value, advantage=value
        )
        if not trial.loss(tables).isfinite().all():
            yield f"the loss is not finite where a baseline is {value:g}"


def float32_agrees_with_float64(trial: Trial) -> Iterator[str]:
    """To four digits at ordinary log-probabilities, in the loss and in its gradient."""
    found = {}
    for dtype in (torch.float64, torch.float32):
        tables = _with_gradient(trial.tables().to(dtype))
        loss = trial.loss(tables)
        (gradient,) = torch.autograd.grad(loss.sum(), tables.policy)
        found[dtype] = (loss.detach().double(), gradient.double())
    for what, double, single in zip(("loss", "gradient"), *found.values(), strict=True):
        if not torch.allclose(single, double, rtol=1e-4, atol=1e-5):
            yield f"the largest difference of the {what} is {(single - double).abs().max():.3g}"


def what_is_read(trial: Trial) -> dict[str, bool]:
    """Whether the loss depends on the reference and on each fact of the batch."""
    tables = trial.tables()
    loss = trial.loss(tables)
    assert tables.reference is not None, "a trial has a reference"
    # A tenth of a nat for the first completion of each example stays inside every domain.
    elsewhere = tables.reference.clone()
    elsewhere[:, 0] += 0.1
    changed = {
        "reference": dataclasses.replace(tables, reference=elsewhere),
        "mismatched_log_ratio": dataclasses.replace(tables, mismatched_log_ratio=0.9),
        "mean_log_ratio": dataclasses.replace(tables, mean_log_ratio=0.9),
        "common length": dataclasses.replace(tables, common_share=0.8),
        "advantages": dataclasses.replace(tables, advantage=0.9),
    }
    return {what: not torch.equal(trial.loss(other), loss) for what, other in changed.items()}


def the_card_says_what_is_read(trial: Trial) -> Iterator[str]:
    """The reference and each fact of the batch are read exactly if the card says so."""
    card = trial.card
    declared = {
        "reference": card.needs_reference,
        "mismatched_log_ratio": card.needs_mismatched,
        "mean_log_ratio": card.needs_mean_log_ratio,
        "common length": card.needs_common_length,
        "advantages": card.needs_advantages,
    }
    for what, is_read in what_is_read(trial).items():
        if declared[what] and not is_read:
            yield f"the card declares the {what}, and the loss does not depend on it"
        if is_read and not declared[what]:
            yield f"the loss depends on the {what}, which the card does not declare"
    tables = trial.tables()
    without = dataclasses.replace(tables, reference=None)
    if not card.needs_reference and not torch.equal(trial.loss(without), trial.loss(tables)):
        yield "the loss is another without a reference"


def the_initial_loss_is_the_loss_of_the_reference(trial: Trial) -> Iterator[str]:
    """And it reads no log-probability of the policy."""
    initial_loss = trial.card.initial_loss
    if initial_loss is None:
        return
    for dtype in (torch.float32, torch.float64):
        tables = trial.tables().to(dtype)
        assert tables.reference is not None, "a trial has a reference"
        start = dataclasses.replace(
            tables, policy=tables.reference, mismatched_log_ratio=0.0, mean_log_ratio=0.0
        )
        # A policy that is not a number shows that the closed form does not read it.
        blank = dataclasses.replace(
            start, policy=torch.full_like(tables.policy, torch.nan), mismatched_log_ratio=torch.nan
        )
        found, loss = initial_loss(trial.data(blank), **trial.hyperparameters), trial.loss(start)
        tolerance = 1e-12 if dtype == torch.float64 else 1e-4
        if found.dtype != dtype or found.shape != loss.shape:
            yield f"it is {tuple(found.shape)} {found.dtype}, the loss {tuple(loss.shape)} {dtype}"
        elif not torch.allclose(found, loss, rtol=tolerance, atol=tolerance):
            yield f"it is {found.tolist()}, the loss {loss.tolist()}"


LAWS = (
    Law(
        every_example_has_one_loss_in_the_dtype_of_the_data,
        "return one loss per example, not their mean, in the type of the log-probabilities",
    ),
    Law(
        every_example_has_a_gradient,
        "let the loss depend on the policy's log-probabilities without .detach() or .item()",
    ),
    Law(
        examples_do_not_influence_each_other,
        "return one loss per example, from that example alone: a batch is cut into pieces",
    ),
    Law(
        permuting_examples_permutes_losses,
        "return one loss per example, from that example alone: a batch is cut into pieces",
    ),
    Law(the_card_says_what_is_read, "declare on the card what the function reads"),
    Law(loss_and_gradient_are_finite_at_extreme_log_ratios),
    Law(facts_of_the_batch_of_any_size_keep_the_loss_finite),
    Law(the_gradient_equals_finite_differences),
    Law(float32_agrees_with_float64),
    Law(the_initial_loss_is_the_loss_of_the_reference),
)
"""Every law, those that the others presuppose first."""
