import json
import os
import warnings
from pathlib import Path

import pytest

from veritune.config import Config
from veritune.errors import RunFolderError, VerituneWarning
from veritune.training import run_folder
from veritune.training.run_folder import (
    RunFolder,
    begin_run,
    finish_run,
    open_run_folder,
    read_provenance,
)


class Train(Config):
    seed: int = 0
    checkpoint_every: int | None = None


class Settings(Config):
    output: str = "run"
    rate: float = 1e-5
    train: Train = Train()


MADE_FROM = {"data_tokens": "d", "held_out_tokens": "h", "model": "m", "reference": "r"}


def begun(path: Path) -> RunFolder:
    folder = open_run_folder(path, Settings())
    begin_run(folder, Settings(), MADE_FROM)
    return folder


def with_checkpoint(path: Path, step: int = 4) -> None:
    folder = path / "checkpoints" / f"step-{step}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")


def contents(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


@pytest.mark.parametrize("exists", [True, False])
def test_a_new_or_empty_folder_is_claimed_and_nothing_is_written_yet(
    tmp_path: Path, exists: bool
) -> None:
    path = tmp_path / "run"
    if exists:
        path.mkdir()
    assert open_run_folder(path, Settings()) == RunFolder(path, None, False)
    assert path.exists() == exists


def test_a_begun_run_holds_its_settings_and_what_it_is_made_from(tmp_path: Path) -> None:
    begun(tmp_path / "run")
    assert "rate: 1.0e-05" in (tmp_path / "run" / "config.yaml").read_text()
    assert read_provenance(tmp_path / "run") == MADE_FROM
    assert set(contents(tmp_path / "run")) == {"config.yaml", "provenance.json"}


def test_an_unfinished_run_of_the_same_settings_continues_from_its_newest_checkpoint(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run"
    begun(path)
    assert open_run_folder(path, Settings()).checkpoint is None
    for step in (4, 12):
        with_checkpoint(path, step)
    assert open_run_folder(path, Settings()) == RunFolder(
        path, path / "checkpoints" / "step-12", False
    )


def test_other_settings_are_refused_and_each_difference_is_named(tmp_path: Path) -> None:
    begun(tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(RunFolderError) as caught:
        open_run_folder(tmp_path / "run", Settings(rate=2e-5, train=Train(seed=3)))
    message = str(caught.value)
    assert "rate: 1e-05 there, 2e-05 now" in message
    assert "train.seed: 0 there, 3 now" in message
    assert "checkpoint_every" not in message
    assert contents(tmp_path / "run") == before


def test_settings_of_keeping_and_watching_may_change(tmp_path: Path) -> None:
    begun(tmp_path / "run")
    open_run_folder(tmp_path / "run", Settings(output="./run", train=Train(checkpoint_every=7)))


@pytest.mark.parametrize("key", MADE_FROM)
def test_a_run_does_not_continue_from_other_things(tmp_path: Path, key: str) -> None:
    path = tmp_path / "run"
    begun(path)
    with_checkpoint(path)
    folder = open_run_folder(path, Settings())
    begin_run(folder, Settings(), MADE_FROM)
    with pytest.raises(RunFolderError, match=f"its {key} is not the one it began with"):
        begin_run(folder, Settings(), {**MADE_FROM, key: "other"})
    assert read_provenance(path) == MADE_FROM


def test_a_run_without_a_checkpoint_begins_anew_from_other_things(tmp_path: Path) -> None:
    begun(tmp_path / "run")
    folder = open_run_folder(tmp_path / "run", Settings())
    begin_run(folder, Settings(), {**MADE_FROM, "model": "other"})
    assert read_provenance(tmp_path / "run")["model"] == "other"


def test_a_finished_run_is_recognized_and_offers_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run"
    folder = begun(path)
    with_checkpoint(path)
    finish_run(folder, {"seconds": 3.0})
    assert open_run_folder(path, Settings()) == RunFolder(path, None, True)
    assert read_provenance(path) == {**MADE_FROM, "seconds": 3.0, "finished": True}


def test_a_foreign_folder_is_refused_with_and_without_overwrite(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(RunFolderError, match="holds no run"):
            open_run_folder(tmp_path, Settings(), overwrite=overwrite)
    assert contents(tmp_path) == {"thesis.tex": b"years of work"}


def test_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run"
    file.write_text("text")
    with pytest.raises(RunFolderError, match="is a file"):
        open_run_folder(file, Settings(), overwrite=True)
    assert file.read_text() == "text"


def with_everything(path: Path) -> None:
    """All that a run leaves, and what it leaves half written when it dies."""
    with_checkpoint(path)
    for name in ("metrics.jsonl", "report.html", ".metrics.jsonl.writing", ".config.yaml.writing"):
        (path / name).write_text("{}")
    for name in ("model", "adapter", "tensorboard", ".model.writing"):
        (path / name).mkdir()
        (path / name / "file").write_text("x")


def test_overwrite_removes_a_run_of_any_settings_when_the_new_one_begins(tmp_path: Path) -> None:
    path = tmp_path / "run"
    begun(path)
    with_everything(path)
    before = contents(path)
    other = Settings(rate=1)
    folder = open_run_folder(path, other, overwrite=True)
    assert folder == RunFolder(path, None, False, is_overwritten=True)
    # Until the new run begins it may still be refused, and the old one is all there is.
    assert contents(path) == before
    begin_run(folder, other, MADE_FROM)
    assert {f.name for f in path.iterdir()} == {"config.yaml", "provenance.json"}
    assert "rate: 1.0" in (path / "config.yaml").read_text()


def test_overwrite_takes_a_new_or_empty_folder_as_it_is(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "new"):
        assert open_run_folder(path, Settings(), overwrite=True) == RunFolder(path, None, False)


@pytest.mark.parametrize("text", ["rate: [", "learning: deep", "rate: fast", "- 1", "\x00"])
def test_a_folder_whose_settings_are_not_a_runs_is_not_overwritten(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("years of work")
    before = contents(tmp_path)
    with pytest.raises(RunFolderError, match=r"holds a config\.yaml that is not a run's"):
        open_run_folder(tmp_path, Settings(), overwrite=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["thesis.tex", "data", ".git", "model-old"])
def test_a_folder_that_holds_more_than_a_run_is_not_overwritten(tmp_path: Path, name: str) -> None:
    begun(tmp_path)
    with_everything(tmp_path)
    claimed = open_run_folder(tmp_path, Settings(), overwrite=True)
    (tmp_path / name).mkdir()
    before = contents(tmp_path)
    with pytest.raises(RunFolderError, match="holds more than a run") as caught:
        open_run_folder(tmp_path, Settings(), overwrite=True)
    assert caught.value.got == name
    # Also if it came while the new run was being prepared.
    with pytest.raises(RunFolderError, match="holds more than a run"):
        begin_run(claimed, Settings(), MADE_FROM)
    assert contents(tmp_path) == before


def test_what_a_link_in_an_overwritten_run_leads_to_stays(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    begun(path)
    elsewhere.mkdir()
    (elsewhere / "weights").write_text("x")
    (path / "model").symlink_to(elsewhere)
    begin_run(open_run_folder(path, Settings(), overwrite=True), Settings(), MADE_FROM)
    assert contents(elsewhere) == {"weights": b"x"}
    assert not (path / "model").is_symlink()


CIRCUMSTANCES = {
    **MADE_FROM,
    "processes": 1,
    "versions": {"torch": "2.11", "transformers": "5.17", "platform": "here"},
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"processes": 2}, "processes 1 there, 2 now"),
        ({"versions": {"torch": "2.12", "transformers": "5.17"}}, "torch 2.11 there, 2.12 now"),
        ({"versions": {"torch": "2.11"}}, "transformers 5.17 there, None now"),
    ],
)
def test_continuing_under_other_circumstances_warns(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    path = tmp_path / "run"
    begin_run(open_run_folder(path, Settings()), Settings(), CIRCUMSTANCES)
    with_checkpoint(path)
    folder = open_run_folder(path, Settings())
    with pytest.warns(VerituneWarning, match="will not be bit-identical") as caught:
        begin_run(folder, Settings(), {**CIRCUMSTANCES, **change})
    (warning,) = caught
    assert f"({said})" in str(warning.message)
    assert read_provenance(path) == CIRCUMSTANCES


def test_continuing_under_the_same_circumstances_is_silent(tmp_path: Path) -> None:
    path = tmp_path / "run"
    begin_run(open_run_folder(path, Settings()), Settings(), CIRCUMSTANCES)
    with_checkpoint(path)
    elsewhere = {**CIRCUMSTANCES, "versions": {**CIRCUMSTANCES["versions"], "platform": "there"}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        begin_run(open_run_folder(path, Settings()), Settings(), elsewhere)


def test_a_run_that_died_at_any_point_of_its_beginning_can_begin_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PowerCut(Exception):
        pass

    replace = os.replace
    for calls in range(2):
        path = tmp_path / f"run-{calls}"
        left = [calls]

        def failing(source: Path, target: Path, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise PowerCut
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(run_folder.os, "replace", failing)
            with pytest.raises(PowerCut):
                begun(path)
        assert any(path.iterdir())
        begun(path)
        assert read_provenance(path) == MADE_FROM
        assert open_run_folder(path, Settings()).checkpoint is None


def test_provenance_that_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    assert read_provenance(tmp_path) == {}
    (tmp_path / "provenance.json").write_text("{")
    assert read_provenance(tmp_path) == {}
    (tmp_path / "provenance.json").write_text(json.dumps([1]))
    assert read_provenance(tmp_path) == {}


def test_overwriting_that_was_interrupted_can_be_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    begun(path)
    with_checkpoint(path)

    def interrupted(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            begin_run(open_run_folder(path, Settings(), overwrite=True), Settings(), MADE_FROM)
    other = Settings(rate=2)
    begin_run(open_run_folder(path, other, overwrite=True), other, MADE_FROM)
    assert set(contents(path)) == {"config.yaml", "provenance.json"}
