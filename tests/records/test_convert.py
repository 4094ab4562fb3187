import pytest
from hypothesis import given
from hypothesis import strategies as st

from veritune.errors import DataError
from veritune.records.convert import (
    all_ordered_pairs,
    best_against_worst,
    convert_records,
    demonstrations,
    labels_from_pairs,
    labels_from_scores,
    prompts_alone,
)
from veritune.records.kinds import (
    Demonstration,
    Origin,
    Paired,
    Prompt,
    Rendering,
    Scored,
    Unpaired,
)

AT = Origin("a.jsonl", 7)
TOOLS = Rendering(({"name": "f"},))


def scored(*scores: float, texts: str = "abcdefgh") -> Scored:
    return Scored("p", tuple(texts[: len(scores)]), scores, AT, TOOLS)


def test_best_against_worst_takes_the_two_ends_and_counts_the_rest():
    converted = best_against_worst([scored(1, 3, 2), scored(5), scored(2, 2)])

    assert converted.records == (Paired("p", "b", "a", AT, TOOLS),)
    assert converted.discarded == {
        "completions between best and worst": 1,
        "records with one completion": 1,
        "records whose scores are all equal": 1,
    }


def test_best_against_worst_takes_the_first_of_equals():
    converted = best_against_worst([scored(0, 2, 2, 0)])

    assert converted.records == (Paired("p", "b", "a", AT, TOOLS),)


def test_all_ordered_pairs_puts_the_higher_score_first():
    converted = all_ordered_pairs([scored(1, 3, 1)])

    assert [(pair.chosen, pair.rejected) for pair in converted.records] == [("b", "a"), ("b", "c")]
    assert converted.discarded == {"pairs of equal score": 1}


def test_completions_of_the_same_text_make_no_pair():
    record = scored(1, 2, texts="aa")

    for converted in (best_against_worst([record]), all_ordered_pairs([record])):
        assert converted.records == ()
        assert converted.discarded == {"pairs of identical completions": 1}


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), max_size=5))
def test_scored_to_paired_never_pairs_equal_scores_and_always_prefers_the_higher(groups):
    records = [
        Scored("p", tuple(f"{n}-{k}" for k in range(len(group))), tuple(map(float, group)), AT)
        for n, group in enumerate(groups)
    ]
    score = {c: s for r in records for c, s in zip(r.completions, r.scores, strict=True)}

    every, extreme = all_ordered_pairs(records), best_against_worst(records)

    assert all(score[pair.chosen] > score[pair.rejected] for pair in every.records)
    assert {(p.chosen, p.rejected) for p in extreme.records} <= {
        (p.chosen, p.rejected) for p in every.records
    }
    assert len(extreme.records) == sum(len(set(group)) > 1 for group in groups)


def test_labels_from_pairs_keeps_the_two_of_a_pair_together():
    converted = labels_from_pairs([Paired("p", "c", "r", AT, TOOLS)])

    assert converted.records == (
        Unpaired("p", "c", True, AT, TOOLS),
        Unpaired("p", "r", False, AT, TOOLS),
    )
    assert converted.discarded == {"comparisons": 1}


def test_labels_from_scores_calls_the_threshold_itself_desirable():
    converted = labels_from_scores([scored(1, 2, 3)], threshold=2)

    assert [record.desirable for record in converted.records] == [False, True, True]


def test_prompts_alone_keeps_each_prompt_once():
    records = [Paired("p", "c", "r", AT), Paired("q", "c", "r", AT), Unpaired("p", "c", True, AT)]

    converted = prompts_alone(records)

    assert converted.records == (Prompt("p", AT), Prompt("q", AT))
    assert converted.discarded == {"completions": 5, "repeated prompts": 1}


def test_demonstrations_are_what_is_worth_imitating():
    converted = demonstrations(
        [
            Paired("p", "c", "r", AT),
            Unpaired("p", "u", True, AT),
            Unpaired("p", "v", False, AT),
            scored(1, 3, 3),
            Demonstration("p", "d", AT),
        ]
    )

    assert [record.completion for record in converted.records] == ["c", "u", "b", "d"]
    assert converted.discarded == {
        "rejected completions": 1,
        "undesirable completions": 1,
        "completions below the best": 2,
    }


def test_convert_records_leaves_records_of_that_kind_alone():
    records = [Paired("p", "c", "r", AT)]

    assert convert_records(records, "paired").records == tuple(records)
    assert convert_records(records, "paired").discarded == {}


@pytest.mark.parametrize(
    ("record", "kind", "made"),
    [
        (scored(1, 2), "paired", "paired"),
        (Paired("p", "c", "r", AT), "unpaired", "unpaired"),
        (scored(1, 2), "prompt", "prompt"),
        (scored(1, 2), "demonstration", "demonstration"),
    ],
)
def test_convert_records_finds_the_conversion(record, kind, made):
    assert {record.kind for record in convert_records([record], kind).records} == {made}


def test_pairs_become_scored_with_one_for_chosen_and_zero_for_rejected():
    """Ji et al. 2024, arXiv:2402.00856: the released pipeline feeds pairs as rewards 1 and 0."""
    (record,) = convert_records([Paired("p", "c", "r", AT)], "scored").records

    assert (record.completions, record.scores) == (("c", "r"), (1.0, 0.0))


@pytest.mark.parametrize(
    ("record", "kind", "told"),
    [
        (Unpaired("p", "c", True, AT), "paired", "unpaired records cannot become paired"),
        (scored(1, 2), "unpaired", "labels_from_scores"),
        (Prompt("p", AT), "demonstration", "prompt records cannot become demonstration"),
        (Unpaired("p", "c", True, AT), "scored", "unpaired records cannot become scored"),
    ],
)
def test_convert_records_refuses_what_the_records_do_not_say(record, kind, told):
    with pytest.raises(DataError) as caught:
        convert_records([record], kind)

    assert told in str(caught.value)
