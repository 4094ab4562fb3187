import dataclasses
import io
import math
import re

import pytest
from rich.console import Console

from veritune.reports.demo import DemoResult, DemoRow, Sample, demo_findings, demo_page
from veritune.reports.tables import demo_table

HOSTILE = "<script>alert(1)</script>"
SAMPLE = Sample("the cat", "sat", target_probability=0.3, before=0.1, after=0.29)
DPO = DemoRow(
    objective="dpo",
    title="direct preference optimization",
    claims_target=True,
    feedback="2,000 pairs",
    kl_before=0.5,
    kl_after=0.01,
    reward_before=0.2,
    reward_after=0.6,
    seconds=2.0,
    curve=((0, 0.5), (10, 0.1), (20, 0.01)),
    samples=(SAMPLE,),
)
KTO = dataclasses.replace(DPO, objective="kto", claims_target=False, kl_after=0.3, reward_after=0.9)
RESULT = DemoResult("Words of three letters.", 27, 0.6, (DPO, KTO), 4.5, {"seed": "0"})


@pytest.fixture
def page_of(tmp_path):
    """The text of the page of a result."""

    def write(result: DemoResult) -> str:
        return demo_page(result, tmp_path / "demo.html").read_text("utf-8")

    return write


def with_rows(*rows: DemoRow) -> DemoResult:
    return dataclasses.replace(RESULT, rows=rows)


def printed(result: DemoResult) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(demo_table(result))
    return console.export_text()


def test_the_page_shows_distances_rewards_and_strings(page_of):
    html = page_of(RESULT)
    assert "Words of three letters." in html
    assert "27 strings" in html
    for text in ("0.500", "0.0100", "98.0%", "0.290", "target 0.600", "reference 0.200"):
        assert text in html
    assert html.count("<code>sat</code>") == 2


def test_the_findings_tell_who_claims_and_who_does_not():
    sentences = demo_findings(RESULT)
    assert "dpo came nearest: 0.500 to 0.0100 nats, which closes 98.0%" in sentences[0]
    # 1 - 0.3 / 0.5 of the distance.
    assert "The one that does not claim it closed 40%" in sentences[1]


def test_a_reward_beyond_the_target_is_not_praised():
    (sentence,) = [s for s in demo_findings(RESULT) if "beyond" in s]
    assert "with kto:" in sentence
    assert not any("beyond" in s for s in demo_findings(with_rows(DPO)))


def test_a_policy_that_moved_away_closed_a_negative_share():
    worse = dataclasses.replace(KTO, kl_after=0.75)
    assert "closed −50%" in demo_findings(with_rows(worse))[0]


@pytest.mark.parametrize(
    "result",
    [
        with_rows(),
        with_rows(dataclasses.replace(DPO, kl_after=math.nan, curve=((0, math.nan),))),
        with_rows(dataclasses.replace(DPO, kl_after=math.inf, curve=((0, 0.0), (1, math.inf)))),
        with_rows(dataclasses.replace(DPO, kl_before=0.0, kl_after=0.0, curve=(), samples=())),
        with_rows(DPO, dataclasses.replace(DPO, reward_before=0.3)),
    ],
)
def test_the_page_survives_empty_and_not_a_number(page_of, result):
    html = page_of(result)
    assert "</html>" in html
    assert not re.search(r'[ ",M](nan|inf)[ ",]', html, re.IGNORECASE)
    assert printed(result)


def test_hostile_strings_stay_text(page_of):
    sample = dataclasses.replace(SAMPLE, prompt=HOSTILE, completion=HOSTILE)
    row = dataclasses.replace(
        DPO, objective=HOSTILE, title=HOSTILE, feedback=HOSTILE, samples=(sample,)
    )
    html = page_of(DemoResult(HOSTILE, 27, 0.6, (row,), 4.5, {HOSTILE: HOSTILE}))
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 8


def test_the_page_needs_nothing_from_outside(page_of):
    assert not re.search(r"https?:|\bsrc=|\bhref=|@import|url\(|<link|<script", page_of(RESULT))


def test_the_terminal_table_has_a_row_for_each_objective_in_eighty_columns():
    lines = printed(RESULT).splitlines()
    (dpo,) = [line for line in lines if "dpo" in line]
    assert re.findall(r"[\w.%]+", dpo) == [
        "dpo",
        "yes",
        "0.500",
        "0.0100",
        "98.0%",
        "0.600",
        "2",
        "s",
    ]
    assert any("kto" in line for line in lines)


def test_square_brackets_in_the_terminal_are_no_markup():
    row = dataclasses.replace(DPO, objective="[red]dpo[/red]")
    assert "[red]dpo[/red]" in printed(with_rows(row))
