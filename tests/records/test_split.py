import pytest
from hypothesis import given
from hypothesis import strategies as st

from veritune.errors import SettingsError
from veritune.records.kinds import Demonstration, Origin
from veritune.records.split import split_by_prompt


def records(prompts):
    return [Demonstration(str(p), "c", Origin("a", n)) for n, p in enumerate(prompts, start=1)]


@given(
    st.lists(st.integers(0, 30), max_size=60),
    st.floats(0.001, 0.999),
    st.integers(0, 2**32),
)
def test_no_prompt_is_on_both_sides_and_no_record_is_lost(prompts, fraction, seed):
    given_records = records(prompts)

    train, heldout = split_by_prompt(given_records, fraction, seed)

    assert not {r.prompt for r in train} & {r.prompt for r in heldout}
    assert sorted(r.origin.line for r in train + heldout) == list(range(1, len(prompts) + 1))
    if len(set(prompts)) >= 2:
        assert train
        assert heldout
    else:
        assert heldout == ()


@given(st.lists(st.integers(0, 30), max_size=40), st.data())
def test_the_order_of_the_records_does_not_move_a_prompt(prompts, data):
    shuffled = data.draw(st.permutations(records(prompts)))

    _, one = split_by_prompt(records(prompts), 0.3, 0)
    _, other = split_by_prompt(shuffled, 0.3, 0)

    assert {r.origin for r in one} == {r.origin for r in other}


def test_both_sides_keep_the_order():
    train, heldout = split_by_prompt(records(range(200)), 0.3, 0)

    for side in (train, heldout):
        lines = [record.origin.line for record in side]
        assert lines == sorted(lines)


def test_the_share_held_out_is_near_the_fraction_and_the_seed_chooses_it():
    _, one = split_by_prompt(records(range(2000)), 0.2, 0)
    _, other = split_by_prompt(records(range(2000)), 0.2, 1)

    # Five standard deviations of a binomial share: 5 * sqrt(0.2 * 0.8 / 2000) = 0.045.
    assert len(one) / 2000 == pytest.approx(0.2, abs=0.045)
    assert len({r.prompt for r in one} & {r.prompt for r in other}) < 0.5 * len(one)


def test_more_records_do_not_move_a_prompt():
    _, few = split_by_prompt(records(range(100)), 0.3, 0)
    _, many = split_by_prompt(records(range(200)), 0.3, 0)

    assert {r.prompt for r in few} == {r.prompt for r in many if int(r.prompt) < 100}


@pytest.mark.parametrize("fraction", [0, 1, -0.1, float("nan")])
def test_a_fraction_that_leaves_a_side_empty_is_refused(fraction):
    with pytest.raises(SettingsError, match="strictly between 0 and 1"):
        split_by_prompt(records(range(3)), fraction, 0)
