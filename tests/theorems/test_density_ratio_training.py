import math

import pytest

from veritune.laboratory.problems import disjoint_problem
from veritune.laboratory.theorems.density_ratio_training import train


@pytest.mark.parametrize(
    ("method", "initial_loss"),
    [
        # (1 + 1/2) log 2 + (1 - 1/2) log 2 and -1/2 log 1/2 - 1/2 log 1/2.
        ("rdro", 2 * math.log(2)),
        ("ddro", math.log(2)),
        ("ddro_stabilized", math.log(2)),
    ],
)
def test_training_starts_at_the_reference(method, initial_loss):
    problem = disjoint_problem(8, seed=1, desirable_fraction=0.5, overlap=0.002)

    moments = train(method, problem, seed=0, num_steps=2)

    assert moments[0].largest_ratio == pytest.approx(1)
    assert moments[0].loss == pytest.approx(initial_loss)
    assert moments[1].loss < initial_loss


def test_training_ends_at_the_first_infinite_loss():
    problem = disjoint_problem(8, seed=1, desirable_fraction=0.5, overlap=0.002)

    moments = train("ddro", problem, seed=0)

    assert [math.isinf(moment.loss) for moment in moments] == [False] * (len(moments) - 1) + [True]
    assert moments[-1].largest_ratio >= 2
