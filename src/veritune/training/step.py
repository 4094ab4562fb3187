"""Batch to loss to gradient to update; the one place where losses are averaged.

A global batch is the records of one optimizer step over all ranks. How it is cut into rows and
ranks is a matter of memory and speed and changes nothing but rounding: every loss is divided by a
count of the global batch, once, and whatever an objective needs to know about other examples is
taken from the global batch before the first backward pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from veritune import distributed, seeds
from veritune.batches.batch import Batch
from veritune.batches.loader import GlobalBatch
from veritune.batches.pack import rows_by_budget
from veritune.errors import NonFiniteLossError, StepZeroError
from veritune.logprobs import CompletionLogProbs
from veritune.models.forward import CausalModel, common_length_mask, sum_by_completion
from veritune.models.reference import ReferenceLogProbs, noise_tolerance
from veritune.objectives.card import Card
from veritune.tokens.dataset import TokenizedDataset
from veritune.tokens.encode import TokenizedRecord
from veritune.tokens.truncate import cut_prompt
from veritune.training.forms import GlobalFacts, assemble
from veritune.training.metrics import MetricSums, finish
from veritune.training.optimizer import OptimizerConfig, learning_rate_at
from veritune.training.running import RunningLogRatio, class_totals

_MAX_NAMED_RECORDS = 8


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

    class_totals: Tensor
    """Sums and counts of log-ratios by class, (2, 2) float64; zero where no objective asks."""

    largest_log_ratio: float
    """Largest |log-ratio| of a completion over its rounding tolerance, and nan-safe; 0 without a
    reference."""


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

    def run(self, batch: GlobalBatch, *, backward: bool = False) -> PassResult:
        """One pass over a global batch; with `backward`, gradients are added to the parameters.

        Gradients are this rank's share; their sum over ranks is the gradient of the mean loss.
        """
        with torch.set_grad_enabled(backward):
            return self._run(batch, backward)

    def _run(self, batch: GlobalBatch, backward: bool) -> PassResult:
        card = self.objective.card
        places = range(distributed.rank(), len(batch.indices), distributed.world_size())
        facts = self._facts(batch, places)
        normalizer = facts.num_examples if card.normalizer == "examples" else facts.num_tokens
        losses = torch.zeros(len(batch.indices), dtype=torch.float64)
        sums = MetricSums(card.data, self.objective.reward_scale)
        totals = torch.zeros(2, 2, dtype=torch.float64)
        extent = torch.zeros(2, dtype=torch.float64)
        groups = {place: self.dataset[batch.indices[place]] for place in places}
        for row in self._rows(groups):
            indices = [batch.indices[place] for place in row]
            packed = self.model.batch([groups[place] for place in row], indices)
            completion = self._completions(packed, [groups[place] for place in row])
            data = assemble(self.dataset, indices, completion, facts)
            loss = self.objective.loss(data)
            if backward:
                (loss.sum() / normalizer).backward()  # type: ignore[no-untyped-call]
            losses[row] = loss.detach().double().cpu()
            sums.add(data)
            if card.needs_mean_log_ratio:
                totals += class_totals(data)
            extent[0] += packed.num_tokens
            if completion.reference is not None:
                ratio = completion.log_ratio.detach().abs()
                tolerance = completion.length.double().sqrt() * noise_tolerance(self.model, 1)
                # `max` of Python would lose a nan.
                extent[1] = torch.maximum(extent[1], (ratio / tolerance).max().cpu())
        return self._reduced(losses, sums, totals, extent, normalizer)

    def _reduced(
        self,
        losses: Tensor,
        sums: MetricSums,
        totals: Tensor,
        extent: Tensor,
        normalizer: int,
    ) -> PassResult:
        """One sum over ranks for everything that is logged."""
        ratios = torch.zeros(distributed.world_size(), dtype=torch.float64)
        ratios[distributed.rank()] = extent[1]
        sections = [losses, sums.totals.flatten(), totals.flatten(), extent[:1], ratios]
        flat = torch.cat(sections)
        flat = distributed.global_sum(flat.to(self.model.device)).cpu()
        parts = torch.split(flat, [len(section) for section in sections])
        return PassResult(
            loss=float(parts[0].sum() / normalizer),
            losses=parts[0],
            metrics=finish(sums.metrics, parts[1].view(2, -1)),
            class_totals=parts[2].view(2, 2),
            num_tokens=int(parts[3]),
            largest_log_ratio=float(parts[4].max()),
        )

    def _rows(self, groups: dict[int, TokenizedRecord]) -> list[list[int]]:
        places = list(groups)
        sizes = [self.model.row_tokens(groups[place]) for place in places]
        return [[places[i] for i in row] for row in rows_by_budget(sizes, self.tokens_per_row)]

    def _completions(self, packed: Batch, groups: Sequence[TokenizedRecord]) -> CompletionLogProbs:
        """What policy and reference say of the completions of a row, shape (S,)."""
        policy, lengths, tokens = self.model.completion_logprobs(packed)
        completion = CompletionLogProbs(
            policy, lengths, self._reference_sums(groups, policy.device)
        )
        if not self.objective.card.needs_common_length:
            return completion
        within = torch.where(common_length_mask(lengths), tokens, 0)
        owner = packed.completion.to(tokens.device)
        return replace(
            completion,
            policy_common=sum_by_completion(within, owner, packed.num_completions),
            reference_common=self._reference_common_sums(groups, policy.device),
        )

    def _reference_sums(
        self, groups: Sequence[TokenizedRecord], device: torch.device
    ) -> Tensor | None:
        if self.reference is None:
            return None
        return torch.cat([self.reference.sums(group) for group in groups]).to(device)

    def _reference_common_sums(
        self, groups: Sequence[TokenizedRecord], device: torch.device
    ) -> Tensor | None:
        if self.reference is None or not self.objective.card.needs_common_length:
            return None
        return torch.cat([self.reference.common_sums(group) for group in groups]).to(device)

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
        total = torch.zeros(2, dtype=torch.float64)
        for row in self._rows(groups):
            members = [groups[place] for place in row]
            policy, _, _ = self.model.completion_logprobs(self.model.batch(members, row))
            reference = self._reference_sums(members, policy.device)
            assert reference is not None, "a baseline of log-ratios has a reference"
            total += torch.tensor([(policy - reference).double().sum().item(), len(row)])
        total = distributed.global_sum(total.to(self.model.device)).cpu()
        return (total[0] / total[1].clamp(min=1)).to(self.model.device)


def mismatched_group(dataset: TokenizedDataset, index: int, partner: int) -> TokenizedRecord:
    """The prompt of one record with the completion of another.

    Each fits its own partner, not every other: the prompt is cut at its beginning so that both are
    within the length of the data set.
    """
    own, other = dataset[index], dataset[partner]
    room = dataset.max_length - max(len(c.ids) for c in other.completions)
    prompt = cut_prompt(own.prompt, room, bos=dataset.bos)
    return TokenizedRecord(prompt, other.completions, own.origin)


def assert_step_zero(
    objective_pass: ObjectivePass, batch: GlobalBatch, *, reference_is_policy: bool
) -> dict[str, float]:
    """Verify, before the first update, what must hold where policy and reference are one model.

    Every log-ratio is zero within rounding, and the loss is the value that the objective's card
    states there. Nothing is verified that does not follow (another reference, an objective without
    one).

    Returns:
        What was found and the tolerances, for the header of the run.

    Raises:
        StepZeroError: Something differs.
    """
    card = objective_pass.objective.card
    if not reference_is_policy or objective_pass.reference is None:
        return {}
    objective_pass.model.hf.eval()
    result = objective_pass.run(batch)
    objective_pass.model.hf.train()
    if not result.largest_log_ratio <= 1:
        raise StepZeroError(
            "policy and reference are the same model, and their log-probabilities differ",
            where="step 0",
            got=f"a log-ratio of {result.largest_log_ratio:.3g} times the rounding tolerance",
            why="the reference was scored by other weights, other text or another path",
            fix="remove the reference cache; if that does not help, report it",
        )
    found = {
        "log_ratio_over_tolerance": result.largest_log_ratio,
        "log_ratio_tolerance_per_root_token": noise_tolerance(objective_pass.model, 1),
        "loss": result.loss,
    }
    if card.initial_loss is None:
        return found
    expected, tolerance = _expected_initial_loss(objective_pass, batch)
    if not abs(result.loss - expected) <= tolerance:
        raise StepZeroError(
            f"the first loss of {card.name} is not the one its card states",
            where="step 0",
            got=f"{result.loss:.6g}, expected {expected:.6g} (tolerance {tolerance:.2g})",
            why="labels, weights or the normalization of the batch are wrong",
            fix="report the settings; training would not follow the objective",
        )
    return {**found, "expected_loss": expected, "loss_tolerance": tolerance}


def _expected_initial_loss(
    objective_pass: ObjectivePass, batch: GlobalBatch
) -> tuple[float, float]:
    """The card's closed form, fed from the reference alone, and how far rounding may move it.

    The tolerance is the loss's own: it is evaluated where every log-ratio is as large as rounding
    can make it, in each of four patterns of signs.
    """
    objective, dataset = objective_pass.objective, objective_pass.dataset
    assert objective.card.initial_loss is not None, "the caller has looked"
    groups = [dataset[index] for index in batch.indices]
    reference = objective_pass._reference_sums(groups, torch.device("cpu"))
    assert reference is not None, "the caller has looked"
    common = objective_pass._reference_common_sums(groups, torch.device("cpu"))
    lengths = torch.tensor([int(c.bears_loss.sum()) for g in groups for c in g.completions])
    noise = lengths.double().sqrt() * noise_tolerance(objective_pass.model, 1)

    def losses(loss: Callable[..., Tensor], policy: Tensor, baseline: Tensor) -> Tensor:
        facts = GlobalFacts(
            len(groups), int(lengths.sum()), objective_pass.num_desirable(batch), baseline, zero
        )
        completion = CompletionLogProbs(policy, lengths, reference)
        if common is not None:
            # The shift of the whole is as much as rounding can move a part.
            completion = replace(
                completion, policy_common=common + (policy - reference), reference_common=common
            )
        data = assemble(dataset, batch.indices, completion, facts)
        return loss(data, **objective.hyperparameters)

    zero = reference.new_zeros(())
    blank = torch.full_like(reference, float("nan"))
    expected = losses(objective.card.initial_loss, blank, zero)
    alternating = torch.ones_like(reference)
    alternating[1::2] = -1
    unmoved = losses(objective.card.loss, reference, zero)
    moved = torch.zeros_like(expected)
    for signs in (torch.ones_like(reference), alternating):
        for sign in (1, -1):
            shifted = losses(
                objective.card.loss, reference + sign * signs * noise, sign * noise.max()
            )
            moved = torch.maximum(moved, (shifted - unmoved).abs())
    normalizer = len(groups) if objective.card.normalizer == "examples" else int(lengths.sum())
    value = float(expected.double().sum() / normalizer)
    slack = 1e-6 * max(1.0, abs(value))
    return value, float(moved.double().sum() / normalizer) + slack


class TrainingStep:
    """One optimizer step: losses, gradients, one sum over ranks, clipping, update.

    Args:
        objective_pass: Gives losses and gradients.
        optimizer: Updates the parameters that require a gradient.
        config: Rate, schedule and clipping.
        total_steps: Steps of the run, for the schedule.
        seed: The run's seed, for dropout where it is on.
    """

    def __init__(
        self,
        objective_pass: ObjectivePass,
        optimizer: torch.optim.Optimizer,
        config: OptimizerConfig,
        total_steps: int,
        seed: int,
    ) -> None:
        self.objective_pass = objective_pass
        self.optimizer = optimizer
        self._config = config
        self._total_steps = total_steps
        self._seed = seed

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that are updated."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def run(self, step: int, batch: GlobalBatch) -> dict[str, float]:
        """Make step number `step` (from 1) and return its line of metrics.

        Raises:
            NonFiniteLossError: Loss or gradient is not finite; nothing was updated.
        """
        # Whatever is random inside a step depends on the step alone, so a resumed run repeats it.
        torch.manual_seed(seeds.stream_seed(self._seed, "step", step, distributed.rank()))
        self.objective_pass.model.hf.train()
        self.optimizer.zero_grad(set_to_none=True)
        result = self.objective_pass.run(batch, backward=True)
        if not torch.isfinite(result.losses).all():
            raise self._non_finite(step, batch, result, "loss")
        distributed.sum_gradients(self.parameters)
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if not torch.isfinite(norm):
            raise self._non_finite(step, batch, result, "gradient")
        nn.utils.clip_grads_with_norm_(self.parameters, self._config.max_gradient_norm, norm)
        rate = learning_rate_at(step, self._total_steps, self._config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.objective_pass.running.add(result.class_totals)
        return {
            "step": step,
            "loss": result.loss,
            "learning_rate": rate,
            "gradient_norm": float(norm),
            "tokens": result.num_tokens,
            **result.metrics,
        }

    def _non_finite(
        self, step: int, batch: GlobalBatch, result: PassResult, what: str
    ) -> NonFiniteLossError:
        """The error that names the records whose loss is not finite, or all where the sum is."""
        bad = torch.nonzero(~torch.isfinite(result.losses)).flatten().tolist()
        places = bad or range(len(batch.indices))
        origins = [str(self.objective_pass.dataset.origins[batch.indices[p]]) for p in places]
        named = "; ".join(origins[:_MAX_NAMED_RECORDS])
        more = len(origins) - _MAX_NAMED_RECORDS
        return NonFiniteLossError(
            f"the {what} is not finite, and no update was made; the records are {named}"
            + (f", and {more} more" if more > 0 else ""),
            where=f"step {step}",
            got=result.loss,
            why="the next update would destroy the weights",
            fix="lower train.learning_rate, look at these records, or choose an objective whose "
            "loss is finite everywhere (veritune objectives)",
        )
