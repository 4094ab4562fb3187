"""Value, gradient and laws: the same code for every implementation.

A check returns what was measured in words and whether the claim holds; where it does not, the
words are the smallest case. Every comparison also looks at a neighbor that must be rejected, so
that a check which cannot fail is an error here and not a success.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from peers.batches import Batch, Rows, extreme_batches, random_batch
from peers.implementation import Implementation

_EXTREMES = (-1e4, -90.0, -1.0, 0.0, 1.0, 90.0, 1e4)
_STEPS = (2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 90.0, 120.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4)
_SEEDS = (0, 1)
_CUTTING_SEEDS = tuple(range(8))
_JUNK_COLUMNS = 3


@dataclass(frozen=True)
class Outcome:
    """What a check found."""

    holds: bool
    measured: str


class CannotFailError(Exception):
    """A check accepted what it must reject."""


def _tolerance(implementation: Implementation) -> float:
    return 2e-5 if implementation.in_single_precision else 1e-7


def loss_and_gradient(loss: Callable[[Batch], Tensor], batch: Batch) -> tuple[float, Tensor]:
    """The loss, and its gradient with respect to the policy's logits."""
    policy = batch.rows.policy.detach().clone().requires_grad_()
    value = loss(batch.with_policy(policy))
    (gradient,) = torch.autograd.grad(value, policy)
    return float(value.detach()), gradient


def _batch(implementation: Implementation, seed: int = 0) -> Batch:
    """Six examples, in the widest type that the implementation takes."""
    batch = random_batch(implementation.kind, seed)
    return batch if implementation.accepts_double else batch.to(torch.float32)


def _distance(found: tuple[float, Tensor], wanted: tuple[float, Tensor]) -> float:
    """The larger of the relative differences of losses and of gradients."""
    of_losses = abs(found[0] - wanted[0]) / (1 + abs(wanted[0]))
    of_gradients = (found[1].double() - wanted[1].double()).norm() / wanted[1].double().norm()
    return max(of_losses, float(of_gradients))


def _elsewhere(batch: Batch) -> Batch:
    """The batch under a slightly different policy."""
    return batch.with_policy(1.1 * batch.rows.policy)


def value(implementation: Implementation) -> Outcome:
    """Loss and gradient are those of the published formula."""
    tolerance, worst, words = _tolerance(implementation), 0.0, ""
    for seed in _SEEDS:
        batch = _batch(implementation, seed)
        found = loss_and_gradient(implementation.mean_loss, batch)
        exact = batch.to(torch.float64)
        wanted = loss_and_gradient(implementation.formula.mean_loss, exact)
        neighbor = loss_and_gradient(implementation.formula.mean_loss, _elsewhere(exact))
        if _distance(neighbor, wanted) < 100 * tolerance:
            raise CannotFailError(f"{implementation.name}: the formula does not see the policy")
        distance = _distance(found, wanted)
        if worst < tolerance:
            words = f"batch {seed}: loss {found[0]:.9g}, formula {wanted[0]:.9g}"
        worst = max(worst, distance)
    return Outcome(worst < tolerance, f"{words}; largest relative difference {worst:.1e}")


def gradient(implementation: Implementation) -> Outcome:
    """The gradient is the slope of the loss, or, where a part of the formula is a constant for the
    gradient, that of the formula."""
    loss = implementation.mean_loss
    if implementation.formula.stops_gradient:
        batch = _batch(implementation)
        found = loss_and_gradient(loss, batch)[1]
        wanted = loss_and_gradient(implementation.formula.mean_loss, batch)[1]
        off = float((found - wanted).norm() / wanted.norm())
        if off < _tolerance(implementation):
            return Outcome(True, f"off the formula's by {off:.1e}")
    # In float32 rounding asks for a long step, and curvature then for a wide tolerance.
    step, tolerance = (2e-2, 5e-3) if implementation.in_single_precision else (1e-5, 1e-6)
    generator = torch.Generator().manual_seed(3)
    worst, size = 0.0, 1.0
    for seed in _SEEDS:
        batch = _batch(implementation, seed)
        _, slope = loss_and_gradient(loss, batch)
        policy = batch.rows.policy
        for _ in range(4):
            direction = torch.randn(policy.shape, generator=generator, dtype=policy.dtype)
            direction /= direction.norm()
            ahead, behind = (
                float(loss(batch.with_policy(policy + sign * step * direction)))
                for sign in (1.0, -1.0)
            )
            size = float(slope.norm())
            along = (ahead - behind) / (2 * step)
            worst = max(worst, abs(along - float((slope * direction).sum())) / size)
    if size < 1e-9:
        raise CannotFailError(f"{implementation.name}: no gradient to compare")
    return Outcome(worst < tolerance, f"off finite differences by {worst:.1e} of its length")


def _not_finite(implementation: Implementation, batch: Batch) -> str:
    found, slope = loss_and_gradient(implementation.mean_loss, batch)
    loss = torch.tensor(found)
    if not loss.isfinite():
        return f"loss {found}"
    if not slope.isfinite().all():
        return "the gradient holds " + ("nan" if slope.isnan().any() else "inf")
    return ""


