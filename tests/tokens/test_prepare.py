"""Prepared data are what reading, splitting, converting and tokenizing one by one give; they are
found again as long as nothing changed that they depend on, and made again if something did."""

import gc
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from veritune.errors import DataError, SettingsError, VerituneWarning
from veritune.models.tiny import byte_level_tokenizer
from veritune.records.convert import convert_records
from veritune.records.kinds import Paired
from veritune.records.read import DataConfig, read_records
from veritune.records.split import split_by_prompt
from veritune.records.survey import prompts_in_common
from veritune.tokens import prepare as module
from veritune.tokens import stored
from veritune.tokens.chunk import TokenCounts
from veritune.tokens.dataset import ARRAYS, TokenizedDataset, tokenize
from veritune.tokens.encode import TextEncoder, TokensConfig
from veritune.tokens.prepare import Prepared, Recipe, prepare
from veritune.tokens.stored import DamagedError, put_in_place, read_entry, remove_abandoned

LIMIT = 60
BROKEN = {"prompt": "p", "chosen": "", "rejected": "r"}
Write = Callable[..., str]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(byte_level_tokenizer())


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_ROWS", 4)
    monkeypatch.setattr(module, "_CHUNKS_HERE", 2)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*rows: object, name: str = "a.jsonl") -> str:
        file = tmp_path / name
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(file)

    return write


@pytest.fixture
def make(tmp_path: Path, encoder: TextEncoder) -> Callable[..., Prepared]:
    def make(file: str, kind: str = "paired", **more: Any) -> Prepared:
        given = {name: more.pop(name) for name in ("on_error", "identical_pairs") if name in more}
        own = more.pop("encoder", encoder)
        workers = more.pop("num_workers", 0)
        recipe = Recipe(DataConfig(files=(file,), **given), kind, more.pop("limit", LIMIT), **more)
        return prepare(recipe, own, tmp_path / "cache", num_workers=workers)

    return make


def pairs(number: int, num_prompts: int = 7) -> list[dict[str, str]]:
    prompts = [f"p{n}" * (1 + 12 * n) for n in range(num_prompts)]
    return [
        {"prompt": prompts[n % num_prompts], "chosen": "c" * (1 + n), "rejected": "r"}
        for n in range(number)
    ]


def scored(number: int) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"p{n % 5}",
            "completions": [f"{n}-{k}" for k in range(1 + n % 4)],
            "scores": [float(k % 3) for k in range(1 + n % 4)],
        }
        for n in range(number)
    ]


def labels(number: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"p{n % 6}", "completion": "c" * n, "label": n % 3 == 0}
        for n in range(1, number + 1)
    ]


def arrays(dataset: TokenizedDataset) -> dict[str, Any]:
    named = ("ids", "bears_loss", "piece_starts", "group_starts", "desirable")
    return {
        **{name: getattr(dataset, name).tolist() for name in named},
        "types": [getattr(dataset, name).dtype for name in named],
        "scores": list(dataset.scores),
        "origins": list(dataset.origins),
        "counts": (
            dataset.lengths,
            dataset.problems,
            dataset.dropped_identical,
            dataset.num_without_end,
        ),
        "about": (dataset.kind, dataset.max_length, dataset.bos),
    }


@pytest.mark.parametrize("fraction", [None, 0.3])
@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        (pairs(23), "paired"),
        (pairs(23), "unpaired"),
        (pairs(5), "scored"),
        (scored(19), "scored"),
        (scored(19), "paired"),
        (labels(30), "unpaired"),
        (labels(30), "demonstration"),
    ],
)
def test_prepared_data_are_those_of_the_plain_way(
    rows: list[Any], kind: str, fraction: float | None, write: Write, make: Any, encoder: Any
):
    file = write(*rows)
    records = read_records(DataConfig(files=(file,))).records
    sides = (records, ()) if fraction is None else split_by_prompt(records, fraction, 3)
    kept, held_out = (convert_records(side, kind).records for side in sides)

    made = make(file, kind, held_out_fraction=fraction, seed=3).entry

    assert made.found.num_rows == len(rows)
    assert arrays(made.kept.dataset) == arrays(tokenize(kept, encoder, max_length=LIMIT))
    prompts = {record.prompt for record in kept}
    assert len(made.kept.prompts) == len(prompts)
    if fraction is None:
        assert made.held_out is None
    else:
        expected = tokenize(held_out, encoder, max_length=LIMIT)
        assert arrays(made.held_out.dataset) == arrays(expected)


