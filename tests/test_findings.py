from datetime import date
from typing import ClassVar, Literal

import pytest
from pydantic import Field, field_validator, model_validator

from veritune.config import Config, build_config, load_config
from veritune.errors import SettingsError
from veritune.findings import class_of_part, in_yaml, part_of
from veritune.ranges import (
    Fraction,
    NonNegative,
    OpenFraction,
    OpenHalfFraction,
    Positive,
    PositiveInt,
)


class Data(Config):
    SHORTHAND: ClassVar[str | None] = "files"

    files: tuple[str, ...] = Field(min_length=1)
    columns: dict[str, str] = Field(default_factory=dict)


class Train(Config):
    rate: Positive = 0.5
    steps: PositiveInt | None = None
    modules: str | tuple[str, ...] = "all"
    mode: Literal["fast", "exact"] = "fast"
    flag: bool = False


class Settings(Config):
    name: str = "n"
    data: Data = Data(files=("a",))
    train: Train = Train()
    more: Data | None = None


@pytest.mark.parametrize(
    ("word", "what", "fix"),
    [
        ("train.rate=0", "train.rate must be greater than 0, got 0", "(default: 0.5)"),
        ("train.rate=x", "train.rate must be a number, got 'x'", "leave train.rate out"),
        ("train.rate=.nan", "train.rate must be a finite number, got nan", "(default: 0.5)"),
        ("train.rate=null", "train.rate must be a number, got None", "(default: 0.5)"),
        ("train.steps=1.5", "train.steps must be a whole number, got 1.5", "(default: null)"),
        ("train.steps=[1]", "train.steps must be a whole number, got [1]", "(default: null)"),
        ("train.flag=maybe", "train.flag must be true or false, got 'maybe'", "(default: false)"),
        ("train.mode=exat", "train.mode must be 'fast' or 'exact', got 'exat'", "mean exact?"),
        ("train.mode=zzz", "train.mode must be 'fast' or 'exact'", "(default: fast)"),
        ("train.modules=3", "train.modules must be text or a list, got 3", "in quotes"),
        ("train=3", "train must be a mapping, as in train={rate: …}, got 3", "leave train out."),
        ("data=3", "data must be text, which stands for data.files, or a mapping", "leave data"),
        ("data.files=[]", "data.files must be a list that is not empty, got []", "another value"),
        ("data.files=[1]", "data.files.0 must be text, got 1", "in quotes"),
        ("data.columns=[]", "data.columns must be a mapping, got []", "(default: {})"),
        ("data.columns={q: 1}", "data.columns.q must be text, got 1", "in quotes"),
        ("more.files=", "more.files must be a list, got None", "give another value"),
        ("name=[]", "name must be text, got []", "(default: n)"),
        ("nam=x", "unknown setting nam", "did you mean name?"),
        ("steps=3", "unknown setting steps", "did you mean train.steps?"),
        ("train.raet=3", "unknown setting train.raet", "did you mean train.rate?"),
        ("train.zzz=3", "unknown setting train.zzz", "use one of rate, steps, modules, mode, flag"),
        ("zzz.x=3", "unknown setting zzz", "use one of name, data, train, more"),
        ("more.columns={}", "the setting more.files is missing", "more.files=… on the command"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_a_way_out(word, what, fix):
    with pytest.raises(SettingsError) as caught:
        load_config(Settings, None, ["data.files=[a]", word] if "columns" in word else [word])
    head, *below = str(caught.value).splitlines()
    assert head.startswith(f"command line: {what}")
    assert fix in below[-1]


def test_a_date_is_asked_to_be_quoted():
    with pytest.raises(SettingsError) as caught:
        load_config(Settings, None, ["name=2026-01-02"])
    assert f"name must be text, got {date(2026, 1, 2)!r}" in str(caught.value)
    assert "name='\"…\"'" in str(caught.value)


def test_a_finding_is_ascribed_to_the_file_or_to_the_command_line(tmp_path):
    (tmp_path / "run.yaml").write_text("train: {rate: -1}\n")
    with pytest.raises(SettingsError) as caught:
        load_config(Settings, tmp_path / "run.yaml", ["train.steps=0"])
    assert f"{tmp_path / 'run.yaml'}: train.rate must be" in str(caught.value)
    assert "command line: train.steps must be" in str(caught.value)
    assert str(caught.value).startswith("2 settings are wrong\n\nSettingsError: ")


class Checked(Config):
    low: Fraction = 0
    high: Fraction = 1

    @model_validator(mode="after")
    def _in_order(self) -> "Checked":
        if self.low > self.high:
            raise SettingsError(
                "low is above high", got=(self.low, self.high), why="no order", fix="swap them"
            )
        return self

    @field_validator("high")
    @classmethod
    def _not_a_half(cls, value: float) -> float:
        if value == 0.5:
            raise ValueError("a half is no choice")
        return value


class Outer(Config):
    inner: Checked = Checked()


def test_an_error_of_a_validator_keeps_its_value_its_reason_and_its_way_out():
    with pytest.raises(SettingsError) as caught:
        build_config(Outer, {"inner": {"low": 0.9, "high": 0.1}}, where="run.yaml")
    assert str(caught.value) == (
        "run.yaml: inner: low is above high.\n"
        "  got: (0.9, 0.1)\n  why: no order.\n  fix: swap them."
    )


def test_a_plain_error_of_a_validator_is_told_too():
    with pytest.raises(SettingsError, match=r"run.yaml: inner.high: a half is no choice\."):
        build_config(Outer, {"inner": {"high": 0.5}}, where="run.yaml")


class Ranges(Config):
    positive: Positive = 1
    non_negative: NonNegative = 0
    open_fraction: OpenFraction = 0.5
    open_half: OpenHalfFraction = 0.25


@pytest.mark.parametrize(
    ("key", "value", "range_in_words"),
    [
        ("positive", 0, "greater than 0"),
        ("positive", float("inf"), "a finite number"),
        ("non_negative", -1e-9, "greater than or equal to 0"),
        ("open_fraction", 1, "less than 1"),
        ("open_half", 0.5, "less than 0.5"),
    ],
)
def test_a_violated_range_is_in_the_message(key, value, range_in_words):
    with pytest.raises(SettingsError, match=f"{key} must be {range_in_words}, got {value}"):
        build_config(Ranges, {key: value}, where="run.yaml")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (5e-7, "5.0e-07"),
        ("stop", "stop"),
        ("null", "'null'"),
        ({}, "{}"),
        (["a", 1], "[a, 1]"),
        ("a" * 200, "a" * 200),
    ],
)
def test_a_value_is_written_as_in_a_settings_file(value, text):
    assert in_yaml(value) == text


def test_parts_are_found_by_name_and_values_are_none():
    assert part_of(Settings, "train") is Train
    assert part_of(Settings, "more") is Data
    assert part_of(Settings, "name") is None
    assert part_of(Settings, "zzz") is None
    assert part_of(None, "train") is None
    assert class_of_part(dict[str, int]) is None
