import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veritune.errors import DataError
from veritune.records.kinds import (
    Demonstration,
    Message,
    Origin,
    Paired,
    Prompt,
    Rendering,
    Scored,
    TokenIds,
    Unpaired,
)
from veritune.records.read import DataConfig, read_records
from veritune.records.write import write_records

AT = Origin("made", 1)

# Besides the characters that hypothesis likes: those that end lines or look like structure.
ODD = st.sampled_from(["\n", "\r\n", "\u2028", "\u2029\x85", "\x00", '"\\', "[{", "\n\nHuman: a"])
TEXT = st.lists(st.one_of(st.text(max_size=8), ODD), max_size=3).map("".join)
SPOKEN = TEXT.filter(lambda text: bool(text.strip()))
VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(TEXT, inner, max_size=2)),
    max_leaves=4,
)
EXTRA = st.dictionaries(TEXT.filter(lambda k: k not in ("role", "content")), VALUES, max_size=2)
OBJECTS = st.dictionaries(TEXT, VALUES, max_size=2)
RENDERING = st.builds(Rendering, st.lists(OBJECTS, max_size=2).map(tuple), OBJECTS)


def turns(role, content=TEXT):
    return st.builds(Message, st.just(role), content, EXTRA)


IDS = st.lists(st.integers(0, 2**31), min_size=1, max_size=4).map(lambda i: TokenIds(tuple(i)))
DIALOGUE = st.builds(
    lambda system, exchanges, last: (*system, *(t for pair in exchanges for t in pair), last),
    st.lists(turns("system"), max_size=1),
    st.lists(st.tuples(turns("user"), turns("assistant")), max_size=2),
    st.one_of(turns("user"), turns("tool")),
)
ANSWER = st.builds(
    lambda first, rest: (first, *(t for pair in rest for t in pair)),
    turns("assistant", SPOKEN),
    st.lists(st.tuples(turns("tool"), turns("assistant", SPOKEN)), max_size=1),
)
FORMS = [(TEXT, SPOKEN), (DIALOGUE, ANSWER), (IDS, IDS)]


def score_list(completions):
    scores = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=4)
    return scores.flatmap(
        lambda s: st.tuples(
            st.lists(completions, min_size=len(s), max_size=len(s)).map(tuple), st.just(tuple(s))
        )
    )


def each_form(make):
    return st.one_of([make(prompt, completion) for prompt, completion in FORMS])


def several(records):
    return st.lists(records, min_size=1, max_size=4)


RECORDS = {
    "paired": each_form(
        lambda p, c: several(
            st.builds(Paired, p, c, c, st.just(AT), RENDERING).filter(
                lambda record: record.chosen != record.rejected
            )
        )
    ),
    "unpaired": each_form(
        lambda p, c: several(st.builds(Unpaired, p, c, st.booleans(), st.just(AT), RENDERING))
    ),
    "scored": each_form(
        lambda p, c: several(
            st.builds(
                lambda prompt, group, rendering: Scored(prompt, *group, AT, rendering),
                p,
                score_list(c),
                RENDERING,
            )
        )
    ),
    "demonstration": each_form(
        lambda p, c: several(st.builds(Demonstration, p, c, st.just(AT), RENDERING))
    ),
    "prompt": each_form(lambda p, c: several(st.builds(Prompt, p, st.just(AT), RENDERING))),
}


@pytest.mark.parametrize("kind", RECORDS)
@given(data=st.data())
def test_what_is_written_reads_back_equal_but_for_its_origin(kind, data):
    records = data.draw(RECORDS[kind])
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        write_records(records, path)
        result = read_records(DataConfig(files=(str(path),)))
        lines = path.read_text(encoding="utf-8").splitlines()

    assert [replace(record, origin=AT) for record in result.records] == records
    assert result.kind == kind
    # Even a tool that ends lines at U+2028 finds one object in each line.
    assert [type(json.loads(line)) for line in lines] == [dict] * len(records)


RECORD = Paired("p", "c", "ä", AT)


def test_text_is_written_as_it_is_read_by_people(tmp_path):
    write_records([RECORD], tmp_path / "a.jsonl")

    text = (tmp_path / "a.jsonl").read_text(encoding="utf-8")
    assert text == '{"prompt": "p", "chosen": "c", "rejected": "ä"}\n'


def test_a_file_that_exists_is_kept_unless_overwriting_is_allowed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("precious")

    with pytest.raises(DataError, match="exists already"):
        write_records([RECORD], path)
    assert path.read_text() == "precious"

    write_records([RECORD], path, overwrite=True)
    assert path.read_text() != "precious"


def test_a_failure_in_the_middle_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("old")
    unwritable = Prompt((Message("user", "x", {"when": object()}),), AT)

    with pytest.raises(DataError, match="made, line 1: the record holds a value"):
        write_records([Prompt("p", AT), unwritable], path, overwrite=True)

    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


def test_missing_folders_are_made(tmp_path):
    write_records([RECORD], tmp_path / "new" / "folder" / "a.ndjson")

    assert (tmp_path / "new" / "folder" / "a.ndjson").is_file()


@pytest.mark.parametrize(
    ("records", "name", "told"),
    [
        ([], "a.jsonl", "records of one kind, at least one"),
        ([RECORD, Prompt("p", AT)], "a.jsonl", r"\['paired', 'prompt'\]"),
        ([RECORD], "a.parquet", r"ends in \.jsonl"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(records, name, told, tmp_path):
    with pytest.raises(DataError, match=told):
        write_records(records, tmp_path / name)

    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_to_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(DataError, match=r"file/a\.jsonl: the file cannot be written"):
        write_records([RECORD], tmp_path / "file" / "a.jsonl")
