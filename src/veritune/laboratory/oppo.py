"""OPPO: optimistic proximal policy optimization, with its exact regret.

Each episode the policy of every step is tilted by an optimistic estimate of its action values,
one episode is drawn with it, and the estimate of the transitions takes in what was seen.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from veritune.laboratory.decision_processes import (
    EpisodicProcess,
    best_episodic_policy,
    episodic_values,
)
from veritune.laboratory.distances import kl
from veritune.ranges import NonNegative, Positive
from veritune.seeds import stream

_RIDGE = 1.0


@dataclass(frozen=True)
class RegretGrowth:
    """How regret grows with the number of episodes, each number with its own step size."""

    num_episodes: tuple[int, ...]
    """The N numbers of episodes, K."""

    regret: Float[Tensor, "N R"]
    """Exact regret of R independent runs after each number of episodes."""

    slopes: Float[Tensor, " R"]
    """For each run, the least-squares slope of log regret against log K; 1/2 for a square root."""

    @property
    def slope_interval(self) -> tuple[float, float]:
        """Mean slope of the runs, minus and plus three standard errors."""
        error = float(self.slopes.std()) / math.sqrt(len(self.slopes))
        return float(self.slopes.mean()) - 3 * error, float(self.slopes.mean()) + 3 * error


def oppo_step_size(process: EpisodicProcess, num_episodes: int) -> float:
    """The step size of the theorem for K episodes, `sqrt(2 log A / (H^2 K))`.

    Source:
        Cai, Yang, Jin and Wang 2019, arXiv:1912.05830, theorem on the regret of OPPO.
    """
    horizon, _, num_actions = process.reward.shape
    return math.sqrt(2 * math.log(num_actions) / (horizon**2 * num_episodes))


def improved_policy(
    policy: Float[Tensor, "*S A"], values: Float[Tensor, "*S A"], eta: Float[Tensor, "..."] | float
) -> Float[Tensor, "*S A"]:
    """Log-probabilities of the policy tilted by its action values.

        policy'(a|x) proportional to policy(a|x) * exp(eta * values(x, a))

    Source:
        Cai, Yang, Jin and Wang 2019, arXiv:1912.05830, policy improvement.
    """
    return torch.log_softmax(policy + eta * values, dim=-1)


def three_point_residual(
    policy: Float[Tensor, " A"],
    values: Float[Tensor, " A"],
    other: Float[Tensor, " A"],
    *,
    eta: Positive,
) -> float:
    """By how much the identity of one improvement fails; zero for any other policy q.

        eta * <values, q - policy'> = KL(q || policy) - KL(q || policy') - KL(policy' || policy)

    Args:
        policy: Log-probabilities in nats; policy' is `improved_policy` of it.
        values: Any action values.
        other: Log-probabilities of q.
        eta: Step size of the improvement.

    Returns:
        Left side minus right side.

    Source:
        Cai, Yang, Jin and Wang 2019, arXiv:1912.05830, where it bounds the regret of one step.
    """
    improved = improved_policy(policy, values, eta)
    gain = eta * float((values * (other.exp() - improved.exp())).sum())
    return gain - (kl(other, policy) - kl(other, improved) - kl(improved, policy))


def oppo_policies(
    process: EpisodicProcess,
    rewards: Float[Tensor, "K H S A"],
    *,
    beta: NonNegative,
    eta: Float[Tensor, " R"],
    seed: int,
) -> Float[Tensor, "R K H S A"]:
    """The policies that R independent runs of OPPO play in K episodes.

        policy^k_h   proportional to  policy^{k-1}_h * exp(eta * Q^{k-1}_h),   policy^1 uniform
        phi_h(x, a)  = sum over x' of features(x, a, x') V_{h+1}(x')
        bonus_h      = beta * sqrt(phi_h^T Lambda_h^-1 phi_h)
        Q_h(x, a)    = r^k_h(x, a) + clip(phi_h . w_h + bonus_h, 0, H - h)
        V_h(x)       = sum over a of policy^k_h(a|x) Q_h(x, a)

    `w_h` is the ridge regression of `V_{h+1}(x_{h+1})` on `phi_h(x_h, a_h)` over earlier episodes,
    each with the V of its own time, and `Lambda_h` the matrix of its features plus the identity.
    The rewards of an episode are seen in full once its policy is fixed, and they may be anything;
    transitions are only seen along the way. With `beta=0` nothing draws the policy to what it has
    not tried.

    Args:
        process: Its transitions are only drawn from; its reward is not read.
        rewards: Of each episode, from 0 to 1.
        beta: Width of the confidence region. The theorem takes a constant times
            `sqrt(d) H sqrt(log(d H K / delta))`, at which everything stays clipped for about
            beta^2 visits of each feature. Smaller ones, 2 on the combination lock, are ours; at
            1/2 its end is found late.
        eta: Step size of each run; `oppo_step_size` is the theorem's, with its constant.
        seed: Of the draws.

    Returns:
        Probabilities of the actions.

    Source:
        Cai, Yang, Jin and Wang 2019, arXiv:1912.05830, for transitions that are linear in
        known features of state, action and next state.
    """
    num_runs, (num_episodes, horizon, num_states, num_actions) = len(eta), rewards.shape
    dimension = process.features.shape[-1]
    by_next_state = process.features.movedim(2, 0).reshape(num_states, -1)
    draw = _Draws(process, num_runs, stream(seed, "laboratory", "oppo"))

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(num_runs, horizon, *shape, dtype=torch.float64)

    logprobs, estimate = zeros(num_states, num_actions), zeros(num_states, num_actions)
    # After the last step the value is 0, and so are the features of the last step.
    values = torch.zeros(num_runs, horizon + 1, num_states, dtype=torch.float64)
    features = zeros(num_states * num_actions, dimension)
    inverse = (
        torch.eye(dimension, dtype=torch.float64).div(_RIDGE).expand(num_runs, horizon, -1, -1)
    )
    inverse, moment = inverse.clone(), zeros(dimension)
    policies = logprobs.new_empty(num_runs, num_episodes, horizon, num_states, num_actions)
    which_run, which_step = torch.arange(num_runs)[:, None], torch.arange(horizon)[None]

    for k in range(num_episodes):
        logprobs = improved_policy(logprobs, estimate, eta[:, None, None, None])
        policy = logprobs.exp()
        policies[:, k] = policy

        weights = torch.einsum("rhde,rhe->rhd", inverse, moment)
        for h in reversed(range(horizon)):
            phi = (values[:, h + 1] @ by_next_state).view(num_runs, -1, dimension)
            ahead = (phi @ weights[:, h, :, None]).squeeze(-1)
            if beta > 0:
                ahead = ahead + beta * ((phi @ inverse[:, h]) * phi).sum(dim=-1).clamp(min=0).sqrt()
            ahead = ahead.clamp(0, horizon - 1 - h).view(num_runs, num_states, num_actions)
            features[:, h] = phi
            estimate[:, h] = rewards[k, h] + ahead
            values[:, h] = (policy[:, h] * estimate[:, h]).sum(dim=-1)

        states, actions = draw.episode(policy)
        seen = features[which_run, which_step, states[:, :-1] * num_actions + actions]
        target = values[:, 1:][which_run, which_step, states[:, 1:]]
        # (Lambda + phi phi^T)^-1 from Lambda^-1, by Sherman and Morrison.
        turned = torch.einsum("rhde,rhe->rhd", inverse, seen)
        shrunk = turned / (1 + (turned * seen).sum(dim=-1, keepdim=True))
        inverse -= shrunk[..., :, None] * turned[..., None, :]
        moment += seen * target[..., None]
    return policies


def episode_regret(
    process: EpisodicProcess,
    policies: Float[Tensor, "K H S A"],
    rewards: Float[Tensor, "K H S A"],
) -> Float[Tensor, " K"]:
    """Exact regret of each episode against the fixed policy that is best for all of them together.

        regret_k = V(best, r^k) - V(policy^k, r^k)
        best     = argmax over policies of sum over k of V(policy, r^k)

    A single episode may have a negative one; the sum over all K is the regret of the run.
    """
    best = best_episodic_policy(process, rewards.mean(dim=0)).expand_as(policies)
    return episodic_values(process, best, rewards) - episodic_values(process, policies, rewards)


def regret_growth(
    process: EpisodicProcess,
    rewards: Float[Tensor, "K H S A"],
    *,
    num_episodes: tuple[int, ...],
    beta: NonNegative,
    num_runs: int = 4,
    seed: int = 0,
) -> RegretGrowth:
    """Regret of OPPO after several numbers of episodes, each with the theorem's step size for it.

    The step size is set for a number of episodes that is known beforehand, so a growth like
    `sqrt(K)` is one across runs of different K and not along a single run.

    Args:
        process: See `oppo_policies`.
        rewards: As many as the largest number of episodes; shorter runs get the first of them.
        num_episodes: At least two.
        beta: See `oppo_policies`.
        num_runs: Independent runs for each number of episodes.
        seed: Of all of them.

    Source:
        Cai, Yang, Jin and Wang 2019, arXiv:1912.05830: regret of at most about `sqrt(d^2 H^4 K)`,
        up to logarithms.
    """
    eta = torch.tensor([oppo_step_size(process, k) for k in num_episodes], dtype=torch.float64)
    policies = oppo_policies(
        process, rewards, beta=beta, eta=eta.repeat_interleave(num_runs), seed=seed
    )
    regret = torch.empty(len(num_episodes), num_runs, dtype=torch.float64)
    for row, episodes in enumerate(num_episodes):
        for run in range(num_runs):
            played = policies[row * num_runs + run, :episodes]
            regret[row, run] = episode_regret(process, played, rewards[:episodes]).sum()
    log_episodes = torch.tensor(num_episodes, dtype=torch.float64).log()
    centered = log_episodes - log_episodes.mean()
    return RegretGrowth(num_episodes, regret, (centered @ regret.log()) / (centered @ centered))


class _Draws:
    """Episodes of R runs, drawn by the inverse of the distribution functions."""

    def __init__(self, process: EpisodicProcess, num_runs: int, generator: torch.Generator) -> None:
        self._initial = process.initial.cumsum(dim=0)
        horizon, num_states, num_actions, _ = process.transition.shape
        # Row (h, x, a) of the distribution functions of the next state.
        self._next = process.transition.cumsum(dim=-1).reshape(-1, num_states)
        rows = torch.arange(horizon * num_states).reshape(horizon, num_states)
        self._first_row = rows * num_actions
        self._num_runs, self._horizon = num_runs, horizon
        self._generator = generator

    def episode(self, policy: Tensor) -> tuple[Int[Tensor, "R states"], Int[Tensor, "R H"]]:
        """States at every step and after the last one, and actions at every step."""
        shape = (3, self._num_runs, self._horizon, 1)
        uniform = torch.rand(shape, generator=self._generator, dtype=torch.float64)
        # What would be done in every state at every step, and where it would lead.
        actions = (policy.cumsum(dim=-1)[..., :-1] < uniform[0, ..., None]).sum(dim=-1)
        laws = self._next[self._first_row + actions]
        next_states = (laws[..., :-1] < uniform[1, ..., None]).sum(dim=-1).tolist()
        first_states = (self._initial[:-1] < uniform[2, :, 0]).sum(dim=-1).tolist()
        paths = []
        for table, state in zip(next_states, first_states, strict=True):
            path = [state]
            for at_step in table:
                path.append(at_step[path[-1]])
            paths.append(path)
        states = torch.tensor(paths)
        return states, actions.gather(2, states[:, :-1, None]).squeeze(-1)