def _first_failure(implementation: Implementation) -> str:
    for size in _STEPS:
        for words, batch in extreme_batches(implementation.kind, (-size, 0.0, size)):
            wrong = _not_finite(implementation, batch)
            if wrong:
                return f"{wrong} at {words}"
    return "only at combinations of different sizes"


def extremes(implementation: Implementation) -> Outcome:
    """Loss and gradient are finite for log-ratios of up to 10,000 nats in float32."""
    batches = extreme_batches(implementation.kind, _EXTREMES)
    wrong = [(_not_finite(implementation, batch), words) for words, batch in batches]
    failures = [f"{what} at {words}" for what, words in wrong if what]
    if not failures:
        return Outcome(True, f"finite in all {len(batches)} cases")
    first = _first_failure(implementation)
    return Outcome(False, f"not finite in {len(failures)} of {len(batches)} cases; first: {first}")


def order(implementation: Implementation) -> Outcome:
    """The place of an example in the batch does not matter."""
    batch = _batch(implementation)
    swapped = batch.examples(list(reversed(range(batch.num_examples))))
    first, second = (float(implementation.mean_loss(given)) for given in (batch, swapped))
    off = abs(first - second) / (1 + abs(first))
    return Outcome(off < _tolerance(implementation), f"losses differ by {off:.1e}")


def cutting(implementation: Implementation) -> Outcome:
    """Micro-batches of one example accumulate to the loss and the gradient of the batch."""

    def in_pieces(given: Batch) -> Tensor:
        pieces = [given.examples([index]) for index in range(given.num_examples)]
        if implementation.parts is not None:
            return torch.stack(implementation.parts(pieces)).sum()
        return torch.stack([implementation.mean_loss(piece) for piece in pieces]).mean()

    tolerance, worst, words = _tolerance(implementation), 0.0, ""
    for seed in _CUTTING_SEEDS:
        batch = _batch(implementation, seed)
        whole = loss_and_gradient(implementation.mean_loss, batch)
        cut = loss_and_gradient(in_pieces, batch)
        if worst < tolerance:
            words = (
                f"batch {seed}: loss {whole[0]:.9g} in one piece, {cut[0]:.9g} in single examples"
            )
        worst = max(worst, _distance(cut, whole))
    return Outcome(worst < tolerance, f"{words}; largest relative difference {worst:.1e}")


def _wider(rows: Rows) -> Rows:
    """The same rows with columns of padding that hold anything."""
    generator = torch.Generator().manual_seed(5)
    num_rows, _, vocabulary = rows.policy.shape

    def junk() -> Tensor:
        shape = (num_rows, _JUNK_COLUMNS, vocabulary)
        return 10 * torch.randn(shape, generator=generator, dtype=rows.policy.dtype)

    tokens = torch.zeros(num_rows, _JUNK_COLUMNS, dtype=rows.tokens.dtype)
    return dataclasses.replace(
        rows,
        policy=torch.cat([rows.policy, junk()], dim=1),
        reference=torch.cat([rows.reference, junk()], dim=1),
        tokens=torch.cat([rows.tokens, tokens], dim=1),
    )


def padding(implementation: Implementation) -> Outcome:
    """A longer row elsewhere in the batch, which pads the others, changes nothing."""
    batch = _batch(implementation)
    behavior = batch.behavior
    if behavior is not None:
        behavior = torch.nn.functional.pad(behavior, (0, _JUNK_COLUMNS))
    padded = dataclasses.replace(
        batch,
        rows=_wider(batch.rows),
        mismatched=None if batch.mismatched is None else _wider(batch.mismatched),
        behavior=behavior,
    )
    plain = loss_and_gradient(implementation.mean_loss, batch)
    value, slope = loss_and_gradient(implementation.mean_loss, padded)
    leaked = float(slope[:, -_JUNK_COLUMNS:].abs().max())
    off = max(_distance((value, slope[:, :-_JUNK_COLUMNS]), plain), leaked)
    return Outcome(off < _tolerance(implementation), f"loss and gradient differ by {off:.1e}")


def reference(implementation: Implementation) -> Outcome:
    """The reference is read if it is in the formula, and is not if it is not."""
    batch = _batch(implementation)
    other = batch.with_reference(1.1 * batch.rows.reference)
    first, second = (float(implementation.mean_loss(given)) for given in (batch, other))
    is_read, belongs = first != second, not implementation.formula.ignores_reference
    return Outcome(is_read == belongs, "it is read" if is_read else "it is not read")


def precision(implementation: Implementation) -> Outcome:
    """float32 stays float32; float64 stays float64, or is float32 where all computing is."""
    found = []
    for dtype in (torch.float32, torch.float64):
        batch = random_batch(implementation.kind).to(dtype)
        try:
            given = implementation.mean_loss(batch).dtype
        except (KeyError, RuntimeError) as error:
            return Outcome(False, f"{dtype}: {type(error).__name__}: {error}")
        allowed = {dtype, torch.float32} if implementation.in_single_precision else {dtype}
        if given not in allowed:
            return Outcome(False, f"{dtype} gives {given}")
        found.append(f"{dtype} gives {given}".replace("torch.", ""))
    return Outcome(True, ", ".join(found))


CHECKS: dict[str, Callable[[Implementation], Outcome]] = {
    check.__name__: check
    for check in (value, gradient, extremes, order, cutting, padding, reference, precision)
}
"""Every check of one implementation, by name, in the order of the table."""
