import gzip
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from veritune.errors import DataError, RecordError
from veritune.records.sources import iter_rows

ROWS = [
    {"prompt": "a", "chosen": "NA", "rejected": "c"},
    {"prompt": "ä\n\u2028", "chosen": '"', "rejected": ","},
]


def rows_of(path: Path, **settings):
    return [row for _, row in iter_rows(str(path), **settings)]


def write_stream(path: Path, table: pa.Table) -> None:
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


def write_csv(path: Path, delimiter: str) -> None:
    import csv

    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


def write_lines(path: Path) -> None:
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    content = text.encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


WRITERS = {
    "a.jsonl": write_lines,
    "a.ndjson": write_lines,
    "a.JSONL": write_lines,
    "a.jsonl.gz": write_lines,
    "a.json": lambda path: path.write_text(json.dumps(ROWS)),
    "a.csv": lambda path: write_csv(path, ","),
    "a.tsv": lambda path: write_csv(path, "\t"),
    "a.parquet": lambda path: pa.parquet.write_table(pa.Table.from_pylist(ROWS), path),
    "a.feather": lambda path: pa.feather.write_feather(pa.Table.from_pylist(ROWS), str(path)),
    "a.arrow": lambda path: write_stream(path, pa.Table.from_pylist(ROWS)),
    "folder": lambda path: datasets.Dataset.from_list(ROWS).save_to_disk(str(path)),
    "splits": lambda path: datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS)}
    ).save_to_disk(str(path)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(name, tmp_path):
    WRITERS[name](tmp_path / name)

    assert rows_of(tmp_path / name) == ROWS


def test_a_null_field_of_a_struct_column_is_absent(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "a", "name": None}], "ids": [1, 2]},
        {"messages": [{"role": "user", "content": "b", "name": "x"}], "ids": [3]},
    ]
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")

    first, second = rows_of(tmp_path / "a.parquet")

    assert first == {"messages": [{"role": "user", "content": "a"}], "ids": [1, 2]}
    assert second["messages"][0]["name"] == "x"


def test_rows_of_a_table_are_numbered_across_batches(tmp_path):
    rows = [{"prompt": str(number)} for number in range(2500)]
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")

    *_, (origin, row) = iter_rows(str(tmp_path / "a.parquet"))

    assert (origin.line, origin.unit, row["prompt"]) == (2500, "row", "2499")


def test_json_in_a_csv_cell_is_read_only_where_messages_or_lists_can_stand(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(
        "prompt,completions,scores,note\n"
        '"[{""role"": ""user"", ""content"": ""hi""}]","[""a"", ""b""]","[1, 0.5]","{""a"": 1}"\n'
        '"[1, 2]","[""a"", ""b""]","[1, 0]",NA\n'
    )

    first, second = rows_of(path)

    assert first["prompt"] == [{"role": "user", "content": "hi"}]
    assert (first["completions"], first["scores"]) == (["a", "b"], [1, 0.5])
    assert (second["prompt"], second["note"]) == ("[1, 2]", "NA")


def test_csv_problems_name_the_line_on_which_the_row_begins(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'prompt,completion\n"two\nlines",x\nonly one\n\xff,y\n"a"b,z\np,q\n')

    items = list(iter_rows(str(path)))

    assert [item[0].line for item in items if isinstance(item, tuple)] == [2, 7]
    problems = [str(item) for item in items if isinstance(item, RecordError)]
    assert "line 4: the row has 1 cells, and the header names 2 columns" in problems[0]
    assert "line 5: a cell is not UTF-8" in problems[1]
    assert "line 6: not valid CSV" in problems[2]


def test_a_renamed_column_replaces_one_that_has_the_name(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "q", "prompt": "p", "other": 1}\n')

    assert rows_of(path, columns={"question": "prompt"}) == [{"prompt": "q", "other": 1}]


def test_json_in_a_csv_cell_is_read_by_the_name_the_column_gets(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('ratings\n"[1, 2]"\n')

    assert rows_of(path, columns={"ratings": "scores"}) == [{"scores": [1, 2]}]


def damaged_gzip() -> bytes:
    whole = gzip.compress(b'{"prompt": "a"}\n' * 1000, mtime=0)
    return whole[: len(whole) // 2]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", b"", "the file is empty"),
        ("a.jsonl", b"\n \n", "the file is empty"),
        ("a.json", b"[]", "the file is empty"),
        ("a.csv", b"prompt,chosen\n", "the file is empty"),
        ("a.csv", b"", "the file is empty"),
        ("a.csv", b'"prompt"x,chosen\na,b\n', "damaged or cannot be read"),
        ("a.csv", b"prompt,prompt\na,b\n", "names a column twice"),
        ("a.txt", b"hello", ".jsonl, .ndjson, .json, .csv, .tsv"),
        ("a.parquet", b"PAR1 but not really", "damaged or cannot be read"),
        ("a.arrow", b"no arrow at all", "damaged or cannot be read"),
        ("a.jsonl.gz", b"no gzip at all", "damaged or cannot be read"),
        ("a.jsonl.gz", damaged_gzip(), "damaged or cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_its_name(name, content, told, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(DataError) as caught:
        rows_of(path)

    assert str(caught.value).startswith(str(path))
    assert told in str(caught.value)


def test_a_folder_that_is_no_data_set_is_refused_and_its_files_are_named(tmp_path):
    (tmp_path / "part-1.jsonl").write_text("{}")

    with pytest.raises(DataError, match=r"the folder is no data set(.|\n)*part-1\.jsonl"):
        rows_of(tmp_path)


def test_a_damaged_saved_data_set_is_refused(tmp_path):
    (tmp_path / "state.json").write_text("{")

    with pytest.raises(DataError, match="cannot be read as a data set"):
        rows_of(tmp_path)


def test_a_missing_split_of_a_folder_names_the_splits_there_are(tmp_path):
    WRITERS["splits"](tmp_path / "set")

    with pytest.raises(DataError, match=r"no split 'test'(.|\n)*\['train'\]"):
        rows_of(tmp_path / "set", split="test")


def test_a_missing_file_names_the_nearest_one(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("{}")

    with pytest.raises(DataError, match=r"does not exist(.|\n)*did you mean .*/pairs\.jsonl\?"):
        rows_of(tmp_path / "pair.jsonl")


def test_a_hub_id_is_loaded_with_the_split(monkeypatch):
    asked = []

    def fake_load(name, subset, *, split):
        asked.append((name, subset, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", fake_load)

    items = list(iter_rows("owner/pairs-v1.5", split="test", subset="clean"))

    assert asked == [("owner/pairs-v1.5", "clean", "test")]
    assert [row for _, row in items] == ROWS
    assert str(items[1][0]) == "owner/pairs-v1.5[test], row 2"


def test_an_id_that_the_hub_does_not_give_names_the_nearest_file(monkeypatch, tmp_path):
    def failing_load(name, subset, *, split):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", failing_load)
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text("{}")

    with pytest.raises(
        DataError, match=r"neither a file(.|\n)*did you mean the file pairs.jsonl\?"
    ):
        list(iter_rows("pairs"))
