"""Optimizer and schedule."""

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn

from veritune.config import Config
from veritune.ranges import Fraction, NonNegative, OpenFraction, Positive


class OptimizerConfig(Config):
    """How gradients become parameter updates. Counts are in optimizer steps."""

    learning_rate: Positive = 5e-7
    """Highest rate of the schedule, reached when warm-up ends."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls behind the warm-up: to zero along a cosine or a line, or not at all."""

    warmup_fraction: Fraction = 0.1
    """Share of the run's steps over which the rate rises linearly; 0 starts at the top."""

    max_gradient_norm: Positive = 1.0
    """Global L2 norm above which the gradient is scaled down to this norm."""

    beta1: OpenFraction = 0.9
    """AdamW: decay of the mean of gradients."""

    beta2: OpenFraction = 0.999
    """AdamW: decay of the mean of squared gradients."""

    weight_decay: NonNegative = 0.0
    """AdamW: decay of weights toward zero, times the learning rate."""


def build_optimizer(
    parameters: Iterable[nn.Parameter], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """Fused AdamW over the parameters that require a gradient."""
    return torch.optim.AdamW(
        [parameter for parameter in parameters if parameter.requires_grad],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate_at(step: int, total: int, config: OptimizerConfig) -> float:
    """The rate of a step, 1 … total; a function of the step alone, so that nothing is resumed.

    Warm-up reaches the full rate at its last step. A falling schedule reaches zero one step behind
    the last, so that no step is made in vain.
    """
    warmup = math.ceil(config.warmup_fraction * total)
    if step <= warmup:
        return config.learning_rate * step / warmup
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - warmup - 1) / max(1, total - warmup)
    left = 1 - progress if config.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return config.learning_rate * left
