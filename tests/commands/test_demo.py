import pytest

from veritune.commands.demo import DemoConfig, demo
from veritune.commands.display import Display
from veritune.errors import RunFolderError


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "demo-run"
    config = DemoConfig(output=str(folder), num_records=4000, teaching_steps=120, steps=80)
    return folder, config, demo(config, Display(quiet=True))


def test_every_objective_that_claims_the_target_comes_closer_to_it(outcome):
    _, _, result = outcome
    for row in result.rows:
        if row.claims_target:
            assert row.kl_after < (row.kl_before if row.stopped else 0.7 * row.kl_before), row


def test_the_demo_runs_the_objectives_of_the_papers(outcome):
    _, _, result = outcome
    names = [row.objective for row in result.rows]
    assert names == ["rdro", "ddro", "ddro_stabilized", "exo_pref", "dpo", "pmle"]


def test_distances_are_those_of_the_probabilities_that_are_shown(outcome):
    _, _, result = outcome
    for row in result.rows:
        assert row.curve[0] == (0, row.kl_before)
        assert all(sample.before > 0 and sample.after > 0 for sample in row.samples)
        assert sum(sample.target_probability for sample in row.samples) <= 1


def test_the_demo_leaves_a_page_and_plain_model_folders(outcome):
    folder, _, _ = outcome
    assert (folder / "report.html").read_text().startswith("<!")
    assert (folder / "rdro" / "model" / "config.json").is_file()


def test_the_demo_overwrites_nothing_unasked(outcome):
    _, config, _ = outcome
    with pytest.raises(RunFolderError, match="overwrite=true"):
        demo(config, Display(quiet=True))
