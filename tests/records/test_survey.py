import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veritune.records.kinds import (
    Demonstration,
    Message,
    Origin,
    Paired,
    Rendering,
    Scored,
    Unpaired,
)
from veritune.records.survey import prompts_in_common, survey_records

AT = Origin("a.jsonl", 1)


def pairs(*preferences: str, prompt: str = "p") -> list[Paired]:
    """ "AB" is a pair that prefers A to B."""
    return [Paired(prompt, better, worse, AT) for better, worse in preferences]


def labels(**by_prompt: str) -> list[Unpaired]:
    """p="+-" is a prompt with a desirable and an undesirable completion."""
    return [
        Unpaired(prompt, f"{prompt}{index}", sign == "+", AT)
        for prompt, signs in by_prompt.items()
        for index, sign in enumerate(signs)
    ]


def test_duplicates_are_counted_whatever_their_origin():
    record, again = Paired("p", "c", "r", AT), Paired("p", "c", "r", Origin("b.jsonl", 9))

    survey = survey_records([record, again, Paired("p", "c", "x", AT)])

    assert (survey.num_records, survey.num_duplicates, survey.num_prompts) == (3, 1, 1)


def test_a_pair_in_both_orders_is_one_reversed_pair():
    survey = survey_records(pairs("AB", "BA", "AB", "AC") + pairs("BA", prompt="q"))

    assert (survey.num_reversed_pairs, survey.num_cyclic_prompts) == (1, 0)
    assert survey.num_conflicts == 1


def test_identical_pairs_are_not_reversed_pairs():
    assert survey_records(pairs("AA", "BB")).num_reversed_pairs == 0


@pytest.mark.parametrize(
    ("preferences", "num_cyclic"),
    [
        (["AB", "BC", "CA"], 1),
        (["AB", "BC", "CD", "DA", "AE"], 1),
        (["XA", "AB", "BC", "CA"], 1),
        (["AB", "BC", "AC"], 0),
        (["AB", "BA", "BC", "CB"], 0),
        (["AB", "CD", "AD", "CB"], 0),
    ],
)
def test_preferences_that_run_in_a_circle_are_found(preferences, num_cyclic):
    assert survey_records(pairs(*preferences)).num_cyclic_prompts == num_cyclic


def test_a_circle_across_prompts_is_none():
    records = pairs("AB", "BC") + pairs("CA", prompt="q")

    assert survey_records(records).num_cyclic_prompts == 0


def test_other_tools_make_another_prompt():
    tools = Rendering(({"name": "f"},))
    records = [Paired("p", "A", "B", AT), Paired("p", "B", "A", AT, tools)]

    survey = survey_records(records)

    assert (survey.num_prompts, survey.num_reversed_pairs) == (2, 0)


def test_a_completion_labelled_both_ways_is_a_conflict():
    records = [Unpaired("p", "c", True, AT), Unpaired("p", "c", False, AT)]

    assert survey_records(records).num_conflicting_labels == 1
    assert survey_records([*records, Unpaired("q", "c", True, AT)]).num_conflicting_labels == 1


def test_the_share_of_desirable_labels_is_measured_overall_and_by_prompt():
    survey = survey_records(labels(p="++-", q="+-", r="-"))

    assert survey.desirable_fraction == 3 / 6
    assert survey.num_prompts_with_several_labels == 2
    assert survey.desirable_fraction_range == (1 / 2, 2 / 3)


def test_label_dispersion_is_pearsons_statistic_over_its_degrees_of_freedom():
    survey = survey_records(labels(p="++++", q="+---", r="+"))

    # Share 5/8 over p and q, so 2.5 desirable are expected of each, with variance 4 * 5/8 * 3/8.
    expected = ((4 - 2.5) ** 2 + (1 - 2.5) ** 2) / (4 * 5 / 8 * 3 / 8) / 1
    assert survey.label_dispersion == pytest.approx(expected)


def test_label_dispersion_is_zero_for_one_share_and_about_one_for_chance():
    draw = random.Random(0)
    by_chance = {f"p{n}": "".join(draw.choices("+-", [3, 7], k=8)) for n in range(400)}

    assert survey_records(labels(p="+-", q="+-", r="-+")).label_dispersion == 0
    assert survey_records(labels(**by_chance)).label_dispersion == pytest.approx(1, abs=0.2)
    assert survey_records(labels(p="++", q="+")).label_dispersion is None


def test_label_dispersion_is_the_same_to_the_last_bit_for_every_order():
    draw = random.Random(0)
    records = labels(**{f"p{n}": "".join(draw.choices("+-", k=2 + n)) for n in range(40)})
    dispersion = survey_records(records).label_dispersion

    for _ in range(20):
        draw.shuffle(records)
        assert survey_records(records).label_dispersion == dispersion


def test_scores_and_ties_are_counted():
    records = [
        Scored("p", ("a", "b", "c"), (1.0, 1.0, -3.0), AT),
        Scored("q", ("a", "b"), (2.0, 2.0), AT),
        Scored("r", ("a",), (0.5,), AT),
    ]

    survey = survey_records(records)

    assert survey.score_range == (-3.0, 2.0)
    assert (survey.num_with_ties, survey.num_all_tied) == (2, 1)
    assert survey.num_by_completions == {1: 1, 2: 1, 3: 1}


def test_empty_completions_and_identical_pairs_are_counted():
    records = [*pairs("AA"), Demonstration("p", " ", AT)]

    survey = survey_records(records)

    assert (survey.num_identical_pairs, survey.num_empty_completions) == (1, 1)
    assert survey.num_by_kind == {"demonstration": 1, "paired": 1}


def test_no_records_have_a_survey():
    survey = survey_records([])

    assert (survey.num_records, survey.desirable_fraction, survey.score_range) == (0, None, None)


def test_prompts_in_common_names_each_prompt_once_with_its_first_record():
    ours = [Paired(p, "c", "r", Origin("ours", n)) for n, p in enumerate(["a", "b", "b", "c"])]
    theirs = [Demonstration(p, "c", AT, Rendering(({"name": "f"},))) for p in ["b", "c", "d"]]

    assert [record.origin.line for record in prompts_in_common(ours, theirs)] == [1, 3]
    assert prompts_in_common(ours, [Demonstration((Message("user", "a"),), "c", AT)]) == ()


SHORT = st.sampled_from("abc")
RECORDS = st.lists(
    st.one_of(
        st.builds(Paired, SHORT, SHORT, SHORT, st.just(AT)),
        st.builds(Unpaired, SHORT, SHORT, st.booleans(), st.just(AT)),
        st.builds(
            lambda prompt, scores: Scored(prompt, tuple("xyz"), scores, AT),
            SHORT,
            st.tuples(*[st.floats(-1, 1)] * 3),
        ),
    ),
    max_size=20,
)


@given(records=RECORDS, data=st.data())
def test_the_survey_is_the_same_for_every_order(records, data):
    assert survey_records(data.draw(st.permutations(records))) == survey_records(records)
