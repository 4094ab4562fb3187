"""SFT: supervised fine-tuning, the likelihood of given completions."""

from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import DemonstrationLogProbs
from veritune.objectives.card import Card
from veritune.objectives.optimum import FiniteProblem


def sft_loss(demonstrations: DemonstrationLogProbs) -> Float[Tensor, " B"]:
    """Negative log-likelihood of the demonstrations.

    Also called maximum likelihood, cross-entropy or imitation. The sum over the global batch is
    divided by its number of tokens, so a step's loss is in nats per token and long completions
    weigh more than short ones.

        loss = -policy(completion)

    Args:
        demonstrations: Log-probabilities of B completions, in nats, summed over tokens.

    Returns:
        Loss of each demonstration, in nats, summed over its tokens.

    Source:
        Ouyang et al. 2022, arXiv:2203.02155, section 3.5 (the supervised stage).
    """
    return -demonstrations.completion.policy


def sft_optimum(problem: FiniteProblem) -> Float[Tensor, " Y"]:
    """The law that the demonstrations were drawn from."""
    assert problem.desirable is not None, "demonstrations have a law"
    return problem.desirable


CARD = Card(
    loss=sft_loss,
    data=DemonstrationLogProbs,
    source="arXiv:2203.02155, section 3.5",
    title="supervised fine-tuning",
    target="the law of the demonstrations",
    elsewhere="SFTTrainer of TRL",
    optimum=sft_optimum,
    needs_reference=False,
    normalizer="tokens",
)
