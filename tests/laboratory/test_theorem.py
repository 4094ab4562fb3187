import math

import pytest

from veritune.errors import SettingsError
from veritune.laboratory.table import run_all, select
from veritune.laboratory.theorem import Evidence, Theorem, run_check


def small_residual() -> Evidence:
    return Evidence(residual=1e-9, control=0.3, detail="made up")


def large_residual() -> Evidence:
    return Evidence(residual=0.2, control=0.3)


def control_passes() -> Evidence:
    return Evidence(residual=1e-9, control=1e-6)


def no_number() -> Evidence:
    return Evidence(residual=math.nan, control=0.3)


def theorem(check, name="made_up", methods=("dpo",), contrasts=()) -> Theorem:
    return Theorem(
        name=name,
        claim="It is so.",
        control="It is otherwise.",
        source="none",
        methods=methods,
        contrasts=contrasts,
        tolerance=1e-6,
        check=check,
    )


@pytest.mark.parametrize(
    ("check", "verdict"),
    [
        (small_residual, "holds"),
        (large_residual, "fails"),
        (control_passes, "blind"),
        (no_number, "fails"),
    ],
)
def test_a_theorem_holds_if_its_residual_is_small_and_its_control_is_not(check, verdict):
    result = run_check(theorem(check))

    assert result.verdict == verdict
    assert result.holds == (verdict == "holds")
    assert result.seconds >= 0


def test_theorems_are_selected_by_method_by_what_they_are_held_against_and_by_name():
    theorems = [
        theorem(small_residual, "first", ("dpo", "ipo")),
        theorem(small_residual, "second", ("ipo",), contrasts=("kto",)),
    ]

    assert [t.name for t in select(theorems, "ipo")] == ["first", "second"]
    assert [t.name for t in select(theorems, "dpo")] == ["first"]
    assert [t.name for t in select(theorems, "second")] == ["second"]
    assert [t.name for t in select(theorems, "kto")] == ["second"]
    assert select(theorems, None) == theorems
    with pytest.raises(SettingsError, match="did you mean dpo"):
        select(theorems, "dop")


@pytest.mark.parametrize("num_processes", [1, 2])
def test_every_theorem_is_run_once(num_processes):
    theorems = [theorem(small_residual, "first"), theorem(large_residual, "second")]

    results = {r.theorem.name: r.verdict for r in run_all(theorems, num_processes=num_processes)}

    assert results == {"first": "holds", "second": "fails"}
