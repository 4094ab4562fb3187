"""What must hold before the first update, where policy and reference are one model."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from veritune.batches.loader import GlobalBatch
from veritune.errors import StepZeroError
from veritune.logprobs import CompletionLogProbs
from veritune.models.reference import noise_tolerance
from veritune.training.forms import GlobalFacts, assemble
from veritune.training.objective_pass import ObjectivePass


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
    reference = objective_pass.reference_sums(groups)
    assert reference is not None, "the caller has looked"
    common = objective_pass.reference_common_sums(groups)
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
