from math import exp, log

import pytest

from veritune.laboratory.distances import total_variation
from veritune.laboratory.minimize import minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import bradley_terry_problem
from veritune.objectives.scored.exo_rw import exo_rw_loss, exo_rw_optimum


def test_exo_rw_loss_and_its_derivatives_are_the_known_numbers(groups):
    loss = exo_rw_loss(groups, beta_pi=0.5, beta_r=0.5)
    loss.sum().backward()

    q = 1 / (1 + exp(-0.5 * 1.5))
    r = 1 / (1 + exp(-1.5 / 0.5))
    assert loss.item() == pytest.approx(q * log(q / r) + (1 - q) * log((1 - q) / (1 - r)))
    assert loss.item() == pytest.approx(0.383564, abs=5e-7)
    chosen, rejected = groups.completions.policy.grad[0].tolist()
    assert chosen == pytest.approx(0.5 * q * (1 - q) * (0.75 - 3.0))
    assert chosen == pytest.approx(-0.245132, abs=1e-6)
    assert rejected == pytest.approx(0.245132, abs=1e-6)


@pytest.mark.parametrize("num_completions", [1, 3, 4])
def test_exo_rw_loss_of_any_number_of_completions_is_the_reverse_kl_of_their_laws(
    group_of, num_completions
):
    log_ratio = [0.4, -1.0, 0.1, 2.1][:num_completions]
    scores = [1.0, 2.0, -1.0, 0.3][:num_completions]
    group = group_of(log_ratio, scores)

    loss = exo_rw_loss(group, beta_pi=0.7, beta_r=2.0)
    loss.sum().backward()

    policy = [exp(0.7 * g) / sum(exp(0.7 * h) for h in log_ratio) for g in log_ratio]
    reward = [exp(s / 2) / sum(exp(u / 2) for u in scores) for s in scores]
    surplus = [log(p / r) for p, r in zip(policy, reward, strict=True)]
    expected = sum(p * a for p, a in zip(policy, surplus, strict=True))
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    # The force on a completion is its surplus over the mean, in proportion to its probability.
    assert group.completions.policy.grad[0].tolist() == pytest.approx(
        [0.7 * p * (a - expected) for p, a in zip(policy, surplus, strict=True)], abs=1e-12
    )


@pytest.mark.parametrize("group_size", [2, 3])
def test_exo_rw_minimizer_tilts_the_reference_by_reward_over_both_temperatures(group_size):
    problem = bradley_terry_problem(num_completions=5, seed=0)
    loss = population_loss(exo_rw_loss, problem, group_size=group_size, beta_pi=0.7, beta_r=0.9)

    found = minimize(loss, problem.reference)

    assert found.gradient_norm < 1e-9
    assert total_variation(found.policy, exo_rw_optimum(problem, beta_pi=0.7, beta_r=0.9)) < 1e-6
    assert total_variation(found.policy, exo_rw_optimum(problem, beta_pi=1.0, beta_r=0.9)) > 1e-2
