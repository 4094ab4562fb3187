"""Finite decision processes: discounted ones, and episodes of a fixed length, with exact values.

A policy is a table of probabilities of actions, for every state (and step). All tensors are
float64.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from veritune.ranges import OpenFraction
from veritune.seeds import stream


@dataclass(frozen=True)
class DecisionProcess:
    """S states, A actions in each, no end, and a discount."""

    transition: Float[Tensor, "S A S"]
    """Probability of the next state, given state and action."""

    reward: Float[Tensor, "S A"]
    """Reward of an action in a state."""

    initial: Float[Tensor, " S"]
    """Probability of the first state."""

    gamma: float
    """Discount per step, from 0 (a bandit) up to, not including, 1."""

    def __post_init__(self) -> None:
        assert 0 <= self.gamma < 1, "without a discount values do not exist"

    @property
    def num_states(self) -> int:
        """How many states there are, S."""
        return len(self.initial)

    @property
    def num_actions(self) -> int:
        """How many actions every state has, A."""
        return self.reward.shape[1]


@dataclass(frozen=True)
class EpisodicProcess:
    """S states, A actions in each, and H steps to an episode; every step has its own laws."""

    transition: Float[Tensor, "H S A S"]
    """Probability of the next state, given step, state and action; after the last step unused."""

    reward: Float[Tensor, "H S A"]
    """Reward of an action, from 0 to 1."""

    initial: Float[Tensor, " S"]
    """Probability of the first state."""

    features: Float[Tensor, "S A S d"]
    """What is known of the transitions beforehand: they are linear in these features,

        transition_h(x' | x, a) = features(x, a, x') . theta_h,      theta_h unknown
    """

    @property
    def horizon(self) -> int:
        """Steps in an episode, H."""
        return len(self.reward)


def random_process(
    num_states: int, num_actions: int, seed: int, *, gamma: OpenFraction = 0.9
) -> DecisionProcess:
    """A discounted process with standard normal rewards and logits of all laws."""
    generator = stream(seed, "laboratory", "decision-process")
    states, actions = num_states, num_actions
    return DecisionProcess(
        transition=_normal(states, actions, states, generator=generator).softmax(dim=-1),
        reward=_normal(states, actions, generator=generator),
        initial=_normal(states, generator=generator).softmax(dim=-1),
        gamma=gamma,
    )


def bandit(reward: Float[Tensor, " A"]) -> DecisionProcess:
    """One state, one step: a choice among A actions, as a prompt is among its completions."""
    size = len(reward)
    return DecisionProcess(
        transition=torch.ones(1, size, 1, dtype=torch.float64),
        reward=reward[None, :],
        initial=torch.ones(1, dtype=torch.float64),
        gamma=0.0,
    )


def random_policy(num_states: int, num_actions: int, seed: int) -> Float[Tensor, "S A"]:
    """A policy whose logits are standard normal."""
    generator = stream(seed, "laboratory", "decision-policy")
    return _normal(num_states, num_actions, generator=generator).softmax(dim=-1)


def random_linear_process(
    num_states: int, num_actions: int, horizon: int, dimension: int, seed: int
) -> EpisodicProcess:
    """Every step mixes a few known transitions by weights of its own, which are unknown.

        transition_h = sum over i of theta_h(i) * base_i,      features(x, a, x')_i = base_i(x'|x,a)

    Rewards are uniform from 0 to 1; logits of the base laws are normal with deviation 2, those of
    the weights and of the first state standard normal.
    """
    generator = stream(seed, "laboratory", "linear-process")
    states, actions = num_states, num_actions
    base = (2 * _normal(dimension, states, actions, states, generator=generator)).softmax(dim=-1)
    theta = _normal(horizon, dimension, generator=generator).softmax(dim=-1)
    return EpisodicProcess(
        transition=torch.einsum("hi,ixay->hxay", theta, base),
        reward=torch.rand(horizon, states, actions, generator=generator, dtype=torch.float64),
        initial=_normal(states, generator=generator).softmax(dim=-1),
        features=base.movedim(0, -1),
    )


def combination_lock(
    num_actions: int = 5, horizon: int = 6, *, distraction: float = 0.1
) -> EpisodicProcess:
    """One right action per step leads on, all others out for good; the reward waits at the end.

    State 0 is on the way, state 1 is lost. Action 0 is right: at the last step on the way it earns
    1. The last action earns `distraction` at once wherever it leads off the way, so who follows
    the rewards that are seen never sees the end: uniform actions reach the last step on the way
    with probability `num_actions ** (1 - horizon)`.

    Nothing is known of the transitions: features are `indicator_features`. A learner that knows
    how such locks work, but not the combination, has `lock_features`.
    """
    shape = (horizon, 2, num_actions)
    transition = torch.zeros(*shape, 2, dtype=torch.float64)
    transition[..., 1] = 1
    transition[:, 0, 0] = torch.tensor([1.0, 0.0], dtype=torch.float64)
    reward = torch.zeros(shape, dtype=torch.float64)
    reward[:, 0, -1] = distraction
    reward[-1, 0, 0] = 1
    return EpisodicProcess(
        transition=transition,
        reward=reward,
        initial=torch.tensor([1.0, 0.0], dtype=torch.float64),
        features=indicator_features(2, num_actions),
    )


def indicator_features(num_states: int, num_actions: int) -> Float[Tensor, "S A S d"]:
    """One feature for each state, action and next state: any transitions are linear in them."""
    size = num_states * num_actions * num_states
    indicators = torch.eye(size, dtype=torch.float64)
    return indicators.reshape(num_states, num_actions, num_states, size)


def lock_features(num_actions: int) -> Float[Tensor, "2 A 2 A"]:
    """One feature for each action: the transitions if it were the one that leads on."""
    features = torch.zeros(2, num_actions, 2, num_actions, dtype=torch.float64)
    features[:, :, 1] = 1
    right = torch.eye(num_actions, dtype=torch.float64)
    features[0, :, 0], features[0, :, 1] = right, 1 - right
    return features


def state_values(process: DecisionProcess, policy: Float[Tensor, "S A"]) -> Float[Tensor, " S"]:
    """Expected discounted sum of rewards from each state, by solving the Bellman equation.

    V(x) = sum over a of policy(a|x) * (reward(x, a) + gamma * sum over x' of P(x'|x,a) V(x'))
    """
    flow = torch.einsum("xa,xay->xy", policy, process.transition)
    identity = torch.eye(process.num_states, dtype=torch.float64)
    earned = (policy * process.reward).sum(dim=-1)
    values: Tensor = torch.linalg.solve(identity - process.gamma * flow, earned)
    return values


def action_values(process: DecisionProcess, values: Float[Tensor, " S"]) -> Float[Tensor, "S A"]:
    """`reward(x, a) + gamma * sum over x' of P(x'|x,a) V(x')` for given values V of states."""
    return process.reward + process.gamma * process.transition @ values


def optimal_policy(process: DecisionProcess) -> Float[Tensor, "S A"]:
    """The best deterministic policy, by policy iteration, which ends after finitely many rounds.

    Source:
        Howard 1960, Dynamic Programming and Markov Processes.
    """
    size = (process.num_states, process.num_actions)
    policy = torch.full(size, 1 / process.num_actions, dtype=torch.float64)
    while True:
        values = action_values(process, state_values(process, policy))
        better = torch.nn.functional.one_hot(values.argmax(dim=-1), size[1]).to(torch.float64)
        gain = ((better - policy) * values).sum(dim=-1)
        # Ties within rounding would go around for ever.
        if float(gain.max()) < 1e-12 * (1 + float(values.abs().max())):
            return better
        policy = better


def occupancy(process: DecisionProcess, policy: Float[Tensor, "S A"]) -> Float[Tensor, "S A"]:
    """Discounted share of time spent in each state with each action; sums to one.

        d(x) = (1 - gamma) * initial(x) + gamma * sum over x', a of d(x') policy(a|x') P(x|x',a)
        d(x, a) = d(x) * policy(a|x)

    The expected reward under it is `1 - gamma` times the value of the policy.
    """
    flow = torch.einsum("xa,xay->yx", policy, process.transition)
    identity = torch.eye(process.num_states, dtype=torch.float64)
    started = (1 - process.gamma) * process.initial
    visited: Tensor = torch.linalg.solve(identity - process.gamma * flow, started)
    return visited[:, None] * policy


def flow_gap(process: DecisionProcess, visits: Float[Tensor, "S A"]) -> Float[Tensor, " S"]:
    """What flows into each state less what flows out: zero exactly for occupancies of a policy.

    gap(x) = (1 - gamma) * initial(x) + gamma * sum of P(x|x',a) visits(x',a) - sum of visits(x,a)
    """
    into = torch.einsum("xa,xay->y", visits, process.transition)
    return (1 - process.gamma) * process.initial + process.gamma * into - visits.sum(dim=-1)


def policy_of_occupancy(visits: Float[Tensor, "S A"]) -> Float[Tensor, "S A"]:
    """`visits(x, a) / sum of visits(x, .)`; uniform in a state that is never visited."""
    total = visits.sum(dim=-1, keepdim=True)
    uniform = torch.full_like(visits, 1 / visits.shape[1])
    return torch.where(total > 0, visits / total.where(total > 0, torch.ones_like(total)), uniform)


def episodic_values(
    process: EpisodicProcess,
    policies: Float[Tensor, "*K H S A"],
    rewards: Float[Tensor, "*K H S A"],
) -> Float[Tensor, " *K"]:
    """Expected sum of rewards in an episode, for each policy with its own rewards.

        Q_h(x, a) = reward_h(x, a) + sum over x' of P_h(x'|x,a) V_{h+1}(x')
        V_h(x)    = sum over a of policy_h(a|x) Q_h(x, a)

    Returns:
        The value of the first state's law.
    """
    values = torch.zeros_like(rewards[..., 0, :, 0])
    for h in reversed(range(process.horizon)):
        ahead = rewards[..., h, :, :] + torch.einsum(
            "xay,...y->...xa", process.transition[h], values
        )
        values = (policies[..., h, :, :] * ahead).sum(dim=-1)
    return values @ process.initial


def best_episodic_policy(
    process: EpisodicProcess, reward: Float[Tensor, "H S A"]
) -> Float[Tensor, "H S A"]:
    """The best deterministic policy for these rewards, by backward induction.

    For the mean of several rewards it is the best fixed policy in hindsight, because the value of
    a policy is linear in the reward.
    """
    policy = torch.zeros_like(reward)
    values = torch.zeros_like(reward[0, :, 0])
    for h in reversed(range(process.horizon)):
        ahead = reward[h] + process.transition[h] @ values
        best = ahead.max(dim=-1)
        policy[h] = torch.nn.functional.one_hot(best.indices, reward.shape[-1])
        values = best.values
    return policy


def _normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)
