"""The hyper-parameters at which every loss is looked at, the same for all toolkits."""

BETA = 0.5
"""Of losses on log-ratios; also tau of IPO and gamma of the hinge."""

FLIPS = 0.25
"""Rate of flipped labels that robust DPO is told."""

EPSILON = 1e-3
"""Label smoothing of EXO."""

CLIP = 0.2
"""Where PPO's clip begins."""

KL_WEIGHT = 0.04
"""Of GRPO, where it has a KL term."""

LARGEST = 5.0
"""Where CISPO cuts a ratio, as TRL's documentation recommends."""

LONGEST = 9
"""Longest completion, the constant of Dr. GRPO."""
