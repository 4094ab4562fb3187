"""Lee et al. 2021, arXiv:2106.10783: the dual against the primal, solved by another way."""

from collections.abc import Callable

import pytest
import torch

from veritune.laboratory.decision_processes import (
    DecisionProcess,
    bandit,
    flow_gap,
    occupancy,
    optimal_policy,
    random_policy,
    random_process,
)
from veritune.laboratory.optidice import optidice_dual, optimal_occupancy, regularized_reward
from veritune.objectives.divergences import CHI_SQUARE, KL, SOFT_CHI_SQUARE

DIVERGENCES = {"kl": KL, "chi_square": CHI_SQUARE, "soft_chi_square": SOFT_CHI_SQUARE}
GENERATORS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "kl": lambda x: x * x.log(),
    "chi_square": lambda x: 0.5 * (x - 1) ** 2,
    "soft_chi_square": lambda x: torch.where(x < 1, x * (x.log() - 1) + 1, 0.5 * (x - 1) ** 2),
}
every_divergence = pytest.mark.parametrize("name", DIVERGENCES)
SEEDS = (0, 1, 2)


def given(seed: int) -> tuple[DecisionProcess, torch.Tensor]:
    process = random_process(5, 3, seed, gamma=0.9)
    return process, occupancy(process, random_policy(5, 3, seed))


def primal_by_barrier(
    process: DecisionProcess,
    data: torch.Tensor,
    alpha: float,
    generator: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, float]:
    """The best occupancy, by an interior-point search among occupancies, and a bound on its error.

    It never meets a dual variable of ours: steps stay where the flow gap is zero, and a barrier
    that is lowered to 1e-13 keeps visits positive. Its optimum is below the true one by at most
    the barrier times the number of visits.
    """
    size, actions = data.shape
    leave = torch.eye(size, dtype=torch.float64).repeat_interleave(actions, dim=0)
    constraint = leave - process.gamma * process.transition.reshape(-1, size)
    along = torch.linalg.svd(constraint, full_matrices=True).U[:, size:]
    law, reward = data.flatten(), process.reward.flatten()

    def cost(visits: torch.Tensor, barrier: float) -> torch.Tensor:
        kept = alpha * (law * generator(visits / law)).sum() - visits @ reward
        return kept - barrier * visits.log().sum()

    uniform = torch.full_like(data, 1 / actions)
    visits = occupancy(process, uniform).flatten()
    for exponent in range(0, 27):
        barrier = 10 ** (-exponent / 2)
        for _ in range(60):
            point = visits.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(cost(point, barrier), point)
            hessian = torch.autograd.functional.hessian(lambda v, b=barrier: cost(v, b), visits)
            force = along.T @ gradient
            step = -along @ torch.linalg.solve(along.T @ hessian @ along, force)
            length = 1.0
            while bool((visits + length * step <= 0).any()):
                length /= 2
            now = cost(visits, barrier)
            while length > 1e-10 and cost(visits + length * step, barrier) > now + 1e-15:
                length /= 2
            visits = visits + length * step
            if float(gradient @ step) > -1e-15:
                break
    return visits.reshape(data.shape), 1e-13 * visits.numel()


@every_divergence
@pytest.mark.parametrize("seed", SEEDS)
def test_the_search_ends_at_an_occupancy_that_sums_to_one(name, seed):
    process, data = given(seed)

    found = optimal_occupancy(process, data, alpha=0.3, divergence=DIVERGENCES[name])

    assert found.gradient_norm < 1e-10
    assert float(flow_gap(process, found.occupancy).abs().max()) < 1e-10
    assert float(found.occupancy.sum()) == pytest.approx(1, abs=1e-10)
    assert bool((found.weight >= 0).all())


@every_divergence
@pytest.mark.parametrize("seed", SEEDS)
def test_the_dual_equals_the_primal(name, seed):
    process, data = given(seed)
    found = optimal_occupancy(process, data, alpha=0.3, divergence=DIVERGENCES[name])

    visits = found.occupancy.clamp(min=1e-300)
    primal = (visits * process.reward).sum() - 0.3 * (data * GENERATORS[name](visits / data)).sum()

    assert found.primal == pytest.approx(float(primal), abs=1e-12)
    assert found.dual == pytest.approx(found.primal, abs=1e-9)


@every_divergence
@pytest.mark.parametrize("seed", SEEDS)
def test_the_dual_is_above_the_primal_everywhere(name, seed):
    process, data = given(seed)
    known = {"alpha": 0.3, "divergence": DIVERGENCES[name]}
    visits = occupancy(process, random_policy(5, 3, seed + 10))
    generator = torch.Generator().manual_seed(seed)

    primal = regularized_reward(process, data, visits, **known)

    for _ in range(20):
        potential = torch.randn(5, generator=generator, dtype=torch.float64)
        assert float(optidice_dual(process, data, potential, **known)) > primal


@every_divergence
@pytest.mark.parametrize("seed", SEEDS)
def test_the_extracted_policy_has_the_optimal_occupancy(name, seed):
    process, data = given(seed)

    found = optimal_occupancy(process, data, alpha=0.3, divergence=DIVERGENCES[name])

    assert torch.allclose(occupancy(process, found.policy), found.occupancy, rtol=0, atol=1e-9)


