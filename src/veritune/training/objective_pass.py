"""Batch to loss to gradient: the one place where losses are averaged.

A global batch is the records of one optimizer step over all ranks. How it is cut into rows and
ranks is a matter of memory and speed and changes nothing but rounding: every loss is divided by a
count of the global batch, once, and whatever an objective needs to know about other examples is
taken from the global batch before the first backward pass.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from veritune import distributed
from veritune.batches.batch import Batch, moved
from veritune.batches.loader import GlobalBatch
from veritune.batches.pack import rows_by_budget
from veritune.logprobs import CompletionLogProbs, LogProbs, detached
from veritune.models.forward import CausalModel, common_length_mask, sum_by_completion
from veritune.models.reference import ReferenceLogProbs, noise_tolerance
from veritune.objectives.card import Card
from veritune.tokens.dataset import TokenizedDataset
from veritune.tokens.encode import TokenizedRecord
from veritune.tokens.truncate import cut_prompt
from veritune.training.forms import GlobalFacts, assemble
from veritune.training.metrics import MetricSums, finish
from veritune.training.running import RunningLogRatio, class_totals

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Objective:
    """A card with its hyper-parameters."""

    card: Card
    hyperparameters: dict[str, float]

    def loss(self, data: object) -> Tensor:
        """Loss of each example, shape (B,), not reduced."""
        return self.card.loss(data, **self.hyperparameters)

    @property
    def reward_scale(self) -> float:
        """What a log-ratio is multiplied by in the logged rewards."""
        name = self.card.reward_scale
        return 1.0 if name is None else float(self.hyperparameters[name])


@dataclass(frozen=True)
class PassResult:
    """What one pass over a global batch gives; the same on every rank."""

    loss: float
    """Mean over the global batch."""

    losses: Tensor
    """Loss of each example of the batch, in its order, float64."""

    metrics: dict[str, float]
    num_tokens: int
    """Tokens of prompts (once) and completions that were computed."""

    fill: float
    """Share of them that is data and not padding."""

    class_totals: Tensor
    """Sums and counts of log-ratios by class, (2, 2) float64; zero where no objective asks."""

    largest_log_ratio: float
    """Largest |log-ratio| of a completion over its rounding tolerance, and nan-safe; 0 without a
    reference."""


@dataclass(frozen=True)
class PreparedRow:
    """One forward and backward pass: groups laid into a row, and what the reference says."""

    places: tuple[int, ...]
    """Which records of the global batch its groups are."""

    batch: Batch
    reference: Float[Tensor, " S"] | None
    """Reference log-probability of each completion, float64; None for an objective without."""

    reference_common: Float[Tensor, " S"] | None
    """The same over the common length of a pair; None where the objective needs none."""

    @cached_property
    def lengths(self) -> Int[Tensor, " S"]:
        """Loss-bearing tokens of each completion."""
        return torch.bincount(self.batch.completion, minlength=self.batch.num_completions)


@dataclass(frozen=True)
class PreparedBatch:
    """A global batch, and the rows of this rank's share of it."""

    batch: GlobalBatch
    rows: tuple[PreparedRow, ...]

    @property
    def indices(self) -> tuple[int, ...]:
        """The records of the global batch."""
        return self.batch.indices


class _Known(NamedTuple):
    """A row's targets and completions, moved to the device at once: a copy makes it wait."""

    targets: Tensor
    owner: Tensor
    """Which completion each target belongs to."""

    lengths: Tensor
    reference: Tensor | None
    reference_common: Tensor | None
    is_common: Tensor | None
    """Which targets lie within the common length of their pair, for objectives that ask."""

    @classmethod
    def of(cls, row: PreparedRow, device: torch.device, card: Card) -> "_Known":
        """What is known of a row."""
        is_common = common_length_mask(row.lengths) if card.needs_common_length else None
        sums = (row.reference, row.reference_common, is_common)
        return cls(
            moved(row.batch.targets, device),
            moved(row.batch.completion, device),
            moved(row.lengths, device),
            *(None if value is None else moved(value, device) for value in sums),
        )