def test_processes_make_what_one_process_makes(write: Write, make: Any, tmp_path: Path):
    rows: list[Any] = pairs(70)
    for place in (11, 40, 41):
        rows[place] = BROKEN
    rows[50] |= {"prompt": [{"role": "user", "content": "a<|im_end|>b"}]}
    rows[50] |= {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    file = write(*rows)
    words = {"on_error": "skip", "held_out_fraction": 0.3}

    alone = make(file, **words)
    os.rename(tmp_path / "cache", tmp_path / "other")
    together = make(file, num_workers=2, **words)

    assert not together.was_kept
    for name in ("kept", "held_out"):
        one, other = (getattr(made.entry, name) for made in (alone, together))
        assert arrays(one.dataset) == arrays(other.dataset)
        assert one.identity == other.identity
        assert one.prompts.tolist() == other.prompts.tolist()
    assert alone.entry.found.problems == together.entry.found.problems
    assert len(alone.entry.found.problems) == 3


def test_processes_tell_the_problems_that_one_process_tells(write: Write, make: Any):
    rows: list[Any] = pairs(70)
    for place in (0, 1, 2, 3, 4, 11, 40, 69):
        rows[place] = BROKEN
    file = write(*rows)

    told = []
    for num_workers in (0, 2):
        with pytest.raises(DataError, match="8 of 70 rows cannot be used") as caught:
            make(file, num_workers=num_workers)
        told.append(str(caught.value))

    assert told[0] == told[1]
    assert "line 70" in told[0]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_kind_of_the_first_sound_row_rules_over_whole_chunks_of_another_kind(
    num_workers: int, write: Write, make: Any
):
    file = write(*pairs(4), *labels(20))

    with pytest.raises(DataError, match="20 of 24 rows cannot be used") as caught:
        make(file, num_workers=num_workers)

    assert "line 5: the row makes an unpaired record, and the first one" in str(caught.value)
    assert f"the first is that of {file}, line 1" in str(caught.value)


def test_problems_of_rows_are_told_before_those_of_tokens(write: Write, make: Any):
    """What cannot be read has to be mended first, wherever it stands."""
    long = {"prompt": "p", "chosen": "c" * 100, "rejected": "r"}
    file = write(long, *pairs(30), BROKEN)
    own = TextEncoder(byte_level_tokenizer(), TokensConfig(long_completions="stop"))

    with pytest.raises(DataError, match="1 of 32 rows cannot be used"):
        make(file, encoder=own)

    with pytest.raises(DataError, match="a completion is too long"):
        make(write(*pairs(30), long), encoder=own)


@pytest.mark.parametrize("num_prompts", [2, 3])
@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_where_all_prompts_draw_one_side_the_split_is_that_of_the_plain_way(
    num_prompts: int, fraction: float, write: Write, make: Any
):
    file = write(*pairs(13, num_prompts))
    records = read_records(DataConfig(files=(file,))).records

    for seed in range(4):
        kept, held_out = split_by_prompt(records, fraction, seed)
        made = make(file, held_out_fraction=fraction, seed=seed, limit=500).entry

        assert list(made.kept.dataset.origins) == [record.origin for record in kept]
        assert list(made.held_out.dataset.origins) == [record.origin for record in held_out]


def test_a_single_prompt_is_not_split(write: Write, make: Any, tmp_path: Path):
    with pytest.raises(DataError, match="nothing is held out"):
        make(write(*pairs(9, 1)), held_out_fraction=0.5, limit=500)

    assert list((tmp_path / "cache" / "tokens").iterdir()) == []


def test_only_a_few_records_are_in_memory_at_a_time(write: Write, tmp_path: Path, encoder: Any):
    file = write(*pairs(80))

    def alive() -> int:
        return sum(type(made) is Paired for made in gc.get_objects())

    gc.collect()
    before = alive()
    counts: list[int] = []

    recipe = Recipe(DataConfig(files=(file,)), "paired", 200)
    made = prepare(
        recipe,
        encoder,
        tmp_path / "cache",
        num_workers=0,
        progress=lambda _: counts.append(alive() - before),
    )

    assert len(made.entry.kept.dataset) == 80
    assert len(counts) == 20
    assert max(counts) <= 2 * 4


def test_a_second_run_takes_what_the_first_kept(
    write: Write, make: Any, monkeypatch: pytest.MonkeyPatch
):
    rows = [*pairs(20), {"prompt": "p", "chosen": "c", "rejected": "c"}]
    file = write(*rows)
    words = {"kind": "unpaired", "on_error": "skip", "held_out_fraction": 0.4}
    first = make(file, **words)
    monkeypatch.setattr(module, "_make", None)

    second = make(file, **words)

    assert (first.was_kept, second.was_kept) == (False, True)
    assert first.entry.found.problems == second.entry.found.problems
    assert first.entry.found.num_rows == second.entry.found.num_rows == 21
    for name in ("kept", "held_out"):
        one, other = (getattr(made.entry, name) for made in (first, second))
        assert arrays(one.dataset) == arrays(other.dataset)
        assert one.conversion == other.conversion
        assert one.identity == other.identity


def test_whatever_the_tokens_depend_on_makes_them_anew(write: Write, make: Any, tmp_path: Path):
    rows = pairs(12)
    template = tmp_path / "template.jinja"
    chatml = byte_level_tokenizer().chat_template
    template.write_text(chatml + "{# another #}")
    other = byte_level_tokenizer()
    other.pad_token = other.eos_token
    encoders = [
        TextEncoder(byte_level_tokenizer(), TokensConfig(long_prompts="drop")),
        TextEncoder(byte_level_tokenizer(), TokensConfig(chat_template=str(template))),
        TextEncoder(byte_level_tokenizer(), TokensConfig(chat_template_kwargs={"a": 1})),
        TextEncoder(byte_level_tokenizer(), end_tokens=[5]),
        TextEncoder(byte_level_tokenizer(["ab ab ab"], vocab_size=262)),
        TextEncoder(other),
    ]
    file = write(*rows)
    made = [
        make(file),
        make(file, "unpaired"),
        make(file, limit=LIMIT + 1),
        make(file, identical_pairs="drop"),
        make(file, on_error="skip"),
        make(file, setting="evaluation.data"),
        make(file, held_out_fraction=0.5),
        make(file, held_out_fraction=0.6),
        make(file, held_out_fraction=0.5, seed=1),
        *(make(file, encoder=own) for own in encoders),
        make(write(*rows, rows[0])),
        make(write(*rows, name="b.jsonl")),
    ]

    assert not any(each.was_kept for each in made)
    assert len({each.folder for each in made}) == len(made)
    assert make(write(*rows)).was_kept
    # Nothing is held out, so no seed is used.
    assert make(file, seed=7).was_kept
    kept_template = TextEncoder(byte_level_tokenizer(), TokensConfig(chat_template=str(template)))
    assert make(file, encoder=kept_template).was_kept


def test_a_template_that_tells_the_date_is_rendered_every_day(
    write: Write, make: Any, monkeypatch: pytest.MonkeyPatch
):
    file = write(*pairs(3))
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%d') }}" + tokenizer.chat_template
    own = TextEncoder(tokenizer)

    folders = []
    for day in ("2026-01-01", "2026-01-02"):
        monkeypatch.setattr(module.time, "strftime", lambda form, day=day: day)
        folders.append(make(file, encoder=own).folder)

    assert len(set(folders)) == 2


def test_code_that_changed_makes_the_tokens_anew(
    write: Write, make: Any, monkeypatch: pytest.MonkeyPatch
):
    file = write(*pairs(3))
    make(file)
    monkeypatch.setattr(module, "_code_identity", lambda: "another")

    assert not make(file).was_kept


def damage(folder: Path, how: str) -> None:
    ids = folder / "kept" / "ids.bin"
    content = ids.read_bytes()
    if how == "a bit":
        ids.write_bytes(content[:9] + bytes([content[9] ^ 1]) + content[10:])
    elif how == "the end":
        ids.write_bytes(content[:-4])
    elif how == "a file":
        ids.unlink()
    elif how == "no description":
        (folder / "about.json").unlink()
    else:
        (folder / "about.json").write_text('{"found": {}}')


@pytest.mark.parametrize("how", ["a bit", "the end", "a file", "no description", "description"])
def test_damaged_tokens_are_made_again_with_a_warning(how: str, write: Write, make: Any):
    file = write(*pairs(9))
    first = make(file)
    expected = arrays(first.entry.kept.dataset)
    damage(first.folder, how)

    with pytest.warns(VerituneWarning, match="are damaged .* they are made again"):
        second = make(file)

    assert not second.was_kept
    assert arrays(second.entry.kept.dataset) == expected
    assert make(file).was_kept


def test_a_run_that_fails_leaves_nothing(write: Write, make: Any, tmp_path: Path):
    with pytest.raises(DataError):
        make(write(*pairs(9), BROKEN))

    assert list((tmp_path / "cache" / "tokens").iterdir()) == []


def test_the_faster_of_two_writers_wins_and_both_read_the_same(
    write: Write, make: Any, tmp_path: Path
):
    folder = make(write(*pairs(9))).folder
    beside = folder.with_name(".beside")
    os.rename(folder, beside)
    make(write(*pairs(9)))
    before = (folder / "about.json").stat().st_ino

    put_in_place(beside, folder)

    assert (folder / "about.json").stat().st_ino == before
    assert not beside.exists()
    read_entry(folder)


def test_an_entry_is_put_in_the_place_of_a_damaged_one(write: Write, make: Any):
    folder = make(write(*pairs(9))).folder
    beside = folder.with_name(".beside")
    os.rename(folder, beside)
    make(write(*pairs(9)))
    damage(folder, "a bit")
    with pytest.raises(DamagedError):
        read_entry(folder)

    put_in_place(beside, folder)

    read_entry(folder)
    assert not beside.exists()


def test_an_entry_that_cannot_be_put_in_its_place_is_an_error(
    write: Write, make: Any, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> None:
        raise PermissionError("not here")

    monkeypatch.setattr(stored.os, "rename", refuse)

    with pytest.raises(SettingsError, match="the cache folder cannot be written"):
        make(write(*pairs(3)))


def test_a_file_that_changes_while_it_is_read_is_refused(
    write: Write, tmp_path: Path, encoder: Any
):
    file = write(*pairs(20))

    def grow(done: int) -> None:
        with open(file, "a") as opened:
            opened.write(json.dumps(pairs(1)[0]) + "\n")

    calls: Iterator[Callable[[int], None]] = iter([grow])

    def grow_once(done: int) -> None:
        next(calls, lambda done: None)(done)

    recipe = Recipe(DataConfig(files=(file,)), "paired", LIMIT)
    with pytest.raises(DataError, match="changed while it was read"):
        prepare(recipe, encoder, tmp_path / "cache", num_workers=0, progress=grow_once)

    assert list((tmp_path / "cache" / "tokens").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_refused_before_anything_is_read(
    write: Write, tmp_path: Path, encoder: Any
):
    (tmp_path / "cache").write_text("a file")
    recipe = Recipe(DataConfig(files=(write(*pairs(3)),)), "paired", LIMIT)

    with pytest.raises(SettingsError, match="the cache folder cannot be written"):
        prepare(recipe, encoder, tmp_path / "cache", num_workers=0)


def test_origins_of_several_files_are_lines_and_rows(write: Write, tmp_path: Path, encoder: Any):
    table = tmp_path / "b.parquet"
    pa.parquet.write_table(pa.Table.from_pylist(pairs(6)), table)
    config = DataConfig(files=(write(*pairs(6)), str(table)))

    made = prepare(Recipe(config, "paired", 200), encoder, tmp_path / "cache", num_workers=0)

    records = read_records(config).records
    origins = made.entry.kept.dataset.origins
    assert list(origins) == [record.origin for record in records]
    assert str(origins[-1]) == f"{table}, row 6"
    assert origins[5:7] == (records[5].origin, records[6].origin)


def test_prompts_on_both_sides_are_those_of_the_plain_way(write: Write, make: Any, encoder: Any):
    ours, theirs = write(*pairs(20, 7)), write(*pairs(20, 5), name="b.jsonl")
    one, other = (make(file, limit=500).entry.kept.prompts for file in (ours, theirs))
    both = [read_records(DataConfig(files=(file,))).records for file in (ours, theirs)]

    common = np.intersect1d(one, other, assume_unique=True)

    assert len(common) == len(prompts_in_common(*both)) > 0


def test_arrays_lie_on_disk(write: Write, make: Any):
    made = make(write(*pairs(9)))

    for name in ("ids", "bears_loss", "piece_starts"):
        array = getattr(made.entry.kept.dataset, name)
        assert array.base is not None, "the numbers belong to a mapping"
        assert (made.folder / "kept" / f"{name}.bin").stat().st_size == array.nbytes
    files = {file.stem for file in (made.folder / "kept").iterdir()}
    assert files == {*ARRAYS, "prompts"}


def test_what_killed_processes_left_is_removed_after_a_day(tmp_path: Path):
    for name, hours in ((".old.x", 30), (".new.x", 3), ("whole", 300)):
        (tmp_path / name / "kept").mkdir(parents=True)
        (tmp_path / name / "kept" / "ids.bin").write_bytes(b"x")
        for file in (tmp_path / name).rglob("*"):
            os.utime(file, (time.time() - hours * 3600,) * 2)
        os.utime(tmp_path / name, (time.time() - hours * 3600,) * 2)

    remove_abandoned(tmp_path)

    assert {file.name for file in tmp_path.iterdir()} == {".new.x", "whole"}


def test_counts_of_parts_add_up():
    one, other = TokenCounts(3, 2, num_without_end=1), TokenCounts(4, 4, dropped_identical=2)
    one.lengths.cut_prompts = other.lengths.cut_prompts = 5

    one.join(other)

    assert (one.num_records, one.num_groups, one.num_without_end) == (7, 6, 1)
    assert (one.dropped_identical, one.lengths.cut_prompts) == (2, 10)
