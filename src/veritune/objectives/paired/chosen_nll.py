"""Likelihood of the chosen completions: the supervised term of many sums of objectives."""

from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import PairedLogProbs
from veritune.objectives.card import Card
from veritune.objectives.optimum import FiniteProblem


def chosen_nll_loss(pairs: PairedLogProbs) -> Float[Tensor, " B"]:
    """Negative log-likelihood of the chosen completions; the rejected ones are not read.

    To be added, with a weight, to another objective on pairs whose chosen completions would lose
    likelihood.

        loss = -policy(chosen)

    Args:
        pairs: Log-probabilities of B pairs, in nats, summed over tokens; neither the reference nor
            the rejected completion is read.

    Returns:
        Loss of each pair, in nats, summed over the tokens of the chosen completion, not reduced.

    Source:
        Liu et al. 2024, arXiv:2405.16436, the regularizer of the released code.
    """
    return -pairs.chosen.policy


def chosen_nll_optimum(problem: FiniteProblem) -> Float[Tensor, " Y"]:
    """The law of chosen completions: how often each is put to comparison and wins.

    chosen(y) = sum over y' of (pair_law(y, y') + pair_law(y', y)) * P(y is preferred to y')
    """
    assert problem.preferences is not None, "chosen completions are those that are preferred"
    assert problem.pair_law is not None, "pairs have a law"
    return ((problem.pair_law + problem.pair_law.T) * problem.preferences).sum(dim=1).log()


CARD = Card(
    loss=chosen_nll_loss,
    data=PairedLogProbs,
    source="arXiv:2405.16436, the regularizer",
    title="likelihood of chosen completions",
    target="the law of chosen completions",
    optimum=chosen_nll_optimum,
    needs_reference=False,
)
