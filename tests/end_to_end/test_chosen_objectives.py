"""Every objective of the catalog trains by its name; so do functions of one's own and sums."""

import json
from pathlib import Path

import pytest
from run_world import Listener, World, lines, same_weights

from veritune.errors import RunFolderError, SettingsError
from veritune.objectives.catalog import CATALOG

FROM_RECORDS = [name for name, card in CATALOG.items() if not card.takes_samples]
EXAMPLE = Path(__file__).parents[2] / "examples" / "my_loss.py"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("name", FROM_RECORDS)
def test_every_objective_on_records_trains_by_its_name(name: str, world: World) -> None:
    extra = {"objective__kl_weight": 0.1} if name == "pmle_kl" else {}
    result = world.train(name, name, train__steps=2, train__learning_rate=1e-4, **extra)

    assert result.steps == 2
    assert all(line["gradient_norm"] > 0 for line in lines(world.folder / name))
    assert (world.folder / name / "report.html").is_file()


def test_an_objective_on_samples_is_refused_with_the_way_out(world: World) -> None:
    with pytest.raises(SettingsError, match="exo_rw or dpo_rw"):
        world.train("rloo", "rloo")


def test_a_sum_with_one_part_is_that_part_and_another_weight_is_another_run(world: World) -> None:
    """A combination with a vanishing second weight takes the steps of its first part."""
    parts = "[{{name: dpo, beta: 0.3}}, {{name: ipo, weight: {}}}]"
    world.train("{name: dpo, beta: 0.3}", "alone")
    for run, weight in (("nearly-alone", "1e-12"), ("both", "1.0")):
        world.train(f"{{combine: {parts.format(weight)}}}", run)

    alone, nearly, both = (
        [line["loss"] for line in lines(world.folder / run)]
        for run in ("alone", "nearly-alone", "both")
    )
    assert nearly == pytest.approx(alone, rel=1e-4)
    assert both != pytest.approx(alone, rel=0.1)
    page = (world.folder / "both" / "report.html").read_text()
    assert "dpo + ipo" in page


def test_a_function_of_ones_own_trains_with_laws_header_and_report(world: World) -> None:
    display = Listener()
    world.train(f"{EXAMPLE}:soft_margin", "mine", display=display)

    assert display.facts["laws"] == "all 10 hold"
    assert "soft_margin" in display.facts["objective"]
    run = world.folder / "mine"
    assert (run / "objective" / "my_loss.py").read_text() == EXAMPLE.read_text()
    hashes = json.loads((run / "provenance.json").read_text())["objective_files"]
    assert list(hashes) == [str(EXAMPLE)]


def test_the_same_formula_in_a_file_takes_the_same_steps(world: World, tmp_path: Path) -> None:
    file = tmp_path / "again.py"
    file.write_text("from veritune.objectives.paired.dpo import dpo_loss as again\n")
    world.train("{name: dpo, beta: 0.2}", "by-name")
    world.train(f"{{name: '{file}:again', beta: 0.2}}", "by-file")

    assert same_weights(world.folder / "by-name", world.folder / "by-file")


def test_a_run_does_not_go_on_with_another_function_of_the_same_name(
    world: World, tmp_path: Path
) -> None:
    file = tmp_path / "changing.py"
    text = (
        "from veritune.logprobs import PairedLogProbs\n"
        "def mine(pairs: PairedLogProbs):\n"
        "    return (pairs.chosen.log_ratio - pairs.rejected.log_ratio - 1) ** 2\n"
    )
    file.write_text(text)
    world.train(f"{file}:mine", "changing")
    run = world.folder / "changing"
    provenance = json.loads((run / "provenance.json").read_text())
    (run / "provenance.json").write_text(json.dumps({**provenance, "finished": False}))
    file.write_text(text.replace("- 1)", "- 2)"))

    with pytest.raises(RunFolderError, match="objective_files"):
        world.train(f"{file}:mine", "changing")
