"""docs/peers.md is what the stored results say; neither TRL nor Liger is needed."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from peers.document import COLUMNS, MEANINGS, document, failures
from peers.explanations import EXPLANATIONS, VERDICTS, explanation_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def results() -> dict[str, Any]:
    text = (ROOT / "benchmarks/results/peers_under_laws.json").read_text(encoding="utf-8")
    stored: dict[str, Any] = json.loads(text)
    return stored


def of(results: dict[str, Any], name: str) -> dict[str, Any]:
    return next(loss for loss in results["losses"] if loss["name"] == name)


def test_the_page_is_that_of_the_stored_results(results: dict[str, Any]) -> None:
    assert (ROOT / "docs/peers.md").read_text(encoding="utf-8") == document(results)


def test_every_check_that_fails_is_explained(results: dict[str, Any]) -> None:
    assert not [name for name, check, _ in failures(results) if not explanation_of(name, check)]


def test_every_explanation_is_of_a_check_that_fails(results: dict[str, Any]) -> None:
    explained = {explanation_of(name, check) for name, check, _ in failures(results)}
    assert explained == set(EXPLANATIONS)


def test_the_control_holds_in_every_check(results: dict[str, Any]) -> None:
    ours = [loss for loss in results["losses"] if loss["library"] == "Veritune"]
    assert len(ours) > 10
    assert not [name for name, _, _ in failures(results) if name.startswith("Veritune")]


def test_the_versions_are_those_that_are_asked_for(results: dict[str, Any]) -> None:
    lines = (ROOT / "benchmarks/peers/requirements.txt").read_text().splitlines()
    asked = dict(line.split("==") for line in lines if "==" in line)
    assert {name: results["versions"][name] for name in asked} == asked


def test_a_failure_without_an_explanation_is_printed_as_such(results: dict[str, Any]) -> None:
    changed = copy.deepcopy(results)
    of(changed, "TRL DPOTrainer sigmoid")["checks"]["value"] = {"holds": False, "measured": "off"}
    page = document(changed)
    assert "### Not explained yet" in page
    assert "- `TRL DPOTrainer sigmoid`, value: off" in page
    assert "1 are not explained yet" in page


def test_an_explanation_goes_when_what_it_explains_holds(results: dict[str, Any]) -> None:
    changed = copy.deepcopy(results)
    assert "IPO per token" in document(changed)
    of(changed, "TRL DPOTrainer ipo")["checks"]["value"]["holds"] = True
    page = document(changed)
    assert "IPO per token" not in page
    assert "### 1. BCO" in page


def test_a_toolkit_that_does_not_run_is_said_not_to(results: dict[str, Any]) -> None:
    changed = copy.deepcopy(results)
    changed["losses"] = [loss for loss in changed["losses"] if loss["library"] != "Liger"]
    changed["missing"] = {"Liger": "ImportError: no triton"}
    del changed["released"]["liger-kernel"]
    assert "Did not run: ImportError: no triton" in document(changed)


def test_every_column_has_a_meaning_and_every_verdict_a_definition() -> None:
    assert set(MEANINGS) == {title for _, title in COLUMNS}
    assert {explanation.verdict for explanation in EXPLANATIONS} == set(VERDICTS)