@every_divergence
@pytest.mark.parametrize("alpha", [0.05, 0.3, 3.0])
def test_an_interior_point_search_of_the_primal_finds_the_same_occupancy(name, alpha):
    process, data = given(0)

    found = optimal_occupancy(process, data, alpha=alpha, divergence=DIVERGENCES[name])
    visits, error = primal_by_barrier(process, data, alpha, GENERATORS[name])

    assert float(flow_gap(process, visits).abs().max()) < 1e-12
    primal = regularized_reward(process, data, visits, alpha=alpha, divergence=DIVERGENCES[name])
    assert found.primal == pytest.approx(primal, abs=error + 1e-11)
    assert torch.allclose(visits, found.occupancy, rtol=0, atol=1e-5)


@every_divergence
@pytest.mark.parametrize("seed", SEEDS)
def test_no_random_policy_earns_more_of_the_regularized_reward(name, seed):
    process, data = given(seed)
    known = {"alpha": 0.3, "divergence": DIVERGENCES[name]}
    found = optimal_occupancy(process, data, **known)

    for other in range(200):
        visits = occupancy(process, random_policy(5, 3, other))
        assert regularized_reward(process, data, visits, **known) < found.primal


@every_divergence
def test_policies_near_the_extracted_one_earn_less_by_the_square_of_the_way(name):
    process, data = given(0)
    known = {"alpha": 0.3, "divergence": DIVERGENCES[name]}
    found = optimal_occupancy(process, data, **known)

    def loss_at(share: float) -> float:
        policy = (1 - share) * found.policy + share * random_policy(5, 3, 7) * (found.policy > 0)
        visits = occupancy(process, policy / policy.sum(dim=-1, keepdim=True))
        return found.primal - regularized_reward(process, data, visits, **known)

    assert loss_at(2e-5) > loss_at(1e-5) > 0
    assert loss_at(2e-5) / loss_at(1e-5) == pytest.approx(4, rel=0.05)


@every_divergence
@pytest.mark.parametrize("seed", SEEDS)
def test_a_small_alpha_approaches_the_best_policy_by_no_more_than_alpha_times_its_divergence(
    name, seed
):
    process, data = given(seed)
    divergence = DIVERGENCES[name]
    best = occupancy(process, optimal_policy(process))
    distance = float((data * divergence.generator(best / data)).sum())
    most = float((best * process.reward).sum())

    for alpha in (0.1, 0.01, 0.001):
        found = optimal_occupancy(process, data, alpha=alpha, divergence=divergence)
        assert found.gradient_norm < 1e-10
        earned = float((found.occupancy * process.reward).sum())
        assert most - alpha * distance <= earned + 1e-10
        assert earned <= most + 1e-10


@every_divergence
def test_a_large_alpha_stays_at_the_occupancy_of_the_data(name):
    process, data = given(0)

    near = optimal_occupancy(process, data, alpha=1e4, divergence=DIVERGENCES[name])
    far = optimal_occupancy(process, data, alpha=0.3, divergence=DIVERGENCES[name])

    assert torch.allclose(near.occupancy, data, rtol=0, atol=1e-4)
    assert not torch.allclose(far.occupancy, data, rtol=0, atol=1e-2)


def test_a_bandit_with_kl_is_the_data_tilted_by_the_reward():
    """One state, no future: a prompt and its completions."""
    reward = torch.tensor([0.3, -1.0, 2.0, 0.7], dtype=torch.float64)
    reference = torch.tensor([[0.4, 0.3, 0.1, 0.2]], dtype=torch.float64)

    found = optimal_occupancy(bandit(reward), reference, alpha=0.5, divergence=KL)

    tilted = reference[0] * (reward / 0.5).exp()
    assert torch.allclose(found.policy[0], tilted / tilted.sum(), rtol=0, atol=1e-12)
    # w = exp((r - nu) / alpha - 1), and the value of the optimum is alpha log Z.
    assert found.primal == pytest.approx(0.5 * float(tilted.sum().log()), abs=1e-12)

    other = optimal_occupancy(bandit(reward), reference, alpha=0.5, divergence=SOFT_CHI_SQUARE)
    assert not torch.allclose(other.policy[0], tilted / tilted.sum(), rtol=0, atol=1e-2)


def test_soft_chi_square_tilts_a_bandit_linearly_above_one_and_exponentially_below():
    reward = torch.tensor([0.3, -1.0, 2.0, 0.7], dtype=torch.float64)
    reference = torch.tensor([[0.4, 0.3, 0.1, 0.2]], dtype=torch.float64)

    found = optimal_occupancy(bandit(reward), reference, alpha=0.5, divergence=SOFT_CHI_SQUARE)

    slopes = ((reward - found.potential) / 0.5).tolist()
    for weight, slope in zip(found.weight[0].tolist(), slopes, strict=True):
        expected = 1 + slope if slope >= 0 else 2.718281828459045**slope
        assert weight == pytest.approx(expected)
    assert float((found.weight * reference).sum()) == pytest.approx(1, abs=1e-12)


def test_chi_square_gives_up_what_is_far_below_and_the_others_do_not():
    process, data = given(0)

    weights = {
        name: optimal_occupancy(process, data, alpha=0.3, divergence=divergence).weight
        for name, divergence in DIVERGENCES.items()
    }

    assert float(weights["chi_square"].min()) == 0
    assert float(weights["kl"].min()) > 0
    assert float(weights["soft_chi_square"].min()) > 0


def test_the_certificate_shows_that_a_search_was_cut_short():
    process, data = given(0)

    found = optimal_occupancy(process, data, alpha=0.3, divergence=KL, max_steps=2)

    assert found.num_steps == 2
    assert found.gradient_norm > 1e-6
    assert found.dual - found.primal > 1e-6


def test_data_without_an_action_are_refused():
    process, data = given(0)
    data[0, 0] = 0

    with pytest.raises(AssertionError, match="every action in every state"):
        optimal_occupancy(process, data, alpha=0.3, divergence=KL)