class _Part(NamedTuple):
    """Some groups of a row, next to each other."""

    groups: slice
    completions: slice
    targets: slice


class _Outcome(NamedTuple):
    """What came of a part of a row, without gradient."""

    places: tuple[int, ...]
    losses: Tensor
    data: LogProbs
    completion: CompletionLogProbs


class ObjectivePass:
    """Losses of global batches under one objective, with or without gradient.

    Args:
        model: The policy.
        objective: Card and hyper-parameters.
        dataset: Groups of the objective's kind.
        reference: Log-probabilities of the reference; None if the objective needs none.
        tokens_per_row: Token budget of a row, which is one forward and backward pass.
        running: Mean log-ratio of earlier steps; shared by training and held-out passes.
    """

    def __init__(
        self,
        model: CausalModel,
        objective: Objective,
        dataset: TokenizedDataset,
        reference: ReferenceLogProbs | None,
        tokens_per_row: int,
        running: RunningLogRatio | None = None,
    ) -> None:
        self.model = model
        self.objective = objective
        self.dataset = dataset
        self.reference = reference
        self.tokens_per_row = tokens_per_row
        self.running = RunningLogRatio() if running is None else running

    def on(self, dataset: TokenizedDataset) -> "ObjectivePass":
        """The same model, objective, reference and running mean, over other records."""
        return ObjectivePass(
            self.model,
            self.objective,
            dataset,
            self.reference,
            self.tokens_per_row,
            self.running,
        )

    def prepare(self, batch: GlobalBatch) -> PreparedBatch:
        """Rows of this rank's share of a global batch, and what the reference says of them.

        Nothing here needs the model's weights, so it can be done while an earlier step computes.
        """
        return PreparedBatch(batch, tuple(self._prepared_rows(batch)))

    def _prepared_rows(self, batch: GlobalBatch) -> Iterator[PreparedRow]:
        groups = {
            place: self.dataset[batch.indices[place]] for place in self._places(batch.indices)
        }
        for places in self._rows(groups):
            members = [groups[place] for place in places]
            yield PreparedRow(
                tuple(places),
                self.model.batch(members, [batch.indices[place] for place in places]),
                self.reference_sums(members),
                self.reference_common_sums(members),
            )

    def run(self, batch: GlobalBatch | PreparedBatch, *, backward: bool = False) -> PassResult:
        """One pass over a global batch; with `backward`, gradients are added to the parameters.

        Gradients are this rank's share; their sum over ranks is the gradient of the mean loss. Rows
        of a batch that is not prepared are laid out one by one.
        """
        rows: Iterable[PreparedRow]
        if isinstance(batch, PreparedBatch):
            whole, rows = batch.batch, batch.rows
        else:
            whole, rows = batch, self._prepared_rows(batch)
        with torch.set_grad_enabled(backward):
            return self._run(whole, rows, backward)

    def _run(self, batch: GlobalBatch, rows: Iterable[PreparedRow], backward: bool) -> PassResult:
        card = self.objective.card
        facts = self._facts(batch, self._places(batch.indices))
        normalizer = facts.num_examples if card.normalizer == "examples" else facts.num_tokens
        # What is measured stays on the device until the last row is done: a look at a value would
        # make the device wait for it.
        seen: list[_Outcome] = []
        tokens = torch.zeros(2, dtype=torch.float64)
        for row in rows:
            tokens += torch.tensor([row.batch.num_tokens, row.batch.num_data_tokens])
            seen.extend(self._outcomes(row, batch, facts, normalizer, backward))
            if row.batch.plan is not None:
                # The rows of a batch live until its end, and what layers made for one need not.
                row.batch.plan.masks.clear()
        losses = torch.zeros(len(batch.indices), dtype=torch.float64)
        sums = MetricSums(card.data, self.objective.reward_scale)
        totals = torch.zeros(2, 2, dtype=torch.float64)
        largest = torch.zeros((), dtype=torch.float64)
        for outcome in seen:
            losses[list(outcome.places)] = outcome.losses.cpu().double()
            data = detached(outcome.data, _CPU)
            sums.add(data)
            if card.needs_mean_log_ratio:
                totals += class_totals(data)
            completion = detached(outcome.completion, _CPU)
            if completion.reference is not None:
                tolerance = completion.length.double().sqrt() * noise_tolerance(self.model, 1)
                # `max` of Python would lose a nan.
                largest = torch.maximum(largest, (completion.log_ratio.abs() / tolerance).max())
        return self._reduced(losses, sums, totals, tokens, largest, normalizer)

    def _outcomes(
        self,
        row: PreparedRow,
        batch: GlobalBatch,
        facts: GlobalFacts,
        normalizer: int,
        backward: bool,
    ) -> Iterator[_Outcome]:
        """Losses of a row, and with `backward` their gradients, a few groups at a time.

        The layers see the whole row at once. The head sees as many groups as may keep their logits
        for the backward pass, so the logits of a row never exist together and none is computed
        twice; that is possible because a loss reads nothing of other examples but `facts`.
        """
        states = self.model.predicting_states(row.batch)
        keeps_gradient = backward and states.requires_grad
        gradient = torch.empty_like(states) if keeps_gradient else None
        known = _Known.of(row, states.device, self.objective.card)
        for part in _parts(row, self.model.targets_at_once if backward else None):
            leaf = states[part.targets].detach().requires_grad_(keeps_gradient)
            completion = self._completions(leaf, known, part)
            places = row.places[part.groups]
            indices = [batch.indices[place] for place in places]
            data = assemble(self.dataset, indices, completion, facts)
            loss = self.objective.loss(data)
            if backward:
                (loss.sum() / normalizer).backward()  # type: ignore[no-untyped-call]
            if gradient is not None:
                assert leaf.grad is not None, "a loss depends on the states"
                gradient[part.targets] = leaf.grad
            yield _Outcome(
                places,
                loss.detach(),
                detached(data, leaf.device),
                detached(completion, leaf.device),
            )
        if gradient is not None:
            states.backward(gradient)  # type: ignore[no-untyped-call]

    def _reduced(
        self,
        losses: Tensor,
        sums: MetricSums,
        totals: Tensor,
        tokens: Tensor,
        largest: Tensor,
        normalizer: int,
    ) -> PassResult:
        """One sum over ranks for everything that is logged."""
        ratios = torch.zeros(distributed.world_size(), dtype=torch.float64)
        ratios[distributed.rank()] = largest
        sections = [losses, sums.totals.flatten(), totals.flatten(), tokens, ratios]
        flat = torch.cat(sections)
        flat = distributed.global_sum(flat.to(self.model.device)).cpu()
        parts = torch.split(flat, [len(section) for section in sections])
        return PassResult(
            loss=float(parts[0].sum() / normalizer),
            losses=parts[0],
            metrics=finish(sums.metrics, parts[1].view(2, -1)),
            class_totals=parts[2].view(2, 2),
            num_tokens=int(parts[3][0]),
            fill=float(parts[3][1] / parts[3][0]),
            largest_log_ratio=float(parts[4].max()),
        )

    def _rows(self, groups: dict[int, TokenizedRecord]) -> list[list[int]]:
        places = list(groups)
        sizes = [self.model.row_tokens(groups[place]) for place in places]
        return [[places[i] for i in row] for row in rows_by_budget(sizes, self.tokens_per_row)]

    def _completions(self, states: Tensor, known: _Known, part: _Part) -> CompletionLogProbs:
        """What policy and reference say of some completions of a row, shape (S,)."""
        tokens = self.model.target_logprobs(states, known.targets[part.targets])
        owner = known.owner[part.targets] - part.completions.start
        lengths = known.lengths[part.completions]

        def some(sums: Tensor | None) -> Tensor | None:
            return None if sums is None else sums[part.completions]

        completion = CompletionLogProbs(
            sum_by_completion(tokens, owner, len(lengths)), lengths, some(known.reference)
        )
        if known.is_common is None:
            return completion
        within = torch.where(known.is_common[part.targets], tokens, 0)
        return replace(
            completion,
            policy_common=sum_by_completion(within, owner, len(lengths)),
            reference_common=some(known.reference_common),
        )

    def reference_sums(self, groups: Sequence[TokenizedRecord]) -> Float[Tensor, " S"] | None:
        """What the reference gives each completion, float64; None for an objective without."""
        if self.reference is None:
            return None
        return self.reference.sums(groups)

    def reference_common_sums(
        self, groups: Sequence[TokenizedRecord]
    ) -> Float[Tensor, " S"] | None:
        """The same over the common length of a pair; None where the objective needs none."""
        if self.reference is None or not self.objective.card.needs_common_length:
            return None
        return self.reference.common_sums(groups)

    def _places(self, indices: Sequence[int]) -> range:
        """Which records of a global batch are this rank's."""
        return range(distributed.rank(), len(indices), distributed.world_size())

    def _facts(self, batch: GlobalBatch, places: range) -> GlobalFacts:
        indices = list(batch.indices)
        num_tokens = 0
        if self.objective.card.normalizer == "tokens":
            num_tokens = sum(
                int(c.bears_loss.sum()) for i in indices for c in self.dataset[i].completions
            )
        baseline = self._mismatched(batch, places) if self.objective.card.needs_mismatched else None
        return GlobalFacts(
            num_examples=len(indices),
            num_tokens=num_tokens,
            num_desirable=self.num_desirable(batch),
            mismatched_log_ratio=baseline,
            mean_log_ratio=self._mean_log_ratio(),
        )

    def _mean_log_ratio(self) -> Tensor | None:
        if not self.objective.card.needs_mean_log_ratio:
            return None
        return torch.tensor(self.running.mean, device=self.model.device)

    def num_desirable(self, batch: GlobalBatch) -> int:
        """Desirable examples of a global batch; 0 for data without labels."""
        if self.dataset.kind != "unpaired":
            return 0
        return int(self.dataset.desirable[list(batch.indices)].sum())

    @torch.no_grad()
    def _mismatched(self, batch: GlobalBatch, places: range) -> Tensor:
        """Mean log-ratio over the global batch of completions under prompts of other records."""
        groups = {
            place: mismatched_group(self.dataset, batch.indices[place], partner)
            for place in places
            if (partner := batch.mismatched[place]) is not None
        }
        total = torch.zeros(2, dtype=torch.float64, device=self.model.device)
        for row in self._rows(groups):
            members = [groups[place] for place in row]
            policy, _, _ = self.model.completion_logprobs(self.model.batch(members, row))
            reference = self.reference_sums(members)
            assert reference is not None, "a baseline of log-ratios has a reference"
            log_ratio = policy.double() - reference.to(policy.device)
            total += torch.stack([log_ratio.sum(), log_ratio.new_tensor(len(row))])
        total = distributed.global_sum(total)
        return total[0] / total[1].clamp(min=1)


def _parts(row: PreparedRow, most_targets: int | None) -> Iterator[_Part]:
    """Groups of a row, as many at a time as have no more targets than this; at least one."""
    ends = np.cumsum([0, *row.batch.group_sizes])
    targets = np.cumsum([0, *row.lengths.tolist()])[ends]
    first = 0
    for last in range(1, len(ends)):
        is_end = last == len(ends) - 1
        if is_end or (
            most_targets is not None and targets[last + 1] - targets[first] > most_targets
        ):
            yield _Part(
                slice(first, last),
                slice(int(ends[first]), int(ends[last])),
                slice(int(targets[first]), int(targets[last])),
            )
            first = last


def mismatched_group(dataset: TokenizedDataset, index: int, partner: int) -> TokenizedRecord:
    """The prompt of one record with the completion of another.

    Each fits its own partner, not every other: the prompt is cut at its beginning so that both are
    within the length of the data set.
    """
    own, other = dataset[index], dataset[partner]
    room = dataset.max_length - max(len(c.ids) for c in other.completions)
    prompt = cut_prompt(own.prompt, room, bos=dataset.bos)
    return TokenizedRecord(prompt, other.completions, own.origin)
