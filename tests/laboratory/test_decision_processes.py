"""Values and occupancies against sums over paths, and the two sides of their identities."""

import dataclasses
from itertools import product

import pytest
import torch

from veritune.laboratory.decision_processes import (
    DecisionProcess,
    action_values,
    bandit,
    best_episodic_policy,
    combination_lock,
    episodic_values,
    flow_gap,
    indicator_features,
    lock_features,
    occupancy,
    optimal_policy,
    policy_of_occupancy,
    random_linear_process,
    random_policy,
    random_process,
    state_values,
)

SEEDS = (0, 1, 2)


def roll_out(process: DecisionProcess, policy: torch.Tensor, num_steps: int) -> torch.Tensor:
    """Discounted visits of the first steps, step by step: (1 - gamma) * sum of gamma^t d_t."""
    law = process.initial
    visits = torch.zeros_like(policy)
    for t in range(num_steps):
        here = law[:, None] * policy
        visits += (1 - process.gamma) * process.gamma**t * here
        law = torch.einsum("xa,xay->y", here, process.transition)
    return visits


@pytest.mark.parametrize("seed", SEEDS)
def test_occupancy_is_the_discounted_share_of_visits(seed):
    process, policy = random_process(5, 3, seed, gamma=0.8), random_policy(5, 3, seed)

    found = occupancy(process, policy)

    # 0.8 ** 200 is 4e-20.
    assert torch.allclose(found, roll_out(process, policy, 200), rtol=0, atol=1e-14)
    assert float(found.sum()) == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_reward_under_the_occupancy_is_the_value_of_the_policy(seed):
    process, policy = random_process(5, 3, seed), random_policy(5, 3, seed)

    value = process.initial @ state_values(process, policy)
    rewarded = (occupancy(process, policy) * process.reward).sum() / (1 - process.gamma)

    assert float(value) == pytest.approx(float(rewarded), abs=1e-12)


def test_values_of_states_and_actions_satisfy_the_bellman_equation():
    process, policy = random_process(4, 3, 0), random_policy(4, 3, 0)
    values = state_values(process, policy)

    for x, a in product(range(4), range(3)):
        ahead = sum(float(process.transition[x, a, y]) * float(values[y]) for y in range(4))
        expected = float(process.reward[x, a]) + 0.9 * ahead
        assert float(action_values(process, values)[x, a]) == pytest.approx(expected)
    assert torch.allclose((policy * action_values(process, values)).sum(dim=-1), values)


def test_the_flow_gap_is_zero_for_occupancies_and_for_nothing_else_that_sums_to_one():
    process, policy = random_process(5, 3, 0), random_policy(5, 3, 0)

    assert float(flow_gap(process, occupancy(process, policy)).abs().max()) < 1e-15
    assert float(flow_gap(process, policy / 5).abs().max()) > 1e-2


def test_the_policy_of_an_occupancy_is_the_one_that_has_it():
    process, policy = random_process(5, 3, 0), random_policy(5, 3, 0)

    assert torch.allclose(policy_of_occupancy(occupancy(process, policy)), policy)


def test_the_policy_of_an_occupancy_is_uniform_where_nobody_goes():
    visits = torch.tensor([[0.25, 0.75], [0.0, 0.0]], dtype=torch.float64)

    assert policy_of_occupancy(visits).tolist() == [[0.25, 0.75], [0.5, 0.5]]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_optimal_policy_is_the_best_deterministic_one_in_every_state(seed):
    process = random_process(4, 3, seed)
    values = state_values(process, optimal_policy(process))

    for choice in product(range(3), repeat=4):
        policy = torch.nn.functional.one_hot(torch.tensor(choice), 3).double()
        assert bool((state_values(process, policy) <= values + 1e-12).all())


def test_a_bandit_has_the_mean_reward_as_its_value():
    reward = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    policy = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64)

    assert float(state_values(bandit(reward), policy)) == 0.5 * 1 + 0.25 * 2 + 0.25 * 4
    assert torch.equal(occupancy(bandit(reward), policy), policy)


