"""Objectives on samples of the policy: their gradients are those of what they claim to maximize."""

import dataclasses

import torch

from veritune.laboratory.distances import kl, total_variation
from veritune.laboratory.extremes import largest_residual, smallest_control
from veritune.laboratory.fresh_samples import fresh_gradient, rlhf_gradient
from veritune.laboratory.minimize import is_certified, minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import bradley_terry_problem
from veritune.laboratory.theorem import Evidence, Theorem
from veritune.objectives.optimum import FiniteProblem, tilted_reference
from veritune.objectives.sampled.dr_grpo import dr_grpo_loss
from veritune.objectives.sampled.grpo import grpo_loss
from veritune.objectives.sampled.ppo import ppo_loss
from veritune.objectives.sampled.reverse_kl import reverse_kl_loss
from veritune.objectives.sampled.rloo import rloo_loss, rloo_optimum

_SEEDS = (0, 1, 2)
_NUM_COMPLETIONS = 5


def _distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """Length of the difference over the length of the second."""
    return float((first - second).norm() / second.norm())


def rloo_follows_rlhf() -> Evidence:
    """RLOO's gradient on fresh samples against the exact gradient of RLHF's objective."""
    residuals, controls = [], []
    for seed in _SEEDS:
        problem = bradley_terry_problem(_NUM_COMPLETIONS, seed)
        policy = bradley_terry_problem(_NUM_COMPLETIONS, seed + 100).reference
        truth, other = (rlhf_gradient(problem, policy, beta) for beta in (0.3, 0.4))
        for group_size in (1, 2, 3):
            found = fresh_gradient(rloo_loss, problem, policy, group_size=group_size, beta=0.3)
            residuals.append(_distance(found, truth))
            controls.append(_distance(found, other))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"groups of 1, 2 and 3, Y = {_NUM_COMPLETIONS}: relative distance at most "
        f"{max(residuals):.1e}; from the gradient at another beta at least {min(controls):.2g}",
    )


def rloo_rests_at_the_tilted_reference() -> Evidence:
    """RLOO's gradient on fresh samples vanishes at the optimum of RLHF and not beside it."""
    residuals: list[float] = []
    controls: list[float] = []
    for seed in _SEEDS:
        problem = bradley_terry_problem(_NUM_COMPLETIONS, seed)
        for beta, values in ((0.3, residuals), (0.4, controls)):
            policy = rloo_optimum(problem, beta=beta)
            values.append(float(fresh_gradient(rloo_loss, problem, policy, beta=0.3).norm()))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"gradient norm at most {max(residuals):.1e}",
    )


def ppo_begins_as_the_policy_gradient() -> Evidence:
    """PPO's gradient before the first update is that of the advantages."""
    residuals, controls = [], []
    for seed in _SEEDS:
        problem = bradley_terry_problem(_NUM_COMPLETIONS, seed)
        policy = bradley_terry_problem(_NUM_COMPLETIONS, seed + 100).reference
        found = fresh_gradient(ppo_loss, problem, policy, group_size=1)
        residuals.append(_distance(found, rlhf_gradient(problem, policy, 0.0)))
        controls.append(_distance(found, rlhf_gradient(problem, policy, 0.1)))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"relative distance {max(residuals):.1e}",
    )


def dr_grpo_is_scaled_policy_gradient() -> Evidence:
    """Dr. GRPO's gradient is (K - 1) / K of the policy gradient; GRPO's is no multiple of it."""
    residuals, controls, cosines = [], [], []
    for seed in _SEEDS:
        problem = bradley_terry_problem(_NUM_COMPLETIONS, seed)
        policy = bradley_terry_problem(_NUM_COMPLETIONS, seed + 100).reference
        truth = rlhf_gradient(problem, policy, 0.0)
        for size in (2, 3):
            found = fresh_gradient(dr_grpo_loss, problem, policy, group_size=size)
            residuals.append(_distance(found, (size - 1) / size * truth))
            scaled = fresh_gradient(grpo_loss, problem, policy, group_size=size, beta=0.0)
            along = scaled @ truth / truth.norm() ** 2 * truth
            controls.append(_distance(scaled, along))
            cosines.append(float(torch.cosine_similarity(scaled, truth, dim=0)))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"K = 2, 3: relative distance at most {max(residuals):.1e}; GRPO's gradient has a cosine "
        f"of {min(cosines):.3f} to {max(cosines):.3f} with the policy gradient",
    )


