import json
from pathlib import Path

import pytest
from run_world import World

from veritune import __version__
from veritune.bibliography import bibliography
from veritune.objectives.catalog import CATALOG

MINE = '''
from veritune.logprobs import PairedLogProbs
from veritune.objectives.card import Card


def known(pairs: PairedLogProbs, *, beta: float = 0.1):
    """DPO under another name @ home.

        loss = softplus(-beta * (log_ratio(chosen) - log_ratio(rejected)))

    Source:
        Rafailov et al. 2023, arXiv:2305.18290, eq. 7; nothing of Mitchell 2023.
    """
    margin = pairs.chosen.log_ratio - pairs.rejected.log_ratio
    return (1 + (-beta * margin).exp()).log()


def unknown(pairs: PairedLogProbs):
    """A loss of tomorrow, beside arXiv:2404.19733.

    Source:
        Somebody, arXiv:9912.00001 and https://arxiv.org/abs/2310.12036v2.
    """
    return -pairs.chosen.policy


def carded(pairs: PairedLogProbs):
    """Its card names the source."""
    return -pairs.chosen.policy


def bare(pairs: PairedLogProbs):
    return -pairs.chosen.policy


CARD = Card(loss=carded, data=PairedLogProbs, source="arXiv:2402.00856", title="t", target="none")
'''


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def run(world: World) -> Path:
    """A run of one objective."""
    return world.train("rdro_lsif", "rdro_lsif", train__steps=1).folder


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A file of somebody's own with losses."""
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    return file


def cited(out: str) -> dict[str, list[str]]:
    """Key to the reasons above it; entries are those of the bibliography, word for word."""
    found: dict[str, list[str]] = {}
    for block in out.rstrip("\n").split("\n\n"):
        comments = [line for line in block.splitlines() if line.startswith("%")]
        assert comments, "an entry has a reason"
        assert not any("@" in comment for comment in comments), "BibTeX would take it for an entry"
        entry = block.removeprefix("\n".join(comments)).lstrip("\n")
        key = entry.partition("{")[2].partition(",")[0]
        if key not in ("", "veritune"):
            assert entry == bibliography()[key].text
        assert key not in found or not key, "an entry stands once"
        found[key] = comments
    return found


def test_a_run_is_cited_by_the_papers_of_its_objective_and_the_software(run, veritune):
    outcome = veritune("cite", str(run))

    why = f"% objective rdro_lsif: {CATALOG['rdro_lsif'].title}"
    assert outcome.code == 0
    assert outcome.err == ""
    assert cited(outcome.out) == {
        "takahashi2026relative": [why],
        "kanamori2009least": [why],
        "veritune": ["% software"],
    }


def test_a_run_and_its_objective_are_cited_alike(run, veritune):
    assert veritune("cite", str(run)).out == veritune("cite", "rdro_lsif").out


def test_the_version_is_that_which_made_the_run(run, veritune, tmp_path):
    other = tmp_path / "older"
    other.mkdir()
    (other / "config.yaml").write_text((run / "config.yaml").read_text())
    for versions, shown in (
        ({"veritune": "0.0.9"}, "0.0.9"),
        ({"veritune": "not installed"}, __version__),
        ({}, __version__),
    ):
        (other / "provenance.json").write_text(json.dumps({"versions": versions}))
        assert f"Software, version {shown}}}" in veritune("cite", str(other)).out


def test_each_part_of_a_combination_is_cited_and_a_paper_of_two_parts_once(world, veritune):
    parts = "{combine: [{name: orpo}, {name: chosen_nll_mean}, {name: slic_hf, weight: 0.1}]}"
    folder = world.train(parts, "sum", train__steps=1).folder

    outcome = veritune("cite", str(folder))

    titles = {name: f"% objective {name}: {card.title}" for name, card in CATALOG.items()}
    assert cited(outcome.out) == {
        "hong2024orpo": [titles["orpo"], titles["chosen_nll_mean"]],
        "zhao2023slic": [titles["slic_hf"]],
        "veritune": ["% software"],
    }


def test_a_function_of_ones_own_is_cited_by_its_source_from_the_copy_in_the_run(
    world, mine, veritune
):
    folder = world.train(f"{mine}:known", "mine", train__steps=1).folder
    mine.unlink()

    outcome = veritune("cite", str(folder))

    why = "% objective known of mine.py: DPO under another name (at) home"
    assert cited(outcome.out) == {"rafailov2023direct": [why], "veritune": ["% software"]}


