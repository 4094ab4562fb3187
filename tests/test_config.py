from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from veritune.config import (
    Config,
    build_config,
    differing_settings,
    dump_config,
    load_config,
    read_yaml_mapping,
)
from veritune.errors import SettingsError
from veritune.ranges import NonNegativeInt, OpenFraction, Positive, PositiveInt


class Data(Config):
    SHORTHAND: ClassVar[str | None] = "files"

    files: tuple[str, ...] | str
    columns: dict[str, str] = Field(default_factory=dict)
    on_error: Literal["stop", "skip"] = "stop"


class Objective(Config):
    model_config = Config.model_config | {"extra": "allow"}
    SHORTHAND: ClassVar[str | None] = "name"

    name: str


class Train(Config):
    learning_rate: Positive = 5e-7
    steps: PositiveInt | None = None
    fraction: OpenFraction = 0.1
    seed: NonNegativeInt = 0
    dropout: bool = False


class Settings(Config):
    model: str = "m"
    data: Data = Data(files=("a",))
    objective: Objective = Objective(name="dpo")
    held_out: Data | None = None
    train: Train = Train()


def loaded(*words: str, file: str | None = None, folder: Path | None = None) -> Settings:
    if file is None:
        return load_config(Settings, None, words)
    assert folder is not None
    (folder / "run.yaml").write_text(file)
    return load_config(Settings, folder / "run.yaml", words)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("model=a", "a"),
        ("model='1e-6'", "1e-6"),
        ('model="null"', "null"),
        ("model='it''s'", "it's"),
        ("model=a=b", "a=b"),
        ("model=a b", "a b"),
        ("model=path/to.file", "path/to.file"),
        ("--model=a", "a"),
        (" model =a", "a"),
        ("train.learning_rate=1e-6", 1e-6),
        ("train.learning_rate=1E-6", 1e-6),
        ("train.learning_rate=2.5e+1", 25.0),
        ("train.learning_rate=.5e-3", 5e-4),
        ("train.learning_rate=3", 3.0),
        ("train.steps=20", 20),
        ("train.steps=1e3", 1000),
        ("train.steps=null", None),
        ("train.steps=", None),
        ("train.dropout=true", True),
        ("train.dropout=yes", True),
        ("data=a.jsonl", Data(files="a.jsonl")),
        ("data=[a.jsonl, 'b c.jsonl']", Data(files=("a.jsonl", "b c.jsonl"))),
        ("data={files: a, on_error: skip}", Data(files="a", on_error="skip")),
        ("data.columns={question: prompt}", {"question": "prompt"}),
        ("objective=rdro", Objective(name="rdro")),
        ("objective={name: rdro, alpha: 0.4}", Objective(name="rdro", alpha=0.4)),
        ("held_out=b", Data(files="b")),
    ],
)
def test_the_value_of_an_override_is_read_as_yaml(word, value):
    found: Any = loaded("data=[a]", word)
    for part in word.partition("=")[0].strip().removeprefix("--").split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["objective: dpo\n", "objective: {name: dpo}\n", ""])
def test_an_override_reaches_into_what_the_file_wrote_short(text, tmp_path):
    words = ["objective.beta=0.3"] if text else ["objective=dpo", "objective.beta=0.3"]
    config = loaded(*words, file=text, folder=tmp_path)
    assert config.objective.model_dump() == {"name": "dpo", "beta": 0.3}


def test_an_override_replaces_all_that_stands_under_its_key(tmp_path):
    config = loaded("objective=ipo", file="objective: {name: dpo, beta: 1}\n", folder=tmp_path)
    assert config.objective.model_dump() == {"name": "ipo"}


def test_an_override_leaves_the_other_keys_of_a_part_as_they_are(tmp_path):
    text = "train: {steps: 3, seed: 4}\ndata: {files: a, on_error: skip}\n"
    config = loaded("train.seed=5", "data.files=[b]", file=text, folder=tmp_path)
    assert (config.train.steps, config.train.seed) == (3, 5)
    assert config.data == Data(files=("b",), on_error="skip")


def test_the_order_of_an_outer_and_an_inner_key_does_not_matter():
    words = ("objective=dpo", "objective.beta=0.3")
    assert loaded(*words) == loaded(*reversed(words))
    assert loaded(*words).objective.model_dump() == {"name": "dpo", "beta": 0.3}


def test_of_two_values_for_one_key_the_last_is_taken():
    assert loaded("train.seed=1", "train.seed=2").train.seed == 2


def test_the_same_settings_come_from_a_file_and_from_words(tmp_path):
    text = "model: x\ndata: [a, b]\nobjective: {name: dpo, beta: 1e-1}\ntrain: {steps: 3}\n"
    words = ("model=x", "data=[a, b]", "objective.name=dpo", "objective.beta=0.1", "train.steps=3")
    assert loaded(file=text, folder=tmp_path) == loaded(*words)


