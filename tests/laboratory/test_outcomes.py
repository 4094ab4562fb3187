import dataclasses

import pytest
import torch

from veritune.laboratory.outcomes import distinct_pairs, with_labels
from veritune.laboratory.problems import bradley_terry_problem, deterministic_problem, mixture


def test_distinct_pairs_keep_the_odds_of_all_other_pairs():
    problem = bradley_terry_problem(4, seed=0)

    law = distinct_pairs(problem).pair_law

    assert float(law.sum()) == pytest.approx(1, abs=1e-12)
    assert law.diagonal().tolist() == [0, 0, 0, 0]
    p = problem.reference.exp()
    assert float(law[0, 1] / law[2, 3]) == pytest.approx(float(p[0] * p[1] / (p[2] * p[3])))


def test_distinct_pairs_have_the_law_of_their_completions_as_the_reference():
    problem = distinct_pairs(bradley_terry_problem(4, seed=0))

    assert torch.allclose(problem.reference.exp(), problem.pair_law.sum(dim=1))
    assert float(problem.reference.logsumexp(dim=0)) == pytest.approx(0, abs=1e-12)


def test_a_pair_law_that_puts_sides_in_order_asks_the_same_pairs():
    problem = bradley_terry_problem(3, seed=0)
    ordered = dataclasses.replace(problem, pair_law=2 * problem.pair_law.triu(diagonal=1))

    found = distinct_pairs(ordered)

    assert torch.allclose(found.pair_law, distinct_pairs(problem).pair_law)


def test_labels_are_the_winners_and_losers_and_their_mixture_is_the_reference():
    problem = with_labels(distinct_pairs(bradley_terry_problem(3, seed=0)))
    law, wins = problem.pair_law.tolist(), problem.preferences.tolist()

    chosen = [sum(2 * law[i][j] * wins[i][j] for j in range(3)) for i in range(3)]

    assert problem.desirable.exp().tolist() == pytest.approx(chosen)
    assert problem.desirable_fraction == 0.5
    both = mixture(problem.desirable, problem.undesirable, 0.5)
    assert torch.allclose(both, problem.reference)


def test_a_completion_that_never_wins_is_never_desirable():
    problem = deterministic_problem(4, seed=0)
    worst = int(problem.reward.argmin())

    assert float(with_labels(distinct_pairs(problem)).desirable[worst]) == -torch.inf
    # Against itself it would win every second time.
    assert float(with_labels(problem).desirable[worst]) > -torch.inf
