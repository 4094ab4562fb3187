"""Liu et al. 2023, arXiv:2309.06657: what rejection sampling accepts, and how often."""

from math import exp, inf, nan, sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from veritune.errors import DataError, SettingsError
from veritune.rejection import accepted, accepted_in_one_round, expected_acceptance, tilted_law
from veritune.seeds import stream

POLICY = [0.4, 0.3, 0.2, 0.1]
REWARDS = [0.0, 0.5, 1.5, 1.0]
LOG_POLICY = torch.tensor(POLICY, dtype=torch.float64).log()
VALUES = torch.tensor(REWARDS, dtype=torch.float64)
NUM_DRAWS = 400_000


def candidates(*names: str | int) -> torch.Tensor:
    """Completions drawn from the policy, as indices of the four."""
    generator = stream(0, "candidates", *names)
    return torch.multinomial(LOG_POLICY.exp(), NUM_DRAWS, replacement=True, generator=generator)


def within_four_deviations(count: int, total: int, probability: float) -> bool:
    """A binomial count is outside of this interval once in 16,000 times."""
    deviation = sqrt(total * probability * (1 - probability))
    return abs(count - total * probability) < 4 * deviation


@pytest.mark.parametrize("max_reward", [1.5, 2.5])
def test_what_one_round_accepts_follows_the_tilted_law_for_any_bound(max_reward):
    drawn = candidates("law")
    mask = accepted_in_one_round(
        VALUES[drawn], beta=0.5, max_reward=max_reward, generator=stream(0, "accept")
    )

    tilted = [p * exp(r / 0.5) for p, r in zip(POLICY, REWARDS, strict=True)]
    law = [t / sum(tilted) for t in tilted]
    counts = torch.bincount(drawn[mask], minlength=4).tolist()

    for count, probability in zip(counts, law, strict=True):
        assert within_four_deviations(count, sum(counts), probability)
    # Another temperature has another law.
    wrong = [p * exp(r / 0.55) for p, r in zip(POLICY, REWARDS, strict=True)]
    assert not all(
        within_four_deviations(count, sum(counts), w / sum(wrong))
        for count, w in zip(counts, wrong, strict=True)
    )


def test_the_tilted_law_is_the_policy_times_the_exponential_of_the_reward():
    tilted = [p * exp(r / 0.5) for p, r in zip(POLICY, REWARDS, strict=True)]

    law = tilted_law(LOG_POLICY, VALUES, beta=0.5).exp().tolist()

    assert law == pytest.approx([t / sum(tilted) for t in tilted])


def test_the_share_that_one_round_accepts_is_the_expected_one():
    expected = sum(p * exp((r - 1.5) / 0.5) for p, r in zip(POLICY, REWARDS, strict=True))
    assert expected_acceptance(LOG_POLICY, VALUES, beta=0.5, max_reward=1.5) == pytest.approx(
        expected
    )

    mask = accepted_in_one_round(
        VALUES[candidates("share")], beta=0.5, max_reward=1.5, generator=stream(0, "share")
    )
    assert within_four_deviations(int(mask.sum()), NUM_DRAWS, expected)
    assert not within_four_deviations(int(mask.sum()), NUM_DRAWS, expected * 1.02)


def test_repeated_passes_over_many_candidates_follow_the_tilted_law():
    """The largest reward of many draws is the bound, and one pass is enough."""
    drawn = candidates("passes")
    chosen = drawn[
        accepted(VALUES[drawn], beta=0.5, num_wanted=50_000, generator=stream(0, "passes"))
    ]

    law = tilted_law(LOG_POLICY, VALUES, beta=0.5).exp().tolist()
    for y in range(4):
        assert within_four_deviations(int((chosen == y).sum()), 50_000, law[y])


def test_a_tiny_beta_keeps_the_best_of_n_in_order():
    rewards = torch.tensor([0.1, 3.0, -2.0, 2.9, 0.0])

    kept = accepted(rewards, beta=1e-9, num_wanted=4, generator=stream(0, "best"))

    assert kept.tolist() == [1, 3, 0, 4]


