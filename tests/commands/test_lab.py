import json

import pytest

from veritune.bridge import EVERY_THEOREM
from veritune.commands import lab as lab_module
from veritune.commands.display import Display
from veritune.commands.lab import LabConfig, lab
from veritune.laboratory.theorem import Curve, Evidence, Plot, Theorem

PLOT = Plot("A <plot>", "n", "error", (Curve("line", ((1.0, 1.0), (10.0, 0.1))),), log_x=True)


def holding() -> Evidence:
    return Evidence(1e-9, 0.5, "two seeds & more", (PLOT,))


def failing() -> Evidence:
    return Evidence(0.3, 0.5)


def made_up(name: str, check) -> Theorem:
    return Theorem(name, f"{name} <is> so.", "It is not.", "nobody", ("dpo",), 1e-6, check)


def test_the_theorems_about_one_method_or_held_against_it_are_checked_and_written(
    veritune, tmp_path
):
    outcome = veritune("lab", "rloo", f"output={tmp_path}/out", "processes=1")

    assert outcome.code == 0, outcome.err
    assert "rloo_follows_rlhf" in outcome.out
    assert "ppo_begins" not in outcome.out
    rows = json.loads((tmp_path / "out" / "theorems.json").read_text())["theorems"]
    assert {row["verdict"] for row in rows} == {"holds"}
    about = {theorem.name for theorem in EVERY_THEOREM if "rloo" in theorem.methods}
    against = {theorem.name for theorem in EVERY_THEOREM if "rloo" in theorem.contrasts}
    assert "rloo_follows_rlhf" in about
    assert "reverse_kl_ignores_the_reference" in against
    assert {row["theorem"] for row in rows} == about | against


def test_a_claim_that_fails_is_written_down_and_ends_with_exit_code_1(
    veritune, tmp_path, monkeypatch
):
    theorems = (made_up("first", holding), made_up("second", failing))
    monkeypatch.setattr(lab_module, "EVERY_THEOREM", theorems)

    outcome = veritune("lab", f"output={tmp_path}/out", "processes=1")

    assert outcome.code == 1
    assert "1 of 2 theorems hold" in outcome.out
    page = (tmp_path / "out" / "report.html").read_text()
    assert "second fails" in page
    assert "<svg" in page
    assert "first &lt;is&gt; so." in page
    assert "A &lt;plot&gt;" in page


def test_results_come_in_the_order_of_the_catalog(tmp_path, monkeypatch):
    theorems = tuple(made_up(name, holding) for name in ("c", "a", "b"))
    monkeypatch.setattr(lab_module, "EVERY_THEOREM", theorems)

    results = lab(LabConfig(output=str(tmp_path / "out"), processes=2), Display(quiet=True))

    assert [result.theorem.name for result in results] == ["c", "a", "b"]


def test_earlier_results_are_not_overwritten_without_asking(veritune, tmp_path):
    words = ("lab", "reverse_kl_ignores_the_reference", f"output={tmp_path}/out", "processes=1")
    assert veritune(*words).code == 0

    again = veritune(*words)

    assert again.code == 2
    assert "overwrite=true" in again.err
    assert veritune(*words, "overwrite=true").code == 0


@pytest.mark.parametrize("as_file", [True, False])
def test_an_output_that_holds_something_else_is_left_alone(veritune, tmp_path, as_file):
    output = tmp_path / "notes"
    if as_file:
        output.write_text("mine")
    else:
        output.mkdir()
        (output / "mine.txt").write_text("mine")

    assert veritune("lab", "rloo", f"output={output}").code == 2


def test_an_unknown_method_is_refused_with_the_nearest(veritune, tmp_path):
    outcome = veritune("lab", "rlo", f"output={tmp_path}/out")

    assert outcome.code == 2
    assert "did you mean rloo?" in outcome.err
