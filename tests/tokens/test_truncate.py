"""Length limits: what is cut, what is dropped, and that all of it is counted."""

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veritune.errors import DataError, SettingsError
from veritune.records.kinds import Origin
from veritune.tokens.encode import TokenizedCompletion, TokenizedRecord, TokensConfig
from veritune.tokens.truncate import LengthCounts, cut_prompt, fit_length, settle_max_length

AT = Origin("a.jsonl", 7)
BOS, EOS = 1, 2
CUT_ALL = {"long_prompts": "cut", "long_completions": "cut"}


def group(num_prompt: int, *lengths: int, bos: bool = False) -> TokenizedRecord:
    prompt = np.arange(100, 100 + num_prompt, dtype=np.int32)
    if bos:
        prompt[0] = BOS
    completions = []
    for length in lengths:
        ids = np.arange(500, 500 + length, dtype=np.int32)
        ids[-1] = EOS
        completions.append(TokenizedCompletion(ids, np.ones(length, bool)))
    return TokenizedRecord(prompt, tuple(completions), AT)


def fit(
    record: TokenizedRecord, limit: int, **settings: Any
) -> tuple[TokenizedRecord | None, LengthCounts]:
    counts = LengthCounts()
    found = fit_length(record, limit, TokensConfig(**settings), counts, bos=BOS)
    return found, counts


def counted(counts: LengthCounts) -> dict[str, int]:
    return {name: number for name, number in asdict(counts).items() if number}


def test_what_fits_is_left_as_it_is():
    record = group(5, 3, 4)

    found, counts = fit(record, 9)

    assert found is record
    assert counted(counts) == {}


def test_a_long_prompt_keeps_its_end():
    found, counts = fit(group(6, 3, 4), 9)

    assert found is not None
    assert found.prompt.tolist() == [101, 102, 103, 104, 105]
    assert [len(c.ids) for c in found.completions] == [3, 4]
    assert counted(counts) == {"cut_prompts": 1}


def test_a_cut_prompt_keeps_its_beginning_token():
    found, _ = fit(group(6, 4, bos=True), 8)

    assert found is not None
    assert found.prompt.tolist() == [BOS, 103, 104, 105]


def test_a_cut_prompt_that_did_not_begin_with_the_beginning_token_gets_none():
    found, _ = fit(group(6, 4), 8)

    assert found is not None
    assert found.prompt.tolist() == [102, 103, 104, 105]


def test_one_token_of_prompt_is_its_last():
    found, _ = fit(group(6, 4, bos=True), 5)

    assert found is not None
    assert found.prompt.tolist() == [105]


def test_a_long_completion_is_dropped_with_its_record_and_counted():
    found, counts = fit(group(2, 3, 10), 10)

    assert found is None
    assert counted(counts) == {"dropped_long_completions": 1}
    assert counts.dropped == 1


def test_a_cut_completion_keeps_its_beginning_and_loses_its_end_token():
    found, counts = fit(group(3, 4, 10), 8, **CUT_ALL)

    assert found is not None
    short, long = found.completions
    assert short.ids.tolist() == [500, 501, 502, EOS]
    assert long.ids.tolist() == [500, 501, 502, 503, 504, 505, 506]
    assert found.prompt.tolist() == [102]
    assert found.longest == 8
    assert counted(counts) == {"cut_completions": 1, "cut_prompts": 1}


def test_a_cut_that_would_leave_nothing_to_train_on_drops_the_record():
    """With loss on the last turn only, a cut may remove all of it."""
    ids = np.arange(10, dtype=np.int32)
    late = TokenizedCompletion(ids, ids >= 7)
    record = TokenizedRecord(np.array([9], np.int32), (late,), AT)

    found, counts = fit(record, 6, **CUT_ALL)
    kept, _ = fit(record, 9, **CUT_ALL)

    assert found is None
    assert counted(counts) == {"dropped_long_completions": 1}
    assert kept is not None
    assert kept.completions[0].bears_loss.any()


def test_a_long_prompt_can_drop_its_record():
    found, counts = fit(group(6, 4), 9, long_prompts="drop")

    assert found is None
    assert counted(counts) == {"dropped_long_prompts": 1}


@pytest.mark.parametrize(
    ("record", "settings", "message"),
    [
        (group(6, 4), {"long_prompts": "stop"}, "the prompt is too long"),
        (group(1, 12), {"long_completions": "stop"}, "a completion is too long"),
    ],
)
def test_stop_names_the_record_and_its_length(
    record: TokenizedRecord, settings: dict[str, str], message: str
):
    with pytest.raises(DataError, match=message) as caught:
        fit(record, 9, **settings)

    assert "a.jsonl, line 7" in str(caught.value)
    assert f"{record.longest} tokens, and the limit is 9" in str(caught.value)


@given(
    num_prompt=st.integers(1, 12),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    limit=st.integers(2, 14),
    bos=st.booleans(),
    long_prompts=st.sampled_from(["cut", "drop"]),
    long_completions=st.sampled_from(["cut", "drop"]),
)
def test_no_record_is_cut_or_dropped_without_being_counted(
    num_prompt: int,
    lengths: list[int],
    limit: int,
    bos: bool,
    long_prompts: str,
    long_completions: str,
):
    record = group(num_prompt, *lengths, bos=bos)

    found, counts = fit(record, limit, long_prompts=long_prompts, long_completions=long_completions)

    changed = counted(counts)
    if found is None:
        assert counts.dropped == 1
        assert max(lengths) + num_prompt > limit
        return
    assert counts.dropped == 0
    assert found.longest <= limit
    assert len(found.prompt) >= 1
    assert (len(found.prompt) < num_prompt) == ("cut_prompts" in changed)
    kept = [len(c.ids) for c in found.completions]
    assert (kept != lengths) == ("cut_completions" in changed)
    assert (sum(EOS not in c.ids for c in found.completions) > 0) == (kept != lengths)
    # The last prompt token stays: it predicts the first token of every completion.
    assert found.prompt[-1] == record.prompt[-1]


@pytest.mark.parametrize(
    ("prompt", "room", "expected"),
    [
        ([BOS, 5, 6, 7], 4, [BOS, 5, 6, 7]),
        ([BOS, 5, 6, 7], 3, [BOS, 6, 7]),
        ([BOS, 5, 6, 7], 2, [BOS, 7]),
        ([BOS, 5, 6, 7], 1, [7]),
        ([4, 5, 6, 7], 3, [5, 6, 7]),
    ],
)
def test_a_prompt_is_cut_to_its_room(prompt: list[int], room: int, expected: list[int]):
    assert cut_prompt(np.array(prompt, np.int32), room, bos=BOS).tolist() == expected


def test_a_limit_above_the_models_is_refused_with_both_numbers():
    with pytest.raises(SettingsError, match=r"tokens\.max_length") as caught:
        settle_max_length(65, 64)

    assert "65 tokens, and the model reads at most 64" in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "limit", "expected"),
    [(64, 64, 64), (20, 64, 20), (None, 64, 64), (9000, None, 9000), (None, None, 2048)],
)
def test_the_limit_is_the_one_asked_for_or_else_the_models(
    asked: int | None, limit: int | None, expected: int
):
    assert settle_max_length(asked, limit) == expected