def test_an_empty_file_gives_the_defaults(tmp_path):
    assert loaded(file="# nothing\n", folder=tmp_path) == Settings()


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        Settings().model = "other"


def test_numbers_in_exponent_notation_are_numbers_and_versions_are_text(tmp_path):
    text = "a: 1e-6\nb: -2E5\nc: '1e-6'\nd: 1e\ne: v1e5\nf: 1.2.3\ng: [1e0]\n"
    (tmp_path / "a.yaml").write_text(text)
    assert read_yaml_mapping(tmp_path / "a.yaml") == {
        **{"a": 1e-6, "b": -2e5, "c": "1e-6", "d": "1e", "e": "v1e5", "f": "1.2.3", "g": [1.0]}
    }


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: 1\nb: 2\na: 3\n", 3), ("a:\n  b: 1\n  b: 2\n", 3), ("a: {b: 1, b: 2}", 1)],
)
def test_a_key_given_twice_is_refused_at_any_depth(text, line, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(SettingsError, match=f"line {line}: the key '[ab]' is given twice"):
        read_yaml_mapping(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "text",
    ["a: [1", "a: 2024-99-99", "[" * 1000, "a: \x00", "a: !!python/object:os.system x", "? {}"],
)
def test_what_is_no_yaml_is_refused(text, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(SettingsError, match=r"a\.yaml"):
        load_config(Settings, tmp_path / "a.yaml")
    with pytest.raises(SettingsError, match="command line, model: "):
        loaded(f"model={text.removeprefix('a: ')}")


@pytest.mark.parametrize("word", ["model", "=3", "", "model.", ".model=1", "a..b=1", "run.yaml"])
def test_a_word_without_a_key_and_a_value_is_refused(word):
    with pytest.raises(SettingsError, match="not of the form key=value") as caught:
        loaded(word)
    assert f"got: {word!r}" in str(caught.value)


VALUES = st.builds(
    Settings,
    model=st.text(max_size=20),
    data=st.builds(
        Data,
        files=st.lists(st.text(max_size=9), min_size=1, max_size=3).map(tuple)
        | st.text(max_size=9),
        columns=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
    ),
    held_out=st.none() | st.builds(Data, files=st.text(max_size=9)),
    train=st.builds(
        Train,
        learning_rate=st.floats(min_value=1e-300, max_value=1e300),
        steps=st.none() | st.integers(1, 10**12),
        dropout=st.booleans(),
    ),
)


@given(settings=VALUES)
def test_dumped_settings_load_to_the_same(settings: Settings, tmp_path_factory):
    file = tmp_path_factory.mktemp("dump") / "config.yaml"
    file.write_text(dump_config(settings), encoding="utf-8")
    assert load_config(Settings, file) == settings


@pytest.mark.parametrize(
    "name", ["1e5", "null", "on", "2026-01-02", "a\x85b", "\u2028", "ö: #", ""]
)
def test_text_stays_text_in_a_dump(name, tmp_path):
    (tmp_path / "config.yaml").write_text(dump_config(Settings(model=name)), encoding="utf-8")
    assert load_config(Settings, tmp_path / "config.yaml").model == name


def test_letters_beyond_ascii_are_readable_in_a_dump():
    assert "model: Grüße" in dump_config(Settings(model="Grüße"))


def test_a_dump_holds_every_setting_in_the_order_of_declaration():
    text = dump_config(loaded("objective.beta=0.5", "objective=dpo"))
    assert text.splitlines() == [
        "model: m",
        "data:",
        "  files:",
        "  - a",
        "  columns: {}",
        "  on_error: stop",
        "objective:",
        "  name: dpo",
        "  beta: 0.5",
        "held_out: null",
        "train:",
        "  learning_rate: 5.0e-07",
        "  steps: null",
        "  fraction: 0.1",
        "  seed: 0",
        "  dropout: false",
    ]


def test_differing_settings_are_named_with_both_values():
    old = loaded("train.seed=1", "objective.name=dpo", "objective.beta=0.1")
    new = loaded("train.seed=2", "objective=rdro", "held_out=b")
    assert differing_settings(old, new) == {
        "objective.name": ("dpo", "rdro"),
        "objective.beta": (0.1, None),
        "train.seed": (1, 2),
        "held_out.files": (None, "b"),
        "held_out.on_error": (None, "stop"),
    }


def test_equal_settings_do_not_differ():
    assert differing_settings(Settings(), loaded("model=m", "train={}")) == {}


def test_build_config_names_the_place_that_it_is_given():
    with pytest.raises(SettingsError, match="objective dpo: unknown setting x"):
        build_config(Train, {"x": 1}, where="objective dpo")
