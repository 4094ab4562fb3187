"""Plain text and token ids: the boundary, the beginning and the end of a sequence."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from veritune.errors import TokenizationError
from veritune.records.kinds import Demonstration, Message, Origin, Paired, Prompt, Scored, TokenIds
from veritune.tokens.encode import (
    TextEncoder,
    TokenizedCompletion,
    TokenizedRecord,
    check_decodes_back,
    encode_record,
    encode_records,
)

AT = Origin("a.jsonl", 7)
LOSSLESS = (
    "bytes",
    "byte-level",
    "byte-level across words",
    "gpt2",
    "bpe first bos",
    "bpe always bos",
    "bpe never",
    "bpe across words",
    "legacy bos",
    "unigram first",
    "unigram always bos",
)
Tokenizers = Callable[[str], Any]

words = st.sampled_from(
    [
        "hello",
        " world",
        "the",
        " ",
        "  ",
        "\n",
        "\n\n",
        "é",
        "😀",
        "漢",
        "12",
        "'s",
        "a",
        ".",
        "<|x",
    ]
)
texts = st.one_of(
    st.lists(words, max_size=5).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
)


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def decoded(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def encoded(tokenizer: Any, prompt: Any, *completions: Any) -> tuple[list[int], list[list[int]]]:
    record = Scored(prompt, completions, (0.0,) * len(completions), AT)
    found = encode_record(TextEncoder(tokenizer), record)
    assert all(c.bears_loss.all() for c in found.completions)
    return found.prompt.tolist(), [c.ids.tolist() for c in found.completions]


@given(prompt=texts, completion=texts)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_joined_and_decoded_pieces_are_the_text_wherever_the_whole_decodes_to_it(
    plain_tokenizer: Tokenizers, plain_name: str, prompt: str, completion: str
):
    tokenizer = plain_tokenizer(plain_name)
    text = prompt + completion
    if decoded(tokenizer, ids_of(tokenizer, text)) != text:
        return

    _, (ids,) = encoded(tokenizer, prompt, completion)

    assert ids[-1] == tokenizer.eos_token_id
    assert decoded(tokenizer, [*ids_of(tokenizer, prompt), *ids[:-1]]) == text


@given(prompt=texts, completion=texts)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_where_nothing_merges_the_pieces_are_the_tokens_of_the_whole_text(
    plain_tokenizer: Tokenizers, plain_name: str, prompt: str, completion: str
):
    tokenizer = plain_tokenizer(plain_name)
    head, whole = ids_of(tokenizer, prompt), ids_of(tokenizer, prompt + completion)
    # A character tokenizer reads what it does not know as its end of text.
    if (
        whole[: len(head)] != head
        or (completion and len(whole) == len(head))
        or (tokenizer.eos_token_id in whole)
    ):
        return

    _, (ids,) = encoded(tokenizer, prompt, completion)

    assert ids == [*whole[len(head) :], tokenizer.eos_token_id]


@pytest.mark.parametrize("name", LOSSLESS)
def test_the_checks_of_the_boundary_are_not_empty(plain_tokenizer: Tokenizers, name: str):
    tokenizer = plain_tokenizer(name)
    for prompt, completion in (("Answer:", " yes"), ("the fox\n", "jumps"), ("é", "😀 x")):
        text = prompt + completion
        assert decoded(tokenizer, ids_of(tokenizer, text)) == text
    head, whole = (ids_of(tokenizer, text) for text in ("Answer:\n", "Answer:\nq"))
    assert whole[: len(head)] == head


@pytest.mark.parametrize("name", ["bpe first bos", "bpe always bos", "legacy bos", "unigram first"])
def test_a_completion_gets_no_dummy_space_inside_a_text(plain_tokenizer: Tokenizers, name: str):
    tokenizer = plain_tokenizer(name)

    _, (ids,) = encoded(tokenizer, "Answer:\n", "fox")

    assert not tokenizer.convert_ids_to_tokens(ids)[0].startswith("▁")
    # Encoded alone it would get one, so this can fail.
    assert tokenizer.convert_ids_to_tokens(ids_of(tokenizer, "fox"))[0].startswith("▁")


@pytest.mark.parametrize(
    ("name", "prompt", "completions"),
    [
        ("byte-level across words", "hell", ("o w", "p", "q")),
        ("bpe across words", "hell", ("o w", "p", "q")),
        ("unigram first", "hel", ("lo ", "p", "q")),
    ],
)
def test_the_prompt_has_the_same_tokens_for_all_completions_though_the_whole_texts_merge(
    plain_tokenizer: Tokenizers, name: str, prompt: str, completions: tuple[str, ...]
):
    tokenizer = plain_tokenizer(name)
    head = ids_of(tokenizer, prompt)
    merges = [ids_of(tokenizer, prompt + c)[: len(head)] != head for c in completions]
    assert any(merges), "a merging tokenizer is what this test is about"

    found, pieces = encoded(tokenizer, prompt, *completions)

    assert found[-len(head) :] == head
    for completion, ids in zip(completions, pieces, strict=True):
        assert decoded(tokenizer, [*head, *ids[:-1]]) == prompt + completion
    alone = [encoded(tokenizer, prompt, completion)[0] for completion in completions]
    assert alone == [found] * 3


@pytest.mark.parametrize("name", ["bpe first bos", "bpe always bos", "legacy bos", "bpe never"])
def test_behind_an_empty_prompt_a_completion_is_the_beginning_of_a_text(
    plain_tokenizer: Tokenizers, name: str
):
    tokenizer = plain_tokenizer(name)

    prompt, (ids,) = encoded(tokenizer, "", "hello fox")

    assert prompt == [tokenizer.bos_token_id]
    assert ids == [*ids_of(tokenizer, "hello fox"), tokenizer.eos_token_id]


def test_an_empty_prompt_without_a_beginning_token_is_the_end_token(plain_tokenizer: Tokenizers):
    tokenizer = plain_tokenizer("bytes")
    assert tokenizer.bos_token_id is None

    prompt, _ = encoded(tokenizer, "", "hello")

    assert prompt == [tokenizer.eos_token_id]


def test_the_end_token_is_there_once_and_bears_loss(plain_tokenizer: Tokenizers, plain_name: str):
    tokenizer = plain_tokenizer(plain_name)
    eos = tokenizer.eos_token_id

    for completion in ("ab", f"ab{tokenizer.eos_token}", f"ab{tokenizer.eos_token}\n", ""):
        _, (ids,) = encoded(tokenizer, "a", completion)
        assert ids[-1] == eos
        assert ids.count(eos) == 1


@pytest.mark.parametrize("name", ["bpe first bos", "bpe first bos eos", "legacy bos"])
def test_a_prompt_that_begins_with_the_beginning_token_keeps_one(
    plain_tokenizer: Tokenizers, name: str
):
    tokenizer = plain_tokenizer(name)
    bos = tokenizer.bos_token_id

    once, _ = encoded(tokenizer, "hello", "fox")
    written, _ = encoded(tokenizer, "<s>hello", "fox")

    assert once[0] == written[0] == bos
    assert once.count(bos) == written.count(bos) == 1
    assert tokenizer("<s>hello")["input_ids"].count(bos) == 2, "the tokenizer alone doubles it"


def test_a_tokenizer_without_a_beginning_token_gets_none(plain_tokenizer: Tokenizers):
    tokenizer = plain_tokenizer("bytes")

    prompt, _ = encoded(tokenizer, "hello", "fox")

    assert prompt == ids_of(tokenizer, "hello")


def test_where_beginning_and_end_are_one_token_a_plain_prompt_is_left_as_it_is(
    plain_tokenizer: Tokenizers,
):
    tokenizer = plain_tokenizer("gpt2")
    assert tokenizer.bos_token_id == tokenizer.eos_token_id

    plain, (ids,) = encoded(tokenizer, "hello", "fox")
    begun, _ = encoded(tokenizer, "<|endoftext|>hello", "fox")

    assert plain == ids_of(tokenizer, "hello")
    assert begun == [tokenizer.bos_token_id, *ids_of(tokenizer, "hello")]
    assert ids == [*ids_of(tokenizer, "fox"), tokenizer.eos_token_id]


@pytest.mark.parametrize("name", ["bpe first bos eos", "legacy eos"])
@pytest.mark.parametrize("prompt", ["hello", "hello</s>"])
def test_an_end_token_that_the_tokenizer_adds_itself_is_no_part_of_a_prompt(
    plain_tokenizer: Tokenizers, name: str, prompt: str
):
    tokenizer = plain_tokenizer(name)
    eos = tokenizer.eos_token_id

    found, _ = encoded(tokenizer, prompt, "fox")

    assert found.count(eos) == prompt.count("</s>")
    assert tokenizer(prompt)["input_ids"].count(eos) == prompt.count("</s>") + 1


@pytest.mark.parametrize("name", ["bytes", "gpt2", "bpe first bos", "unigram first"])
def test_text_behind_the_end_token_of_a_completion_is_refused(
    plain_tokenizer: Tokenizers, name: str
):
    tokenizer = plain_tokenizer(name)

    with pytest.raises(TokenizationError, match="goes on behind its end") as caught:
        encoded(tokenizer, "hello", f"yes{tokenizer.eos_token}\nand more")

    assert "and more" in str(caught.value)
    _, (ids,) = encoded(tokenizer, "hello", f"yes{tokenizer.eos_token} \n{tokenizer.eos_token}")
    assert ids.count(tokenizer.eos_token_id) == 1


def test_an_end_token_of_the_models_generation_ends_a_completion_too(chatml_tokenizer: Any):
    tokenizer = chatml_tokenizer(None, bos=None, eos="<|end|>", special=["<|end|>", "<|stop|>"])
    stop = tokenizer.convert_tokens_to_ids("<|stop|>")
    record = Demonstration("hello", "fox<|stop|>", AT)

    with_stop = encode_record(TextEncoder(tokenizer, end_tokens=[stop]), record)
    without = encode_record(TextEncoder(tokenizer), record)

    assert with_stop.completions[0].ids.tolist()[-1] == stop
    assert without.completions[0].ids.tolist()[-2:] == [stop, tokenizer.eos_token_id]


def test_a_tokenizer_without_an_end_token_is_refused(chatml_tokenizer: Any):
    tokenizer = chatml_tokenizer()
    tokenizer.eos_token = None

    with pytest.raises(TokenizationError, match="no end-of-sequence token"):
        TextEncoder(tokenizer)


def test_a_tokenizer_that_cannot_tell_pieces_apart_is_refused(plain_tokenizer: Tokenizers):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    # Without a pre-tokenizer, every text is one token.
    words = Tokenizer(models.WordLevel({"?": 0, "</s>": 1}, unk_token="?"))
    words.add_special_tokens(["</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="?")

    with pytest.raises(TokenizationError, match="merges every text"):
        encoded(tokenizer, "hello", "fox")


def test_token_ids_are_used_as_they_are(plain_tokenizer: Tokenizers):
    tokenizer = plain_tokenizer("bpe first bos eos")
    eos = tokenizer.eos_token_id

    prompt, pieces = encoded(tokenizer, TokenIds((9, 8)), TokenIds((7, eos, 6)), TokenIds((5,)))

    assert prompt == [9, 8]
    assert pieces == [[7, eos, 6], [5]]


def test_token_ids_beyond_the_vocabulary_are_refused(plain_tokenizer: Tokenizers):
    tokenizer = plain_tokenizer("bytes")
    beyond = len(tokenizer)

    for prompt, completion in (((1,), (2, beyond)), ((beyond,), (2,))):
        with pytest.raises(TokenizationError, match="beyond the tokenizer's vocabulary") as caught:
            encoded(tokenizer, TokenIds(prompt), TokenIds(completion))
        assert str(beyond) in str(caught.value)
    encoded(tokenizer, TokenIds((1,)), TokenIds((beyond - 1,)))


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("text", TokenIds((1,))),
        (TokenIds((1,)), "text"),
        ("text", (Message("assistant", "yes"),)),
        ((Message("user", "hi"),), "text"),
    ],
)
def test_prompt_and_completion_of_two_forms_are_refused(
    plain_tokenizer: Tokenizers, prompt: Any, completion: Any
):
    with pytest.raises(TokenizationError, match="different forms"):
        encoded(plain_tokenizer("bytes"), prompt, completion)


def test_a_prompt_alone_has_no_completions(plain_tokenizer: Tokenizers):
    tokenizer = plain_tokenizer("bpe first bos")

    found = encode_record(TextEncoder(tokenizer), Prompt("hello", AT))

    assert found.prompt.tolist() == tokenizer("hello")["input_ids"]
    assert found.completions == ()
    assert found.longest == len(found.prompt)


def test_records_encoded_together_are_those_encoded_one_by_one(plain_tokenizer: Tokenizers):
    for name in ("bytes", "bpe first bos"):
        encoder = TextEncoder(plain_tokenizer(name))
        records = [
            Demonstration("hello " * (i % 5), "fox" * (i % 3), Origin("a", i)) for i in range(700)
        ]

        together = encode_records(encoder, records)

        assert len(together) == 700
        for i in (0, 1, 511, 512, 513, 699):
            assert together[i].origin.line == i
            assert together[i].key() == encode_record(encoder, records[i]).key()


@pytest.mark.parametrize("name", ["bytes", "bpe first bos"])
@pytest.mark.parametrize("is_dialogue", [False, True])
def test_pieces_that_lost_or_changed_a_token_do_not_decode_back(
    chatml_tokenizer: Any, plain_tokenizer: Tokenizers, name: str, is_dialogue: bool
):
    tokenizer = chatml_tokenizer() if is_dialogue else plain_tokenizer(name)
    record: Any = Demonstration("hello", " fox jumps", AT)
    if is_dialogue:
        record = Demonstration(
            (Message("user", "hello"),), (Message("assistant", "fox jumps"),), AT
        )
    encoder = TextEncoder(tokenizer)
    right = encode_record(encoder, record)
    check_decodes_back(encoder, [record], [right])

    ids = right.completions[0].ids
    other = ids_of(tokenizer, "q")[-1]
    for wrong in (ids[1:], np.array([other, *ids[1:]], np.int32), np.delete(ids, 1)):
        completion = TokenizedCompletion(wrong.astype(np.int32), np.ones(len(wrong), bool))
        broken = TokenizedRecord(right.prompt, (completion,), AT)
        with pytest.raises(TokenizationError, match="do not decode back"):
            check_decodes_back(encoder, [record], [broken])


def test_the_key_of_a_group_tells_apart_whatever_its_log_probabilities_depend_on():
    def group(prompt: list[int], *completions: list[int], loss: Any = None) -> bytes:
        pieces = tuple(
            TokenizedCompletion(
                np.array(c, np.int32), np.ones(len(c), bool) if loss is None else np.array(loss)
            )
            for c in completions
        )
        return TokenizedRecord(np.array(prompt, np.int32), pieces, AT).key()

    keys = [
        group([1, 2], [3], [4]),
        group([1], [2, 3], [4]),
        group([1, 2], [3, 4]),
        group([1, 2], [4], [3]),
        group([1, 2], [3]),
        group([1, 2], [3, 0], [4]),
        group([1, 2], [3], [4], loss=[False]),
    ]
    assert len(set(keys)) == len(keys)
    assert group([1, 2], [3], [4]) == keys[0]
    assert len(keys[0]) == 16


def test_texts_that_differ_in_the_end_token_only_have_different_keys():
    whole = TokenizedCompletion(np.array([3, 4], np.int32), np.ones(2, bool))
    cut = TokenizedCompletion(np.array([3], np.int32), np.ones(1, bool))
    prompt = np.array([1, 2], np.int32)

    keys = [TokenizedRecord(prompt, (c,), AT).key() for c in (whole, cut)]

    assert keys[0] != keys[1]
    # Where a text comes from is no part of it.
    assert TokenizedRecord(prompt, (whole,), Origin("b", 9)).key() == keys[0]


def test_a_pair_keeps_the_order_chosen_then_rejected(plain_tokenizer: Tokenizers):
    tokenizer = plain_tokenizer("bytes")

    found = encode_record(TextEncoder(tokenizer), Paired("hello", "yes", "no", AT))

    texts = [decoded(tokenizer, c.ids.tolist()[:-1]) for c in found.completions]
    assert texts == ["yes", "no"]
    assert found.longest == len("hello") + len("yes") + 1