def test_the_value_of_an_episode_is_the_sum_over_all_its_paths():
    process = random_linear_process(num_states=2, num_actions=2, horizon=3, dimension=2, seed=0)
    policy = torch.stack([random_policy(2, 2, seed) for seed in range(3)])

    expected = 0.0
    for states in product(range(2), repeat=3):
        for actions in product(range(2), repeat=3):
            probability, total = float(process.initial[states[0]]), 0.0
            for h, (x, a) in enumerate(zip(states, actions, strict=True)):
                probability *= float(policy[h, x, a])
                total += float(process.reward[h, x, a])
                if h < 2:
                    probability *= float(process.transition[h, x, a, states[h + 1]])
            expected += probability * total

    found = episodic_values(process, policy[None], process.reward[None])
    assert found.tolist() == [pytest.approx(expected)]


def test_backward_induction_finds_the_best_policy_of_an_episode():
    process = random_linear_process(num_states=2, num_actions=2, horizon=2, dimension=2, seed=1)
    best = episodic_values(process, best_episodic_policy(process, process.reward), process.reward)

    choices = torch.tensor(list(product(range(2), repeat=4))).reshape(-1, 2, 2)
    policies = torch.nn.functional.one_hot(choices, 2).double()
    values = episodic_values(process, policies, process.reward.expand_as(policies))

    assert float(best) == pytest.approx(float(values.max()))
    assert float(values.max() - values.min()) > 0.1


def test_the_combination_lock_opens_to_its_actions_alone():
    lock = combination_lock(num_actions=3, horizon=4, distraction=0.1)
    uniform = torch.full_like(lock.reward, 1 / 3)
    best = best_episodic_policy(lock, lock.reward)

    assert best[:, 0].argmax(dim=-1).tolist() == [0, 0, 0, 0]
    assert float(episodic_values(lock, best, lock.reward)) == 1
    # At step h one is on the way with probability 3^-h: the end, and four chances of distraction.
    expected = 3**-4 + sum(0.1 * 3 ** -(h + 1) for h in range(4))
    assert float(episodic_values(lock, uniform, lock.reward)) == pytest.approx(expected)


@pytest.mark.parametrize(
    "process",
    [
        combination_lock(3, 4),
        dataclasses.replace(combination_lock(3, 4), features=lock_features(3)),
        random_linear_process(4, 3, 2, 3, seed=0),
    ],
    ids=["indicators", "lock", "mixture"],
)
def test_the_transitions_of_a_step_are_linear_in_the_features(process):
    matrix = process.features.reshape(-1, process.features.shape[-1])

    for transition in process.transition:
        flat = transition.reshape(-1, 1)
        theta = torch.linalg.lstsq(matrix, flat).solution
        assert torch.allclose(matrix @ theta, flat, atol=1e-12)
        assert torch.allclose(transition.sum(dim=-1), torch.ones(()).double())


def test_the_transitions_of_another_process_are_not_linear_in_few_features():
    matrix = random_linear_process(4, 3, 2, 3, seed=0).features.reshape(-1, 3)
    other = random_process(4, 3, 0).transition.reshape(-1, 1)

    theta = torch.linalg.lstsq(matrix, other).solution

    assert float((matrix @ theta - other).abs().max()) > 0.1


def test_indicators_tell_all_transitions_apart():
    features = indicator_features(2, 3)

    assert features.shape == (2, 3, 2, 12)
    assert torch.equal(features.reshape(12, 12), torch.eye(12, dtype=torch.float64))


def test_the_seed_decides_the_process():
    first, again, other = (random_process(4, 2, seed) for seed in (0, 0, 1))

    assert torch.equal(first.transition, again.transition)
    assert not torch.equal(first.transition, other.transition)


def test_a_discount_of_one_is_refused():
    one = torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(AssertionError, match="discount"):
        DecisionProcess(transition=one[None], reward=one, initial=one[0], gamma=1.0)