def test_a_huge_beta_keeps_any_candidate_equally_often():
    generator = stream(0, "uniform")
    counts = torch.zeros(5)
    for _ in range(4000):
        counts[accepted(torch.arange(5.0), beta=1e9, num_wanted=2, generator=generator)] += 1

    for count in counts.tolist():
        assert within_four_deviations(int(count), 4000, 2 / 5)


def test_passes_go_on_until_enough_are_accepted():
    """At this temperature a pass accepts its best candidate alone."""
    rewards = torch.linspace(0, 1, 8)

    assert accepted(rewards, beta=1e-4, num_wanted=8, generator=stream(0)).tolist() == [
        *range(7, -1, -1)
    ]


def test_the_second_pass_measures_from_the_best_that_is_left():
    """Of three, two are wanted, and the first is far above the others.

    The first pass takes it alone. In the second the third comes in place of the second if it is
    gone through earlier and accepted: with probability exp(-1) / 2, measured from the second.
    """
    rewards = torch.tensor([60.0, 1.0, 0.0])
    generator = stream(0, "second pass")

    third = sum(
        2 in accepted(rewards, beta=1.0, num_wanted=2, generator=generator).tolist()
        for _ in range(5_000)
    )

    assert within_four_deviations(third, 5_000, exp(-1) / 2)


@given(
    rewards=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 0.5, 2.0]), max_size=12),
    beta=st.floats(1e-3, 1e3),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_an_index_is_never_accepted_twice(rewards, beta, share, seed):
    num_wanted = round(share * len(rewards))

    kept = accepted(
        torch.tensor(rewards), beta=beta, num_wanted=num_wanted, generator=stream(seed)
    ).tolist()

    assert len(kept) == len(set(kept)) == num_wanted
    assert set(kept) <= set(range(len(rewards)))


def test_equal_candidates_are_accepted_one_by_one():
    kept = accepted(torch.ones(6), beta=0.5, num_wanted=6, generator=stream(0))

    assert sorted(kept.tolist()) == [0, 1, 2, 3, 4, 5]


def test_the_generator_decides_what_is_accepted():
    rewards = torch.rand(50, generator=stream(0, "rewards"))
    one, again, other = (
        accepted(rewards, beta=0.5, num_wanted=10, generator=stream(seed)) for seed in (0, 0, 1)
    )

    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_more_than_there_are_candidates_is_refused_with_both_numbers():
    with pytest.raises(SettingsError, match="the 3 that there are") as refused:
        accepted(torch.zeros(3), beta=0.5, num_wanted=4, generator=stream(0))

    assert "got: 4" in str(refused.value)
    assert "fix:" in str(refused.value)


@pytest.mark.parametrize("reward", [nan, inf, -inf])
def test_a_reward_that_is_no_number_is_refused_by_its_place(reward):
    rewards = torch.tensor([0.0, reward])

    with pytest.raises(DataError, match="candidate 1"):
        accepted(rewards, beta=0.5, num_wanted=1, generator=stream(0))
    with pytest.raises(DataError, match="candidate 1"):
        accepted_in_one_round(rewards, beta=0.5, max_reward=9.0, generator=stream(0))


def test_a_reward_above_the_bound_is_refused():
    with pytest.raises(DataError, match=r"above the bound of 1\.0") as refused:
        accepted_in_one_round(torch.tensor([2.0]), beta=0.5, max_reward=1.0, generator=stream(0))

    assert "got: 2.0" in str(refused.value)


def test_no_candidates_give_none():
    none = torch.zeros(0)

    assert accepted(none, beta=0.5, num_wanted=0, generator=stream(0)).tolist() == []
    assert accepted_in_one_round(none, beta=0.5, max_reward=0.0, generator=stream(0)).tolist() == []
