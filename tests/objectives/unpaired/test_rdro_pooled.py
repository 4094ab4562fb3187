from math import exp, log

import pytest
import torch

from veritune.laboratory.distances import total_variation
from veritune.laboratory.minimize import minimize
from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import mixture_problem
from veritune.objectives.unpaired.rdro_pooled import rdro_pooled_loss


def test_rdro_pooled_loss_and_its_derivatives_are_the_known_numbers(labels):
    mean = rdro_pooled_loss(labels, alpha=0.39).mean()
    mean.backward()

    expected = (1.39 * log(1 + exp(1.0)) - 1.0 + 0.61 * log(1 + exp(-0.5))) / 2
    assert mean.item() == pytest.approx(expected)
    # The exact value is 0.5573105, which was printed rounded down.
    assert mean.item() == pytest.approx(0.557310, abs=1e-6)
    d_chosen, d_rejected = labels.completion.policy.grad.tolist()
    assert d_chosen == pytest.approx(0.008086, abs=1e-6)
    assert d_rejected == pytest.approx(0.115150, abs=1e-6)


def bias(alpha):
    problem = mixture_problem(num_completions=8, seed=0, desirable_fraction=alpha)
    found = minimize(population_loss(rdro_pooled_loss, problem, alpha=alpha), problem.reference)
    assert found.gradient_norm < 1e-9
    return total_variation(found.policy, problem.desirable)


def test_rdro_pooled_minimizer_is_the_desirable_law_at_one_half():
    assert bias(0.5) < 1e-6


@pytest.mark.parametrize("alpha", [0.2, 0.39, 0.8])
def test_rdro_pooled_minimizer_is_biased_away_from_one_half(alpha):
    assert bias(alpha) > 1e-2


def test_rdro_pooled_ratio_of_one_completion_is_the_documented_one():
    """Pointwise, without normalization: stationarity in the log-ratio of a single completion."""
    alpha, desirable, undesirable = 0.3, 0.2, 0.5
    ratio = desirable / (alpha * desirable + (1 - alpha) ** 2 / alpha * undesirable)
    log_ratio = torch.tensor(log(ratio), dtype=torch.float64, requires_grad=True)
    softplus = torch.log1p(log_ratio.exp())

    (
        alpha * desirable * ((1 + alpha) * softplus - log_ratio)
        + (1 - alpha) * undesirable * (1 - alpha) * softplus
    ).backward()

    assert log_ratio.grad.item() == pytest.approx(0, abs=1e-12)
