"""Cai, Yang, Jin and Wang 2019, arXiv:1912.05830: optimism finds what greed does not."""

import dataclasses
from math import log, sqrt

import pytest
import torch

from veritune.laboratory import oppo
from veritune.laboratory.decision_processes import (
    best_episodic_policy,
    combination_lock,
    episodic_values,
    lock_features,
    random_linear_process,
)
from veritune.laboratory.distances import kl
from veritune.laboratory.oppo import (
    episode_regret,
    improved_policy,
    oppo_policies,
    oppo_step_size,
    regret_growth,
    three_point_residual,
)
from veritune.seeds import stream

NUM_EPISODES = (2000, 4000, 8000)


def log_law(seed: int, size: int = 6) -> torch.Tensor:
    logits = torch.randn(size, generator=stream(seed, "law"), dtype=torch.float64)
    return torch.log_softmax(2 * logits, dim=-1)


@pytest.mark.parametrize("seed", range(20))
def test_the_three_point_identity_holds_for_any_values_and_any_other_policy(seed):
    policy, other = log_law(3 * seed), log_law(3 * seed + 1)
    values = 5 * torch.randn(6, generator=stream(seed, "values"), dtype=torch.float64)

    assert abs(three_point_residual(policy, values, other, eta=0.7)) < 1e-13

    # It is no identity without its last term, nor after a step of another size.
    improved = improved_policy(policy, values, 0.7)
    gain = 0.7 * float((values * (other.exp() - improved.exp())).sum())
    assert abs(gain - (kl(other, policy) - kl(other, improved))) > 1e-3
    longer = improved_policy(policy, values, 0.8)
    gain = 0.7 * float((values * (other.exp() - longer.exp())).sum())
    assert abs(gain - (kl(other, policy) - kl(other, longer) - kl(longer, policy))) > 1e-3


def test_the_step_size_is_that_of_the_theorem():
    lock = combination_lock(num_actions=4, horizon=6)

    assert oppo_step_size(lock, 100) == pytest.approx(sqrt(2 * log(4) / (6**2 * 100)))


class KnownPaths:
    """Stands in for the draws: walks over states and actions that the test knows."""

    def __init__(self, process, num_runs, generator):
        horizon, num_states, num_actions, _ = process.transition.shape
        self.sizes = (num_states, num_actions, horizon)
        self.generator = torch.Generator().manual_seed(5)
        self.walks = []

    def episode(self, policy):
        num_states, num_actions, horizon = self.sizes
        states = torch.randint(num_states, (1, horizon + 1), generator=self.generator)
        actions = torch.randint(num_actions, (1, horizon), generator=self.generator)
        self.walks.append((states[0].tolist(), actions[0].tolist()))
        return states, actions


# At the widest bonus the clipping decides.
@pytest.mark.parametrize("beta", [0.0, 0.4, 4.0])
def test_the_policies_are_those_of_the_algorithm_written_out(beta, monkeypatch):
    """Every regression is solved anew from all earlier episodes, by sums over each of them."""
    drawn = []

    def known_paths(*given):
        drawn.append(KnownPaths(*given))
        return drawn[0]

    monkeypatch.setattr(oppo, "_Draws", known_paths)
    horizon, states, actions, dimension, episodes, eta = 3, 4, 2, 3, 6, 0.8
    process = random_linear_process(states, actions, horizon, dimension, seed=0)
    rewards = torch.rand(
        episodes, horizon, states, actions, generator=stream(0, "rewards"), dtype=torch.float64
    )

    one_run = torch.tensor([eta], dtype=torch.float64)
    found = oppo_policies(process, rewards, beta=beta, eta=one_run, seed=0)[0]
    walks = drawn[0].walks

    logits = torch.zeros(horizon, states, actions, dtype=torch.float64)
    q = torch.zeros_like(logits)
    history = []  # of each episode: its values at every step, its states and its actions
    for k in range(episodes):
        logits = logits + eta * q
        policy = logits.exp() / logits.exp().sum(dim=-1, keepdim=True)
        assert torch.allclose(found[k], policy, rtol=0, atol=1e-12)

        values = torch.zeros(horizon + 1, states, dtype=torch.float64)
        for h in (2, 1, 0):
            gram = torch.eye(dimension, dtype=torch.float64)
            moment = torch.zeros(dimension, dtype=torch.float64)
            for old_values, path, moves in history:
                phi = process.features[path[h], moves[h]].T @ old_values[h + 1]
                gram += torch.outer(phi, phi)
                moment += phi * old_values[h + 1, path[h + 1]]
            w = torch.linalg.solve(gram, moment)
            for x in range(states):
                for a in range(actions):
                    phi = process.features[x, a].T @ values[h + 1]
                    bonus = beta * sqrt(float(phi @ torch.linalg.solve(gram, phi)))
                    # With three steps, two of them can still earn after the first.
                    ahead = min(max(float(phi @ w) + bonus, 0.0), [2.0, 1.0, 0.0][h])
                    q[h, x, a] = rewards[k, h, x, a] + ahead
                values[h, x] = sum(policy[h, x, a] * q[h, x, a] for a in range(actions))
        history.append((values, *walks[k]))