@pytest.mark.filterwarnings("always::veritune.errors.VerituneWarning")
def test_a_paper_that_the_bibliography_does_not_hold_is_named_in_a_comment(mine, veritune):
    outcome = veritune("cite", f"{mine}:unknown")

    why = "% objective unknown of mine.py: A loss of tomorrow, beside arXiv:2404.19733"
    assert outcome.code == 0
    assert "warning: there is no entry for arXiv:9912.00001" in outcome.err
    assert cited(outcome.out) == {
        "": [why, "% no entry: arXiv:9912.00001"],
        "azar2024general": [why],
        "veritune": ["% software"],
    }


def test_a_source_may_stand_in_a_card_or_nowhere(mine, veritune):
    assert "ji2024towards" in cited(veritune("cite", f"{mine}:carded").out)

    assert cited(veritune("cite", f"{mine}:bare").out) == {
        "": [
            "% objective bare of mine.py: The function of mine.py",
            "% no entry: it names no paper",
        ],
        "veritune": ["% software"],
    }


def test_a_file_is_read_and_not_run(mine, veritune):
    mine.write_text(MINE + "\nraise SystemExit('the file was run')\n")

    assert "rafailov2023direct" in cited(veritune("cite", f"{mine}:known").out)


@pytest.mark.parametrize("name", CATALOG)
def test_every_objective_is_cited_by_name(name, veritune):
    outcome = veritune("cite", name)

    assert outcome.code == 0
    keys = list(cited(outcome.out))
    assert len(keys) > 1
    assert keys[-1] == "veritune"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("apo", "he2024accelerated"),
        ("oppo", "cai2020provably"),
        ("optidice", "lee2021optidice"),
        ("rso", "liu2024statistical"),
    ],
)
def test_an_algorithm_is_cited_by_name(name, key, veritune):
    found = cited(veritune("cite", name).out)

    assert list(found) == [key, "veritune"]
    assert found[key][0].startswith(f"% algorithm {name}: ")


def test_an_unknown_name_gets_the_nearest_one(veritune):
    for given, meant in (("rdor", "rdro"), ("EXO-pref", "exo_pref"), ("optidise", "optidice")):
        outcome = veritune("cite", given)

        assert outcome.code == 2
        assert outcome.out == ""
        assert f"did you mean {meant}?" in outcome.err


def test_a_folder_without_a_run_is_refused_and_the_runs_near_it_are_named(
    run, veritune, monkeypatch
):
    monkeypatch.chdir(run.parent.parent)
    inside = run.relative_to(run.parent.parent)
    for given, what, fix in (
        (str(inside.parent), "the folder holds no run", f"{inside}"),
        (str(inside / "model"), "the folder holds no run", f"fix: give {inside}."),
        (str(inside / "config.yaml"), "this is a file", f"fix: give {inside}."),
        ("runs/none", "there is no such run folder", "its setting `output`"),
    ):
        outcome = veritune("cite", given)

        assert outcome.code == 2
        assert what in outcome.err
        assert f"got: '{given}'" in outcome.err
        assert fix in outcome.err


def test_a_python_file_without_a_function_is_told_what_is_missing(mine, veritune):
    assert f"name a function in it, {mine}:my_loss" in veritune("cite", str(mine)).err
    assert "its functions are known, unknown" in veritune("cite", f"{mine}:other").err
    assert "the file cannot be read" in veritune("cite", f"{mine.parent}/gone.py:known").err
    mine.write_text("def known(:")
    assert "the file cannot be read: SyntaxError" in veritune("cite", f"{mine}:known").err


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ("model: a\n", "does not say which objective"),
        ("- a list\n", "does not say which objective"),
        ("objective: {name: rdor}\n", "did you mean rdro?"),
    ],
)
def test_settings_that_do_not_name_an_objective_are_refused(settings, found, veritune, tmp_path):
    (tmp_path / "config.yaml").write_text(settings)

    outcome = veritune("cite", str(tmp_path))

    assert outcome.code == 2
    assert found in outcome.err
    assert str(tmp_path) in outcome.err


def test_the_help_shows_how_to_write_a_file(veritune):
    assert "veritune cite runs/dpo > references.bib" in veritune("cite", "--help").out
