"""The exact expectation against sums written out by hand."""

import dataclasses
from math import log

import pytest
import torch

from veritune.laboratory.population import population_loss
from veritune.laboratory.problems import bradley_terry_problem, mixture, mixture_problem
from veritune.logprobs import PairedLogProbs, UnpairedLogProbs
from veritune.objectives.optimum import FiniteProblem
from veritune.objectives.paired.ipo import ipo_loss
from veritune.objectives.sampled.ppo import ppo_loss
from veritune.objectives.scored.dpo_rw import dpo_rw_loss
from veritune.objectives.sft import sft_loss
from veritune.objectives.unpaired.ddro import ddro_loss
from veritune.objectives.unpaired.kto import kto_loss
from veritune.objectives.unpaired.rdro import rdro_loss


@pytest.fixture
def policy():
    return torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()


def test_pairs_are_weighted_by_pair_law_and_preference(policy):
    problem = bradley_terry_problem(num_completions=3, seed=0)
    law = torch.tensor([[0.0, 0.5, 0.1], [0.1, 0.0, 0.0], [0.0, 0.3, 0.0]], dtype=torch.float64)
    problem = dataclasses.replace(problem, pair_law=law)
    g = (policy - problem.reference).tolist()
    wins = problem.preferences.tolist()

    expected = sum(
        law[i, j].item()
        * (wins[i][j] * (g[i] - g[j] - 1) ** 2 + wins[j][i] * (g[j] - g[i] - 1) ** 2)
        for i in range(3)
        for j in range(3)
    )

    assert population_loss(ipo_loss, problem, tau=0.5)(policy).item() == pytest.approx(expected)


def test_labels_are_weighted_by_the_fraction_and_the_law_of_the_label(policy):
    problem = mixture_problem(num_completions=3, seed=0, desirable_fraction=0.3)
    softplus = torch.log1p((policy - problem.reference).exp())
    desirable, undesirable = problem.desirable.exp(), problem.undesirable.exp()

    # The sum of both class means, whatever the fraction.
    expected = (desirable * (1.4 * softplus - (policy - problem.reference))).sum() + (
        undesirable * 0.6 * softplus
    ).sum()

    found = population_loss(rdro_loss, problem, alpha=0.4)(policy)
    assert found.item() == pytest.approx(expected.item())


def test_an_example_that_cannot_occur_contributes_nothing_even_if_its_loss_is_infinite():
    desirable = torch.tensor([0.6, 0.4, 0.0], dtype=torch.float64).log()
    undesirable = torch.tensor([0.0, 0.5, 0.5], dtype=torch.float64).log()
    problem = FiniteProblem(
        reference=mixture(desirable, undesirable, 0.4),
        desirable=desirable,
        undesirable=undesirable,
        desirable_fraction=0.4,
    )

    # At p+ the first completion, never undesirable, has the ratio 1 / t, where DDRO ends.
    policy = torch.tensor([0.6, 0.39, 0.01], dtype=torch.float64).log()
    assert float(policy[0] - problem.reference[0]) >= -log(0.4) - 1e-12

    nudged = policy + torch.tensor([1e-9, 0.0, 0.0], dtype=torch.float64)
    assert population_loss(ddro_loss, problem, t=0.4)(nudged).isfinite()


def test_the_mismatched_log_ratio_is_the_kl_to_the_reference(policy):
    problem = mixture_problem(num_completions=3, seed=0, desirable_fraction=0.3)
    log_ratio = policy - problem.reference
    z0 = (policy.exp() * log_ratio).sum()

    expected = (0.3 * problem.desirable.exp() * torch.sigmoid(z0 - log_ratio)).sum() + (
        0.7 * problem.undesirable.exp() * torch.sigmoid(log_ratio - z0)
    ).sum()

    found = population_loss(kto_loss, problem, beta=1.0)(policy)
    assert found.item() == pytest.approx(expected.item())


def test_groups_are_independent_draws_from_the_reference(policy):
    problem = bradley_terry_problem(num_completions=3, seed=0)
    g, r = policy - problem.reference, problem.reward
    law = problem.reference.exp().tolist()

    expected = 0.0
    for i in range(3):
        for j in range(3):
            group = torch.tensor([i, j])
            p_reward, log_p = torch.softmax(r[group], 0), torch.log_softmax(g[group], 0)
            expected -= law[i] * law[j] * float((p_reward * log_p).sum())

    found = population_loss(dpo_rw_loss, problem, group_size=2, beta_pi=1.0, beta_r=1.0)(policy)
    assert found.item() == pytest.approx(expected)


def test_demonstrations_are_drawn_from_the_law_of_desirable_completions(policy):
    problem = mixture_problem(num_completions=3, seed=0, desirable_fraction=0.3)
    p = problem.desirable.exp().tolist()

    expected = -(p[0] * log(0.2) + p[1] * log(0.5) + p[2] * log(0.3))

    assert population_loss(sft_loss, problem)(policy).item() == pytest.approx(expected)


def test_samples_are_independent_draws_from_the_behavior(policy):
    problem = bradley_terry_problem(num_completions=3, seed=0)
    behavior = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64).log()
    b, r = behavior.exp().tolist(), problem.reward.tolist()
    ratio = (policy - behavior).exp().tolist()
    mean = sum(p * reward for p, reward in zip(b, r, strict=True))

    # Groups of one: the clipped gain of one token with the advantage over the behavior's mean.
    expected = -sum(
        b[i] * min(ratio[i] * (r[i] - mean), min(max(ratio[i], 0.8), 1.2) * (r[i] - mean))
        for i in range(3)
    )

    found = population_loss(ppo_loss, problem, group_size=1, behavior=behavior, epsilon=0.2)
    assert found(policy).item() == pytest.approx(expected)


def test_the_mean_log_ratio_is_that_of_the_data_at_the_policy(policy):
    pairs = bradley_terry_problem(num_completions=3, seed=0)
    labels = mixture_problem(num_completions=3, seed=0, desirable_fraction=0.3)
    # Both places of a pair are drawn from the reference; a label counts by its class.
    means = (
        (pairs.reference.exp() * (policy - pairs.reference)).sum(),
        ((labels.desirable.exp() + labels.undesirable.exp()) * (policy - labels.reference)).sum()
        / 2,
    )

    def of_pairs(data: PairedLogProbs):
        return data.mean_log_ratio.expand(len(data.chosen.policy))

    def of_labels(data: UnpairedLogProbs):
        return data.mean_log_ratio.expand(len(data.desirable))

    assert float(population_loss(of_pairs, pairs)(policy)) == pytest.approx(float(means[0]))
    assert float(population_loss(of_labels, labels)(policy)) == pytest.approx(float(means[1]))
