"""KTO: Kahneman-Tversky optimization."""

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.logprobs import UnpairedLogProbs
from veritune.objectives.card import Card
from veritune.ranges import Positive


def kto_loss(
    labels: UnpairedLogProbs,
    *,
    beta: Positive = 0.1,
    lambda_desirable: Positive = 1.0,
    lambda_undesirable: Positive = 1.0,
) -> Float[Tensor, " B"]:
    """Lost value of each completion under a prospect-theoretic value function.

    Gains and losses are counted from the point z0, an estimate of KL(policy || reference) in the
    current batch that carries no gradient. The sigmoid saturates on both sides, so completions far
    from z0 are left alone.

        z0         = max(0, mismatched_log_ratio)
        desirable:   loss = lambda_desirable   * (1 - sigmoid(beta * (log_ratio - z0)))
        undesirable: loss = lambda_undesirable * (1 - sigmoid(beta * (z0 - log_ratio)))

    Args:
        labels: Log-probabilities of B labelled completions, in nats, summed over tokens, and the
            mean log-ratio of mismatched completions in the global batch.
        beta: Risk aversion: a larger one saturates at smaller log-ratios.
        lambda_desirable: Weight of desirable examples. With unbalanced data the paper keeps
            lambda_desirable * num_desirable over lambda_undesirable * num_undesirable
            between 1 and 4/3.
        lambda_undesirable: Weight of undesirable examples.

    Returns:
        Loss of each example, between 0 and its weight, not reduced.

    Source:
        Ethayarajh et al. 2024, arXiv:2402.01306, the loss L_KTO.
    """
    assert labels.mismatched_log_ratio is not None, "KTO declares that it needs mismatched pairs"
    z0 = labels.mismatched_log_ratio.detach().clamp(min=0)
    gain = beta * (labels.completion.log_ratio - z0)
    # 1 - sigmoid(x) = sigmoid(-x); the left side loses all digits in float32 from x = 17 on.
    return torch.where(
        labels.desirable,
        lambda_desirable * torch.sigmoid(-gain),
        lambda_undesirable * torch.sigmoid(gain),
    )


def kto_initial_loss(
    labels: UnpairedLogProbs,
    *,
    beta: Positive = 0.1,
    lambda_desirable: Positive = 1.0,
    lambda_undesirable: Positive = 1.0,
) -> Float[Tensor, " B"]:
    """Half the weight of each example: all log-ratios, and so z0, are zero."""
    half = torch.full_like(labels.completion.policy, 0.5)
    return torch.where(labels.desirable, lambda_desirable * half, lambda_undesirable * half)


CARD = Card(
    loss=kto_loss,
    data=UnpairedLogProbs,
    source="arXiv:2402.01306",
    title="Kahneman-Tversky optimization",
    target="none claimed in closed form",
    elsewhere=(
        "KTOTrainer of TRL and Liger-Kernel's KTOLoss, which take the baseline from a micro- batch"
    ),
    initial_loss=kto_initial_loss,
    needs_mismatched=True,
    reward_scale="beta",
)
