"""The expectation of an objective over all data of a finite problem, without sampling."""

import inspect
import typing
from collections.abc import Callable
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import (
    CompletionLogProbs,
    DemonstrationLogProbs,
    LogProbs,
    PairedLogProbs,
    SampledLogProbs,
    ScoredLogProbs,
    UnpairedLogProbs,
)
from veritune.objectives.optimum import FiniteProblem

GLOBAL_BATCH = 10**12
"""Size of the global batch of labels that stands for the population: so large that the counts of
both labels, which are whole numbers, give the fraction of the problem to twelve digits."""

PopulationLoss = Callable[[Float[Tensor, " Y"]], Float[Tensor, ""]]
"""From the log-probabilities of a policy to its expected loss."""


def population_loss(
    loss: Callable[..., Tensor],
    problem: FiniteProblem,
    *,
    group_size: int = 2,
    behavior: Float[Tensor, " Y"] | None = None,
    **hyperparameters: float,
) -> PopulationLoss:
    """The mean of a loss over every example that the problem can produce, as a function of policy.

    Every example is put through the loss function itself and weighted by its probability:

        demonstrations: drawn from the law of desirable completions
        pairs:          drawn from the pair law and labelled by the preferences
        labels:         desirable with the problem's fraction, then drawn from the law of the label
        groups:         `group_size` independent draws from the reference, scored by the reward
        samples:        the same from the behavior; the advantage of a completion is its reward less
                        the mean reward of the behavior

    A single prompt has no mismatched completions; the mean log-ratio of such is what it estimates,
    KL(policy || reference), without gradient. The mean log-ratio of the data is that at the policy
    itself: training has come to rest.

    Args:
        loss: A loss function of the catalog.
        problem: Must hold what the loss's kind of data takes.
        group_size: Completions in a group; the number of groups is Y to this power.
        behavior: Log-probabilities of the law that samples are drawn from; the reference if None.
        hyperparameters: Of the loss.

    Returns:
        A function of (Y,) log-probabilities, differentiable as often as the loss.
    """
    examples = _examples(_data_form(loss), problem, group_size, behavior)

    def expected_loss(policy: Float[Tensor, " Y"]) -> Float[Tensor, ""]:
        losses = loss(examples.under(policy), **hyperparameters)
        # An example that cannot occur contributes nothing, even where its loss is infinite.
        return (examples.weight * losses.where(examples.weight > 0, 0)).sum()

    return expected_loss


def _data_form(loss: Callable[..., Tensor]) -> type[LogProbs]:
    first = next(iter(inspect.signature(loss).parameters))
    form: type[LogProbs] = typing.get_type_hints(loss)[first]
    return form


class _Examples(typing.NamedTuple):
    """Every example, its probability, and how its log-probabilities follow from the policy."""

    weight: Float[Tensor, " B"]
    under: Callable[[Float[Tensor, " Y"]], LogProbs]


def _examples(
    form: type[LogProbs],
    problem: FiniteProblem,
    group_size: int,
    behavior: Float[Tensor, " Y"] | None,
) -> _Examples:
    if form is DemonstrationLogProbs:
        return _demonstrations(problem)
    if form is PairedLogProbs:
        return _pairs(problem)
    if form is UnpairedLogProbs:
        return _labels(problem)
    if form is SampledLogProbs:
        return _samples(problem, group_size, problem.reference if behavior is None else behavior)
    assert form is ScoredLogProbs, f"no way to enumerate the data of {form.__name__}"
    return _groups(problem, group_size)


def _completions(
    problem: FiniteProblem, policy: Float[Tensor, " Y"], which: Tensor
) -> CompletionLogProbs:
    return CompletionLogProbs(
        policy=policy[which],
        length=torch.ones_like(which),
        reference=problem.reference[which],
    )


def _demonstrations(problem: FiniteProblem) -> _Examples:
    assert problem.desirable is not None, "demonstrations have a law"
    which = torch.arange(problem.num_completions)
    return _Examples(
        weight=problem.desirable.exp(),
        under=lambda policy: DemonstrationLogProbs(_completions(problem, policy, which)),
    )


def _pairs(problem: FiniteProblem) -> _Examples:
    assert problem.preferences is not None, "pairs have preferences"
    assert problem.pair_law is not None, "pairs have a law"
    size = problem.num_completions
    chosen, rejected = torch.cartesian_prod(torch.arange(size), torch.arange(size)).unbind(dim=1)
    # A pair is put to comparison in either order.
    weight = ((problem.pair_law + problem.pair_law.T) * problem.preferences).flatten()

    def under(policy: Float[Tensor, " Y"]) -> PairedLogProbs:
        log_ratio = (policy - problem.reference).detach()
        return PairedLogProbs(
            chosen=_completions(problem, policy, chosen),
            rejected=_completions(problem, policy, rejected),
            mean_log_ratio=(weight * (log_ratio[chosen] + log_ratio[rejected])).sum() / 2,
        )

    return _Examples(weight=weight, under=under)


def _labels(problem: FiniteProblem) -> _Examples:
    assert problem.desirable is not None, "desirable completions have a law"
    assert problem.undesirable is not None, "undesirable completions have a law"
    assert problem.desirable_fraction is not None, "labels have a fraction of desirable ones"
    size = problem.num_completions
    num_desirable = round(problem.desirable_fraction * GLOBAL_BATCH)
    fraction = num_desirable / GLOBAL_BATCH
    which = torch.arange(size).repeat(2)
    desirable = torch.arange(2 * size) < size
    both_labels = problem.desirable.exp() + problem.undesirable.exp()

    def under(policy: Float[Tensor, " Y"]) -> UnpairedLogProbs:
        log_ratio = policy - problem.reference
        return UnpairedLogProbs(
            completion=_completions(problem, policy, which),
            desirable=desirable,
            num_desirable=num_desirable,
            num_undesirable=GLOBAL_BATCH - num_desirable,
            mismatched_log_ratio=(policy.exp() * log_ratio).sum().detach(),
            mean_log_ratio=(both_labels * log_ratio).sum().detach() / 2,
        )

    return _Examples(
        weight=torch.cat(
            [fraction * problem.desirable.exp(), (1 - fraction) * problem.undesirable.exp()]
        ),
        under=under,
    )


def _draws(problem: FiniteProblem, group_size: int) -> Tensor:
    """Every group, as the completions in it."""
    return torch.tensor(list(product(range(problem.num_completions), repeat=group_size)))


def _groups(problem: FiniteProblem, group_size: int) -> _Examples:
    assert problem.reward is not None, "scores are a reward"
    reward = problem.reward
    which = _draws(problem, group_size)
    return _Examples(
        weight=problem.reference[which].sum(dim=1).exp(),
        under=lambda policy: ScoredLogProbs(
            completions=_completions(problem, policy, which),
            scores=reward[which],
            present=torch.ones_like(which, dtype=torch.bool),
        ),
    )


def _samples(problem: FiniteProblem, group_size: int, behavior: Float[Tensor, " Y"]) -> _Examples:
    """Completions of one token each."""
    assert problem.reward is not None, "samples have a reward"
    reward = problem.reward
    which = _draws(problem, group_size)
    advantage = reward - (behavior.exp() * reward).sum()

    return _Examples(
        weight=behavior[which].sum(dim=1).exp(),
        under=lambda policy: SampledLogProbs(
            policy=policy[which][..., None],
            behavior=behavior[which][..., None],
            bears_loss=torch.ones_like(which, dtype=torch.bool)[..., None],
            rewards=reward[which],
            reference=problem.reference[which][..., None],
            advantages=advantage[which][..., None],
        ),
    )