def _net_wins(problem: FiniteProblem, policy: torch.Tensor) -> FiniteProblem:
    """The problem whose reward is the probability to beat a sample of the policy less that to lose
    to it."""
    assert problem.reward is not None, "a Bradley-Terry problem has a reward"
    wins = (problem.reward[:, None] - problem.reward[None, :]).sign() @ policy.exp()
    return dataclasses.replace(problem, reward=wins)


def grpo_on_pairs_counts_wins() -> Evidence:
    """Gradients of GRPO and of Dr. GRPO on groups of two against that of net wins."""
    residuals, controls = [], []
    for seed in _SEEDS:
        problem = bradley_terry_problem(_NUM_COMPLETIONS, seed)
        policy = bradley_terry_problem(_NUM_COMPLETIONS, seed + 100).reference
        truth = rlhf_gradient(_net_wins(problem, policy), policy, 0.0)
        found = fresh_gradient(grpo_loss, problem, policy, beta=0.0)
        residuals.append(_distance(found, truth))
        plain = fresh_gradient(dr_grpo_loss, problem, policy)
        along = plain @ truth / truth.norm() ** 2 * truth
        controls.append(_distance(plain, along))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"Y = {_NUM_COMPLETIONS}: relative distance at most {max(residuals):.1e}; Dr. GRPO's "
        f"gradient is {min(controls):.2g} or more from any multiple",
    )


def grpo_penalty_is_the_forward_kl() -> Evidence:
    """What GRPO's penalty adds to its gradient on fresh samples against both divergences'."""
    residuals, controls = [], []
    for seed in _SEEDS:
        problem = bradley_terry_problem(_NUM_COMPLETIONS, seed)
        policy = bradley_terry_problem(_NUM_COMPLETIONS, seed + 100).reference
        for beta in (0.04, 0.5):
            found, bare = (
                fresh_gradient(grpo_loss, problem, policy, beta=weight) for weight in (beta, 0.0)
            )
            forward = policy.exp() - problem.reference.exp()
            reverse = rlhf_gradient(problem, policy, 1.0) - rlhf_gradient(problem, policy, 0.0)
            residuals.append(_distance((found - bare) / beta, forward))
            controls.append(_distance((found - bare) / beta, reverse))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"beta = 0.04 and 0.5: relative distance at most {max(residuals):.1e}; from the gradient "
        f"of KL(policy || reference) {min(controls):.2g} or more",
    )


def reverse_kl_is_the_reverse_kl() -> Evidence:
    """Differences of the expected loss are differences of KL(policy || model), off-policy too."""
    residuals, controls = [], []
    for seed in _SEEDS:
        problem = bradley_terry_problem(_NUM_COMPLETIONS, seed)
        assert problem.reward is not None, "a Bradley-Terry problem has a reward"
        target = tilted_reference(torch.zeros_like(problem.reward), problem.reward / 0.7)
        first, second, behavior = (
            bradley_terry_problem(_NUM_COMPLETIONS, seed + k).reference for k in (100, 200, 300)
        )
        for drawn_from in (problem.reference, behavior, first):
            loss = population_loss(reverse_kl_loss, problem, behavior=drawn_from, gamma=0.7)
            difference = float(loss(first) - loss(second))
            reverse = kl(first, target) - kl(second, target)
            forward = kl(target, first) - kl(target, second)
            residuals.append(abs(difference - reverse))
            controls.append(abs(difference - forward))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        "three behaviors, the policy's own among them, in nats",
    )


