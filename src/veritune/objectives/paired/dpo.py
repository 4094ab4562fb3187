"""DPO: direct preference optimization."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from veritune.logprobs import PairedLogProbs
from veritune.objectives.card import Card
from veritune.objectives.optimum import FiniteProblem, tilted_reference
from veritune.ranges import Positive


def dpo_loss(pairs: PairedLogProbs, *, beta: Positive = 0.1) -> Float[Tensor, " B"]:
    """Negative log-likelihood of the preferences under implicit rewards.

    The implicit reward of a completion is `beta * log_ratio`. When preferences do not follow a
    reward (cycles, say), the optimum depends on which pairs were compared.

        loss = -log sigmoid(beta * (log_ratio(chosen) - log_ratio(rejected)))

    Args:
        pairs: Log-probabilities of B pairs, in nats, summed over tokens.
        beta: Weight of the KL penalty in the problem that DPO solves. A small
            beta lets the optimum move far from the reference.

    Returns:
        Loss of each pair, in nats, not reduced.

    Source:
        Rafailov et al. 2023, arXiv:2305.18290, eq. 7.
    """
    log_ratio_margin = pairs.chosen.log_ratio - pairs.rejected.log_ratio
    return -logsigmoid(beta * log_ratio_margin)


def dpo_optimum(problem: FiniteProblem, *, beta: Positive = 0.1) -> Float[Tensor, " Y"]:
    """The reference tilted by the Bradley-Terry reward (eq. 4 of the paper)."""
    assert problem.reward is not None, "the optimum is known where preferences follow a reward"
    return tilted_reference(problem.reference, problem.reward / beta)


def dpo_initial_loss(pairs: PairedLogProbs, *, beta: Positive = 0.1) -> Float[Tensor, " B"]:
    """`log 2`: every log-ratio is zero, and the preference is a coin toss."""
    return torch.full_like(pairs.chosen.policy, math.log(2))


CARD = Card(
    loss=dpo_loss,
    data=PairedLogProbs,
    source="arXiv:2305.18290, eq. 7",
    title="direct preference optimization",
    target="the reference tilted by exp(reward / beta), if preferences follow Bradley-Terry",
    elsewhere=("loss_type='sigmoid' of TRL and Liger-Kernel; pref_loss='sigmoid' of LLaMA-Factory"),
    optimum=dpo_optimum,
    initial_loss=dpo_initial_loss,
    reward_scale="beta",
)
