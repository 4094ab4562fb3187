"""TokenizedDataset gives back what went in, and names what could not go in."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from veritune.errors import DataError, TokenizationError
from veritune.models.tiny import byte_level_tokenizer
from veritune.records.kinds import (
    Demonstration,
    Message,
    Origin,
    Paired,
    Scored,
    TokenIds,
    Unpaired,
)
from veritune.tokens.dataset import TokenizedDataset, tokenize
from veritune.tokens.encode import TextEncoder, TokensConfig, encode_record

PROMPTS = ["hello", "", "a longer prompt", "x" * 30, "é😀"]


def at(line: int) -> Origin:
    return Origin("a.jsonl", line)


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(byte_level_tokenizer())


def records(kind: str) -> list[Any]:
    makers: dict[str, Callable[[str, int], Any]] = {
        "paired": lambda p, i: Paired(p, "yes" * i, "no", at(i)),
        "unpaired": lambda p, i: Unpaired(p, "yes" * i, i % 3 == 0, at(i)),
        "demonstration": lambda p, i: Demonstration(p, "yes" * i, at(i)),
        "scored": lambda p, i: Scored(
            p, tuple("ab"[: i % 3] + str(k) for k in range(i % 3 + 1)), (0.5,) * (i % 3 + 1), at(i)
        ),
    }
    return [makers[kind](prompt, i) for i, prompt in enumerate(PROMPTS)]


@pytest.mark.parametrize("kind", ["paired", "unpaired", "demonstration", "scored"])
def test_each_group_equals_what_went_in(encoder: TextEncoder, kind: str):
    made = records(kind)

    dataset = tokenize(made, encoder, max_length=200)

    assert (len(dataset), dataset.kind) == (len(made), kind)
    for i, record in enumerate(made):
        group, expected = dataset[i], encode_record(encoder, record)
        assert group.origin == record.origin
        assert group.prompt.tolist() == expected.prompt.tolist()
        assert [c.ids.tolist() for c in group.completions] == [
            c.ids.tolist() for c in expected.completions
        ]
        assert [c.bears_loss.tolist() for c in group.completions] == [
            c.bears_loss.tolist() for c in expected.completions
        ]
        assert group.key() == expected.key()
    assert dataset.prompt_lengths().tolist() == [len(dataset[i].prompt) for i in range(len(made))]
    assert dataset.completion_lengths().tolist() == [
        len(c.ids) for i in range(len(made)) for c in dataset[i].completions
    ]


def test_labels_and_scores_stay_with_their_groups(encoder: TextEncoder):
    unpaired = tokenize(records("unpaired"), encoder, max_length=200)
    scored = tokenize(records("scored"), encoder, max_length=200)
    paired = tokenize(records("paired"), encoder, max_length=200)

    assert unpaired.desirable.tolist() == [True, False, False, True, False]
    assert unpaired.desirable_fraction == pytest.approx(2 / 5)
    assert [len(s) for s in scored.scores] == [1, 2, 3, 1, 2]
    assert (scored.desirable_fraction, paired.desirable_fraction) == (None, None)


def test_labels_stay_with_their_groups_where_records_are_dropped(encoder: TextEncoder):
    made = records("unpaired")

    dataset = tokenize(made, encoder, max_length=8)

    kept = [origin.line for origin in dataset.origins]
    assert kept == [0, 1, 2], "completions of 9 and 12 characters do not fit beside a prompt"
    assert dataset.desirable.tolist() == [made[line].desirable for line in kept]
    assert dataset.lengths.dropped_long_completions == 2
    assert dataset.lengths.cut_prompts == 1


def dialogue(line: int, content: str = "hi") -> Demonstration:
    return Demonstration((Message("user", content),), (Message("assistant", "yes"),), at(line))


def test_all_records_that_cannot_be_tokenized_are_named(encoder: TextEncoder):
    made = [dialogue(1), dialogue(2, "<|im_end|>"), dialogue(3), dialogue(4, "<|im_start|>")]

    with pytest.raises(DataError, match="2 of 4 records cannot be tokenized") as caught:
        tokenize(made, encoder, max_length=200)

    assert "a.jsonl, line 2" in str(caught.value)
    assert "a.jsonl, line 4" in str(caught.value)
    assert "line 3" not in str(caught.value)
    assert "data.on_error=skip" in str(caught.value)


def test_records_that_cannot_be_tokenized_can_be_skipped_and_are_reported(encoder: TextEncoder):
    made = [dialogue(1), dialogue(2, "<|im_end|>"), dialogue(3), dialogue(4, "<|im_start|>")]

    dataset = tokenize(made, encoder, max_length=200, skip_problems=True)

    assert [origin.line for origin in dataset.origins] == [1, 3]
    assert [problem.partition(": the text")[0] for problem in dataset.problems.shown] == [
        "TokenizationError: a.jsonl, line 2",
        "TokenizationError: a.jsonl, line 4",
    ]
    assert dataset[1].key() == encode_record(encoder, made[2]).key()


def test_a_problem_behind_the_first_chunk_is_found_and_the_rest_is_kept(encoder: TextEncoder):
    made = [dialogue(i) for i in range(1100)]
    made[1050] = dialogue(1050, "<|im_end|>")

    dataset = tokenize(made, encoder, max_length=200, skip_problems=True)

    assert len(dataset) == 1099
    (problem,) = dataset.problems.shown
    assert problem.startswith("TokenizationError: a.jsonl, line 1050: ")
    assert dataset.origins[1050] == at(1051)


def test_a_completion_without_loss_is_a_problem(encoder: TextEncoder):
    made = [
        Demonstration(TokenIds((1,)), TokenIds((2, 3)), at(1)),
        Demonstration(TokenIds((1,)), TokenIds(()), at(2)),
    ]

    with pytest.raises(DataError, match="no token that bears loss") as caught:
        tokenize(made, encoder, max_length=200)

    assert "line 2" in str(caught.value)


def test_nothing_left_is_an_error_that_says_why(encoder: TextEncoder):
    made = [Demonstration("hello", "x" * 50, at(i)) for i in range(3)]

    with pytest.raises(DataError, match="no record is left") as caught:
        tokenize(made, encoder, max_length=20)

    assert "3 too long, of 3" in str(caught.value)


def test_a_cut_prompt_of_a_data_set_keeps_the_beginning_token(
    plain_tokenizer: Callable[[str], Any],
):
    tokenizer = plain_tokenizer("bpe first bos")
    encoder = TextEncoder(tokenizer, TokensConfig())

    dataset = tokenize([Demonstration("the fox jumps " * 5, "yes", at(1))], encoder, max_length=12)

    prompt = dataset[0].prompt.tolist()
    whole = tokenizer("the fox jumps " * 5)["input_ids"]
    assert prompt == [tokenizer.bos_token_id, *whole[-(len(prompt) - 1) :]]
    assert dataset.lengths.cut_prompts == 1


def test_progress_counts_up_to_all_records(encoder: TextEncoder):
    seen: list[int] = []

    tokenize([dialogue(i) for i in range(1500)], encoder, max_length=200, progress=seen.append)

    assert seen == [1024, 1500]


def test_a_tokenizer_that_loses_text_at_the_boundary_is_found_out(encoder: TextEncoder):
    class Forgetful(TextEncoder):
        """Loses the first token of every completion."""

        def continuations(self, texts: Any, contexts: Any) -> list[list[int]]:
            return [ids[1:] for ids in super().continuations(texts, contexts)]

    with pytest.raises(TokenizationError, match="do not decode back"):
        tokenize([dialogue(1)], Forgetful(encoder.tokenizer), max_length=200)
    with pytest.raises(TokenizationError, match="do not decode back"):
        tokenize([Demonstration("hi", "yes", at(1))], Forgetful(encoder.tokenizer), max_length=200)


def test_the_arrays_are_flat(encoder: TextEncoder):
    dataset: TokenizedDataset = tokenize(records("paired"), encoder, max_length=200)

    assert dataset.ids.dtype == np.int32
    assert len(dataset.ids) == len(dataset.bears_loss) == dataset.piece_starts[-1]
    assert dataset.group_starts.tolist() == [0, 3, 6, 9, 12, 15]


CUT = TokensConfig(long_completions="cut")


def pairs_alike_behind_a_cut() -> list[Paired]:
    """The first differ in their seventh character, the second in their first."""
    return [Paired("p", "same..a", "same..b", at(1)), Paired("p", "a", "b", at(2))]


def test_a_pair_that_a_cut_makes_identical_is_a_problem():
    encoder = TextEncoder(byte_level_tokenizer(), CUT)

    with pytest.raises(DataError, match="1 of 2 records cannot be tokenized") as caught:
        tokenize(pairs_alike_behind_a_cut(), encoder, max_length=7, setting="evaluation.data")

    assert "a.jsonl, line 1: chosen and rejected are the same tokens" in str(caught.value)
    assert "set evaluation.data.identical_pairs=drop" in str(caught.value)
    assert "set evaluation.data.on_error=skip" in str(caught.value)
    assert len(tokenize(pairs_alike_behind_a_cut(), encoder, max_length=8)) == 2


def test_a_pair_whose_completions_are_the_same_tokens_is_dropped_or_kept_as_asked():
    encoder = TextEncoder(byte_level_tokenizer(), CUT)
    made = pairs_alike_behind_a_cut()

    dropped = tokenize(made, encoder, max_length=7, identical_pairs="drop")
    kept = tokenize(made, encoder, max_length=7, identical_pairs="keep")
    skipped = tokenize(made, encoder, max_length=7, skip_problems=True)

    assert [[o.line for o in d.origins] for d in (dropped, kept, skipped)] == [[2], [1, 2], [2]]
    assert [d.dropped_identical for d in (dropped, kept, skipped)] == [1, 0, 0]
    assert [len(d.problems) for d in (dropped, kept, skipped)] == [0, 0, 1]


def test_nothing_left_but_identical_pairs_is_an_error_that_says_so():
    encoder = TextEncoder(byte_level_tokenizer(), CUT)

    with pytest.raises(DataError, match="no record is left") as caught:
        tokenize(pairs_alike_behind_a_cut()[:1], encoder, max_length=7, identical_pairs="drop")

    assert "0 too long, 1 with identical completions, of 1 records" in str(caught.value)


def test_completions_of_token_ids_without_an_end_are_counted(encoder: TextEncoder):
    end = encoder.eos
    made = [
        Paired(TokenIds((1,)), TokenIds((5, end)), TokenIds((3,)), at(1)),
        Paired(TokenIds((1,)), TokenIds((5,)), TokenIds((3, 4)), at(2)),
    ]

    assert tokenize(made, encoder, max_length=200).num_without_end == 3
    assert tokenize(records("paired"), encoder, max_length=200).num_without_end == 0