def reverse_kl_ignores_the_reference() -> Evidence:
    """Minimizers, and where RLOO comes to rest, against the model behind the preferences."""
    residuals, controls = [], []
    for seed in _SEEDS:
        problem = bradley_terry_problem(_NUM_COMPLETIONS, seed)
        assert problem.reward is not None, "a Bradley-Terry problem has a reward"
        found = minimize(population_loss(reverse_kl_loss, problem, gamma=0.7), problem.reference)
        target = torch.log_softmax(problem.reward / 0.7, dim=0)
        distance = total_variation(found.policy, target)
        residuals.append(distance if is_certified(found) else float("inf"))
        rest = rloo_optimum(problem, beta=0.7)
        is_rest = fresh_gradient(rloo_loss, problem, rest, beta=0.7).norm() < 1e-10
        controls.append(total_variation(rest, target) if is_rest else 0.0)
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"gamma = beta = 0.7: TV at most {max(residuals):.1e}; RLOO, whose gradient on fresh "
        f"samples vanishes there, rests {min(controls):.2g} or more away",
    )


THEOREMS = (
    Theorem(
        name="rloo_follows_rlhf",
        claim="RLOO's expected gradient on fresh samples is that of E[reward] - beta KL, for "
        "groups of any size.",
        control="It is that of another beta.",
        source="Ahmadian et al. 2024, arXiv:2402.14740",
        methods=("rloo",),
        tolerance=1e-10,
        check=rloo_follows_rlhf,
    ),
    Theorem(
        name="rloo_rests_at_the_tilted_reference",
        claim="RLOO comes to rest at the reference tilted by exp(reward / beta).",
        control="It rests at the optimum of another beta.",
        source="Ahmadian et al. 2024, arXiv:2402.14740; Rafailov et al. 2023, eq. 4",
        methods=("rloo",),
        tolerance=1e-10,
        check=rloo_rests_at_the_tilted_reference,
    ),
    Theorem(
        name="ppo_begins_as_the_policy_gradient",
        claim="On fresh samples PPO's gradient is the policy gradient of its advantages.",
        control="It holds a KL penalty of its own.",
        source="Schulman et al. 2017, arXiv:1707.06347, section 3",
        methods=("ppo",),
        tolerance=1e-10,
        check=ppo_begins_as_the_policy_gradient,
    ),
    Theorem(
        name="dr_grpo_is_scaled_policy_gradient",
        claim="Dr. GRPO's gradient on fresh samples is (K - 1) / K of the policy gradient.",
        control="GRPO's, divided by the deviation of the group, is a multiple of it.",
        source="Liu et al. 2025, arXiv:2503.20783",
        methods=("dr_grpo",),
        contrasts=("grpo",),
        tolerance=1e-10,
        check=dr_grpo_is_scaled_policy_gradient,
    ),
    Theorem(
        name="grpo_on_pairs_counts_wins",
        claim="On fresh groups of two GRPO without its penalty follows the policy gradient of the "
        "probability to beat another sample of the policy less that to lose to it: how far rewards "
        "differ does not count.",
        control="Dr. GRPO's gradient is a multiple of it.",
        source="derived here; Shao et al. 2024, arXiv:2402.03300, for the loss",
        methods=("grpo",),
        contrasts=("dr_grpo",),
        tolerance=1e-10,
        check=grpo_on_pairs_counts_wins,
    ),
    Theorem(
        name="grpo_penalty_is_the_forward_kl",
        claim="On fresh samples the penalty of GRPO adds beta times the gradient of KL(reference "
        "|| policy).",
        control="It adds that of KL(policy || reference), which it estimates.",
        source="derived here; Shao et al. 2024, arXiv:2402.03300, eq. 4, for the penalty",
        methods=("grpo",),
        tolerance=1e-10,
        check=grpo_penalty_is_the_forward_kl,
    ),
    Theorem(
        name="reverse_kl_is_the_reverse_kl",
        claim="The expected loss of reverse_kl is KL(policy || model) up to a constant, whatever "
        "law drew the samples.",
        control="It is the forward KL.",
        source="Yun et al. 2025, arXiv:2506.01523; the importance weights are derived here",
        methods=("reverse_kl",),
        tolerance=1e-10,
        check=reverse_kl_is_the_reverse_kl,
    ),
    Theorem(
        name="reverse_kl_ignores_the_reference",
        claim="reverse_kl converges to the model behind the preferences, whatever the reference.",
        control="So does RLOO with the same reward and beta = gamma.",
        source="Yun et al. 2025, arXiv:2506.01523",
        methods=("reverse_kl",),
        contrasts=("rloo",),
        tolerance=1e-8,
        check=reverse_kl_ignores_the_reference,
    ),
)
