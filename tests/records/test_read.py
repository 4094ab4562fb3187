import json
from pathlib import Path

import pytest

from veritune.config import build_config
from veritune.errors import DataError, SettingsError
from veritune.records.read import DataConfig, read_records

GOOD = {"prompt": "p", "chosen": "c", "rejected": "r"}


@pytest.fixture
def make_file(tmp_path):
    def make(*rows, name="a.jsonl") -> str:
        """One line for each row; bytes are written as they are."""
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        (tmp_path / name).write_bytes(b"\n".join(lines) + b"\n")
        return str(tmp_path / name)

    return make


def config(*files: str, **settings) -> DataConfig:
    return DataConfig(files=files, **settings)


def pair(**changes):
    return GOOD | changes


def scored(**changes):
    return {"prompt": "p", "completions": ["a", "b"], "scores": [1, 2]} | changes


def label(**changes):
    return {"prompt": "p", "completion": "c", "label": True} | changes


SYSTEM, USER = {"role": "system", "content": "s"}, {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "yes"}

MALFORMED = {
    "broken JSON": (GOOD, b'{"prompt": "p", "chosen"', "not valid JSON"),
    "missing column": (GOOD, {"prompt": "p", "chosen": "c"}, 'add "rejected"'),
    "wrong type": (GOOD, pair(chosen=3), '"chosen" is neither text nor a list of messages'),
    "NaN score": (scored(), scored(scores=[1, float("nan")]), "not a finite number"),
    "infinite score": (scored(), scored(scores=[1, float("inf")]), "not a finite number"),
    "enormous score": (scored(), scored(scores=[1, 10**400]), "not a finite number"),
    "fewer scores": (scored(), scored(scores=[1]), "1 scores for 2 completions"),
    "unknown role": (
        GOOD,
        pair(prompt=[{"role": "narrator", "content": "x"}]),
        "got: 'narrator'",
    ),
    "two system messages": (GOOD, pair(prompt=[SYSTEM, SYSTEM, USER]), "two system turns"),
    "no assistant turn": (
        {"messages": [USER, ANSWER]},
        {"messages": [USER]},
        "no assistant turn",
    ),
    "not UTF-8": (GOOD, b'{"prompt": "\xe9"}', "not UTF-8"),
    "10 MB line": (GOOD, b'{"prompt": "' + b"x" * 10_000_000 + b'"}', "10,000,014 bytes"),
    # A null counts as absent, and a pair without prompt must consist of whole dialogues.
    "null prompt": (GOOD, pair(prompt=None), 'there is no column "prompt"'),
    "empty completion": (GOOD, pair(chosen=" \n"), "chosen is empty"),
    "label maybe": (label(), label(label="maybe"), "neither desirable nor undesirable"),
    "identical pair": (GOOD, pair(chosen="r"), "are the same text"),
    "duplicate key": (GOOD, b'{"prompt": "a", "prompt": "b"}', "given twice"),
    "array": (GOOD, ["p", "c", "r"], "a JSON object is expected, and this is an array"),
    "negative ids": (
        {"prompt_ids": [1], "completion_ids": [2]},
        {"prompt_ids": [1], "completion_ids": [-100]},
        "is negative",
    ),
    "another kind": (GOOD, {"prompt": "p", "completion": "c"}, "makes a demonstration record"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_row_stops_the_reading_and_its_line_is_named(name, make_file):
    good, bad, told = MALFORMED[name]
    file = make_file(good, bad, good)

    with pytest.raises(DataError) as caught:
        read_records(config(file))

    message = str(caught.value)
    assert message.startswith(f"{file}: 1 of 3 rows cannot be used")
    assert f"RecordError: {file}, line 2: " in message
    assert told in message
    assert "data.on_error=skip to go on with the other 2" in message


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_row_is_left_out_and_reported_when_errors_are_skipped(name, make_file):
    good, bad, told = MALFORMED[name]

    result = read_records(config(make_file(good, bad, good), on_error="skip"))

    assert [record.origin.line for record in result.records] == [1, 3]
    assert result.num_rows == 3
    (problem,) = result.problems.shown
    assert problem.startswith("RecordError: ")
    assert told in problem


def test_every_problem_is_collected_and_the_first_twenty_are_shown(make_file):
    file = make_file(GOOD, *[{"prompt": "p"}] * 2, *[b"{"] * 30)

    with pytest.raises(DataError) as caught:
        read_records(config(file))

    message = str(caught.value)
    assert message.count("RecordError: ") == 20
    assert "and 12 more (total 32)" in message
    assert "32 of 33 rows cannot be used" in message


def test_skipping_every_row_is_refused(make_file):
    with pytest.raises(DataError, match="2 of 2 rows cannot be used") as caught:
        read_records(config(make_file(b"{", b"{"), on_error="skip"))

    assert "on_error" not in str(caught.value)


def test_files_are_read_in_order_and_origins_name_them(make_file):
    first, second = make_file(GOOD, name="b.jsonl"), make_file(GOOD, GOOD, name="a.jsonl")

    result = read_records(config(first, second))

    assert [str(record.origin) for record in result.records] == [
        f"{first}, line 1",
        f"{second}, line 1",
        f"{second}, line 2",
    ]
    assert (result.kind, result.files, len(result.problems)) == ("paired", (first, second), 0)


def test_identical_pairs_are_dropped_and_counted_or_kept_on_request(make_file):
    file = make_file(GOOD, pair(chosen="r"))

    dropped = read_records(config(file, identical_pairs="drop"))
    kept = read_records(config(file, identical_pairs="keep"))

    assert (len(dropped.records), dropped.num_identical_dropped, dropped.num_rows) == (1, 1, 2)
    assert (len(kept.records), kept.num_identical_dropped) == (2, 0)


def test_a_file_of_identical_pairs_alone_is_refused_when_they_are_dropped(make_file):
    with pytest.raises(DataError, match="all 1 pairs have identical completions"):
        read_records(config(make_file(pair(chosen="r")), identical_pairs="drop"))


def test_the_kind_is_forced_by_the_settings_before_the_argument(make_file):
    file = make_file({"messages": [USER, ANSWER], "prompt": "p"})

    assert read_records(config(file)).kind == "demonstration"
    assert read_records(config(file), kind="prompt").kind == "prompt"
    assert read_records(config(file, kind="demonstration"), kind="prompt").kind == "demonstration"


def test_renamed_columns_are_read(make_file):
    file = make_file({"question": "q", "chosen": "c", "rejected": "r"})

    (record,) = read_records(config(file, columns={"question": "prompt"})).records

    assert record.prompt == "q"


def test_a_renamed_column_that_no_row_has_is_refused(make_file):
    with pytest.raises(DataError, match=r"no row has(.|\n)*got: \['qestion'\]"):
        read_records(config(make_file(GOOD), columns={"qestion": "prompt"}))


def test_csv_text_stays_what_it_is(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,completion,label\nis 01 one?,NA,1\nnull,nan,false\n")

    records = read_records(config(str(path))).records

    assert [(r.prompt, r.completion, r.desirable) for r in records] == [
        ("is 01 one?", "NA", True),
        ("null", "nan", False),
    ]


@pytest.mark.parametrize("value", ["a.jsonl", ["a.jsonl"], {"files": "a.jsonl"}])
def test_files_may_be_one_name_a_list_or_a_mapping(value):
    assert DataConfig.model_validate(value).files == ("a.jsonl",)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"files": []}, "files"),
        ({"files": "a", "kind": "pair"}, "not a kind of record"),
        ({"files": "a", "columns": {"x": "promt"}}, "did you mean prompt"),
        ({"files": "a", "columns": {"x": "prompt", "y": "prompt"}}, "would become one"),
        ({"files": "a", "on_error": "ignore"}, "on_error"),
    ],
)
def test_settings_that_cannot_be_honored_are_refused(values, told):
    with pytest.raises(SettingsError, match=told):
        build_config(DataConfig, values, where="run.yaml")


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="does not exist"):
        read_records(config(str(tmp_path / "none.jsonl"), on_error="skip"))
