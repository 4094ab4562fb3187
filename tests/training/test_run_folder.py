import json
import os
from pathlib import Path

import pytest

from veritune.config import Config
from veritune.errors import RunFolderError
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


MADE_FROM = {"data_tokens": "d", "model": "m", "reference": "r"}


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


def test_overwrite_removes_a_run_of_any_settings(tmp_path: Path) -> None:
    path = tmp_path / "run"
    begun(path)
    with_checkpoint(path)
    assert open_run_folder(path, Settings(rate=1), overwrite=True) == RunFolder(path, None, False)
    assert not path.exists() or not contents(path)


def test_overwrite_removes_a_run_whose_settings_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "run"
    begun(path)
    (path / "config.yaml").write_text("rate: [")
    open_run_folder(path, Settings(), overwrite=True)


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
    (path / "notes.txt").write_text("by hand")

    def interrupted(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_run_folder(path, Settings(), overwrite=True)
    assert open_run_folder(path, Settings(rate=2), overwrite=True) == RunFolder(path, None, False)
    assert contents(path) == {}