def test_episodes_are_drawn_from_the_policy_and_the_transitions():
    process = random_linear_process(num_states=3, num_actions=2, horizon=2, dimension=2, seed=0)
    num_runs = 20_000
    law = torch.softmax(torch.arange(12.0).sin(), 0).double().reshape(2, 3, 2)
    policy = law / law.sum(dim=-1, keepdim=True)

    draws = oppo._Draws(process, num_runs, stream(0, "draws"))
    states, actions = draws.episode(policy.expand(num_runs, -1, -1, -1))

    code = ((states[:, 0] * 2 + actions[:, 0]) * 3 + states[:, 1]) * 2 + actions[:, 1]
    counts = torch.bincount(code * 3 + states[:, 2], minlength=108).reshape(3, 2, 3, 2, 3)
    expected = num_runs * torch.einsum(
        "x,xa,xay,yb,ybz->xaybz",
        process.initial,
        policy[0],
        process.transition[0],
        policy[1],
        process.transition[1],
    )
    # Chi-square with 107 degrees of freedom: mean 107, deviation 15.
    assert 50 < float(((counts - expected) ** 2 / expected).sum()) < 170


def test_the_regret_of_the_best_fixed_policy_is_zero_and_of_others_positive():
    process = random_linear_process(num_states=3, num_actions=2, horizon=3, dimension=2, seed=0)
    rewards = torch.rand(5, 3, 3, 2, generator=stream(0, "rewards"), dtype=torch.float64)
    best = best_episodic_policy(process, rewards.mean(dim=0)).expand(5, -1, -1, -1)
    uniform = torch.full_like(best, 0.5)

    assert episode_regret(process, best, rewards).tolist() == pytest.approx([0] * 5)
    lost = episodic_values(process, best, rewards) - episodic_values(process, uniform, rewards)
    assert torch.allclose(episode_regret(process, uniform, rewards), lost)
    assert float(lost.sum()) > 0


def fixed(process, num_episodes=NUM_EPISODES[-1]):
    return process.reward.expand(num_episodes, -1, -1, -1)


def linear_lock():
    """The lock, to one who knows all of it but the combination: 5 features instead of 20."""
    return dataclasses.replace(combination_lock(), features=lock_features(5))


@pytest.mark.slow
def test_regret_with_the_bonus_grows_like_the_square_root_of_the_episodes():
    lock = combination_lock()

    growth = regret_growth(lock, fixed(lock), num_episodes=NUM_EPISODES, beta=2.0)

    low, high = growth.slope_interval
    assert 0.4 < low < 0.5 < high < 0.6
    # An episode on the way to the end earns 1; most were.
    assert bool((growth.regret[-1] < 0.4 * 8000).all())


@pytest.mark.slow
def test_regret_without_the_bonus_grows_linearly():
    lock = combination_lock()

    growth = regret_growth(lock, fixed(lock), num_episodes=NUM_EPISODES, beta=0.0)

    low, high = growth.slope_interval
    assert 0.95 < low < high < 1.01
    assert bool((growth.regret[-1] > 0.9 * 8000).all())


@pytest.mark.slow
def test_a_bonus_so_wide_that_all_is_clipped_explores_nothing():
    """The constant of the theorem, sqrt(d) H sqrt(log …), is for far more episodes than these."""
    lock = linear_lock()

    growth = regret_growth(
        lock, fixed(lock, 4000), num_episodes=(1000, 2000, 4000), beta=200.0, num_runs=2
    )

    assert growth.slope_interval[0] > 0.95


@pytest.mark.slow
def test_regret_on_a_lock_that_is_linear_in_five_features_is_sublinear_with_the_bonus_alone():
    lock = linear_lock()
    known = {"num_episodes": (1000, 2000, 4000), "num_runs": 2}

    bold = regret_growth(lock, fixed(lock, 4000), beta=2.0, **known)
    meek = regret_growth(lock, fixed(lock, 4000), beta=0.0, **known)

    assert bold.slope_interval[1] < 0.6 < 0.95 < meek.slope_interval[0]
    assert bool((3 * bold.regret[-1] < 2 * meek.regret[-1]).all())


@pytest.mark.slow
def test_the_bonus_pays_where_the_reward_is_a_coin_tossed_in_every_episode():
    """At the end of the lock either of two actions earns 1, as a coin decides."""
    lock = linear_lock()
    heads = torch.rand(4000, generator=stream(0, "coin")) < 0.5
    rewards = fixed(lock, 4000).clone()
    rewards[:, -1, 0, 0] = heads.double()
    rewards[:, -1, 0, 1] = 1 - heads.double()
    known = {"num_episodes": (1000, 2000, 4000), "num_runs": 2}

    bold = regret_growth(lock, rewards, beta=2.0, **known)
    meek = regret_growth(lock, rewards, beta=0.0, **known)

    assert bold.slope_interval[1] < 0.8 < 0.9 < meek.slope_interval[0]


def test_regret_grows_less_than_linearly_where_nothing_needs_exploring():
    process = random_linear_process(num_states=4, num_actions=3, horizon=5, dimension=3, seed=0)

    growth = regret_growth(
        process, fixed(process, 2000), num_episodes=(500, 1000, 2000), beta=0.5, num_runs=2
    )

    assert growth.slope_interval[1] < 0.75


def test_the_slope_of_three_points_is_that_between_the_outer_two():
    process = random_linear_process(num_states=2, num_actions=2, horizon=2, dimension=2, seed=0)

    growth = regret_growth(
        process, fixed(process, 40), num_episodes=(10, 20, 40), beta=0.0, num_runs=3
    )

    for run, slope in enumerate(growth.slopes.tolist()):
        # At equal distances of log K the middle one does not count.
        first, _, last = growth.regret[:, run].log().tolist()
        assert slope == pytest.approx((last - first) / log(4))


def test_the_seed_decides_the_run_and_each_run_has_its_own_draws():
    lock = combination_lock(num_actions=2, horizon=3)
    eta = torch.tensor([0.5, 0.5], dtype=torch.float64)

    one, again, other = (
        oppo_policies(lock, fixed(lock, 30), beta=1.0, eta=eta, seed=seed) for seed in (0, 0, 1)
    )

    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one[0], one[1])
