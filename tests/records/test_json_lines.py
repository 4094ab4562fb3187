from io import BytesIO

import pytest

from veritune.errors import DataError, RecordError
from veritune.records.json_lines import iter_json, iter_json_lines


def lines(content: bytes, **settings):
    return list(iter_json_lines(BytesIO(content), "a.jsonl", **settings))


def test_rows_carry_the_one_based_line_and_blank_lines_count():
    items = lines(b'{"prompt": "a"}\n\n  \n{"prompt": "b"}')

    assert [(origin.line, row) for origin, row in items] == [
        (1, {"prompt": "a"}),
        (4, {"prompt": "b"}),
    ]


def test_a_byte_order_mark_and_windows_line_ends_are_passed_over():
    items = lines(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}\r\n')

    assert [row for _, row in items] == [{"prompt": "a"}, {"prompt": "b"}]


def test_a_line_separator_of_unicode_does_not_end_a_line():
    (item,) = lines('{"prompt": "a\u2028b\x85c"}'.encode())

    assert item[1] == {"prompt": "a\u2028b\x85c"}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b'{"prompt": "a"', "not valid JSON"),
        (b'{"prompt": "\xff"}', "byte 13 of the line is not UTF-8"),
        (b'["prompt"]', "this is an array"),
        (b"3", "this is a number"),
        (b"null", "this is null"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' is given twice"),
        (b'{"a": {"b": 1, "b": 1}}', "the key 'b' is given twice"),
        (b"[" * 100_000, "not usable JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not usable JSON"),
    ],
)
def test_a_bad_line_is_a_problem_that_names_it_and_reading_goes_on(line, told):
    before, problem, after = lines(b'{"prompt": "a"}\n' + line + b'\n{"prompt": "b"}\n')

    assert isinstance(problem, RecordError)
    assert told in str(problem)
    assert str(problem).startswith("a.jsonl, line 2:")
    assert (before[1], after[1]) == ({"prompt": "a"}, {"prompt": "b"})


def test_a_line_of_ten_megabytes_is_a_problem_that_names_line_and_size():
    long_line = b'{"prompt": "' + b"x" * 10_000_000 + b'"}'

    problem, after = lines(long_line + b'\n{"prompt": "b"}')

    assert "line 1: the line is 10,000,014 bytes long, and the limit is 8,388,608" in str(problem)
    assert after[0].line == 2


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_the_limit_counts_the_line_without_its_end(end):
    (fits,) = lines(b'{"a": 1}' + end, max_line_bytes=8)
    (too_long,) = lines(b'{"a": 12}' + end, max_line_bytes=8)

    assert fits[1] == {"a": 1}
    assert "9 bytes" in str(too_long) or "10 bytes" in str(too_long)


def test_a_utf16_file_is_refused_as_a_whole():
    with pytest.raises(DataError, match="UTF-16"):
        lines('{"prompt": "a"}\n'.encode("utf-16"))


def test_a_json_list_and_an_object_with_data_give_the_same_rows():
    rows = b'[{"prompt": "a"}, {"prompt": "b"}]'

    plain = list(iter_json(BytesIO(rows), "a.json"))
    wrapped = list(iter_json(BytesIO(b'{"data": ' + rows + b"}"), "a.json"))

    assert plain == wrapped
    assert [str(origin) for origin, _ in plain] == ["a.json, row 1", "a.json, row 2"]


def test_json_lines_under_the_name_json_are_read_as_lines():
    items = list(iter_json(BytesIO(b'{"prompt": "a"}\n{"prompt": "b"}\n'), "a.json"))

    assert [origin.unit for origin, _ in items] == ["line", "line"]


def test_an_item_of_a_json_list_that_is_no_object_is_a_problem():
    _, second = iter_json(BytesIO(b'[{"prompt": "a"}, ["b"]]'), "a.json")

    assert isinstance(second, RecordError)
    assert "a.json, row 2" in str(second)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'[{"prompt": "a"},\n {"prompt"}]', "a.json, line 2: not valid JSON"),
        (b'[{"a": 1, "a": 2}]', "the key 'a' is given twice"),
        (b'[\n"\xff"]', "line 2: the file is not UTF-8"),
        (b"3", "neither a list of objects nor an object"),
    ],
)
def test_a_damaged_json_file_is_refused_as_a_whole(content, told):
    with pytest.raises(DataError, match=r"a\.json") as caught:
        list(iter_json(BytesIO(content), "a.json"))

    assert told in str(caught.value)
