import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from veritune.errors import CheckpointError
from veritune.training.checkpoint import (
    Position,
    checkpoint_folder,
    newest_checkpoint,
    read_checkpoint,
    trained_parameters,
    write_checkpoint,
)
from veritune.training.optimizer import OptimizerConfig, build_optimizer


class Tied(nn.Module):
    """Two names for one weight, and a weight that is not trained."""

    def __init__(self, seed: int, width: int = 5) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Linear(width, 3, bias=True)
        self.head = nn.Linear(width, 3, bias=False)
        self.head.weight = self.embedding.weight
        self.frozen = nn.Parameter(torch.randn(4), requires_grad=False)


def made(seed: int, width: int = 5, *, steps: int = 0) -> tuple[Tied, torch.optim.Optimizer]:
    model = Tied(seed, width)
    optimizer = build_optimizer(model.parameters(), OptimizerConfig(learning_rate=0.1))
    for _ in range(steps):
        one_step(model, optimizer)
    return model, optimizer


def one_step(model: Tied, optimizer: torch.optim.Optimizer) -> None:
    width = model.head.in_features
    loss = (model.head(torch.ones(2, width)) ** 2).sum() + model.embedding.bias.sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def written(run: Path, *steps: int, keep: int = 9) -> tuple[Tied, torch.optim.Optimizer]:
    model, optimizer = made(0)
    for number in steps:
        one_step(model, optimizer)
        write_checkpoint(run, Position(number, 10 * number), model, optimizer, keep=keep)
    return model, optimizer


def test_a_checkpoint_restores_weights_optimizer_and_position(tmp_path: Path) -> None:
    model, optimizer = written(tmp_path, 1, 2, 3)
    other, fresh = made(7)
    newest = newest_checkpoint(tmp_path)
    assert newest == checkpoint_folder(tmp_path, 3)
    assert newest is not None
    assert read_checkpoint(newest, other, fresh) == Position(3, 30)
    one_step(model, optimizer)
    one_step(other, fresh)
    assert torch.equal(model.embedding.weight, other.embedding.weight)
    assert torch.equal(model.embedding.bias, other.embedding.bias)
    # Control: without the optimizer's memory the next step is another one.
    forgetful, blank = made(7)
    read_checkpoint(newest, forgetful, made(7)[1])
    one_step(forgetful, blank)
    assert not torch.equal(model.embedding.weight, forgetful.embedding.weight)


def test_what_is_not_trained_is_not_kept_and_what_is_tied_is_kept_once(tmp_path: Path) -> None:
    model, _ = written(tmp_path, 1)
    assert set(trained_parameters(model)) == {"embedding.weight", "embedding.bias"}
    other, fresh = made(7)
    frozen = other.frozen.clone()
    read_checkpoint(checkpoint_folder(tmp_path, 1), other, fresh)
    assert torch.equal(other.frozen, frozen)
    assert other.head.weight is other.embedding.weight


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    written(tmp_path, 2, 9, 10, 11, keep=2)
    assert sorted(f.name for f in (tmp_path / "checkpoints").iterdir()) == ["step-10", "step-11"]


def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    written(tmp_path, 1, 2)
    (checkpoint_folder(tmp_path, 2) / "manifest.json").unlink()
    assert newest_checkpoint(tmp_path) == checkpoint_folder(tmp_path, 1)


def test_a_run_without_checkpoints_has_no_newest(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None


def test_other_files_among_the_checkpoints_do_not_matter(tmp_path: Path) -> None:
    written(tmp_path, 1)
    (tmp_path / "checkpoints" / "step-final").mkdir()
    (tmp_path / "checkpoints" / ".step-5.writing").mkdir()
    (tmp_path / "checkpoints" / "step-7").write_text("a file")
    assert newest_checkpoint(tmp_path) == checkpoint_folder(tmp_path, 1)


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def remove(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("name", ["trained.safetensors", "optimizer.pt"])
@pytest.mark.parametrize("damage", [flip_a_byte, cut_in_half, remove])
def test_a_damaged_file_is_refused_by_name(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    written(tmp_path, 1)
    folder = checkpoint_folder(tmp_path, 1)
    read_checkpoint(folder, *made(7))
    damage(folder / name)
    with pytest.raises(CheckpointError, match=name):
        read_checkpoint(folder, *made(7))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"step": 1}', '{"step": 1, "records": 2, "files": 3}']
)
def test_a_manifest_that_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    written(tmp_path, 1)
    folder = checkpoint_folder(tmp_path, 1)
    (folder / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match="manifest"):
        read_checkpoint(folder, *made(7))


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    written(tmp_path, 1)
    with pytest.raises(CheckpointError, match="other parameters"):
        read_checkpoint(checkpoint_folder(tmp_path, 1), *made(0, width=6))


def test_a_refused_checkpoint_changes_no_weight(tmp_path: Path) -> None:
    written(tmp_path, 1)
    flip_a_byte(checkpoint_folder(tmp_path, 1) / "trained.safetensors")
    model, optimizer = made(7)
    before = model.embedding.weight.detach().clone()
    with pytest.raises(CheckpointError):
        read_checkpoint(checkpoint_folder(tmp_path, 1), model, optimizer)
    assert torch.equal(model.embedding.weight, before)


@pytest.mark.parametrize("others", [(), (1,), (3,), (1, 3)])
def test_the_way_out_of_a_damaged_checkpoint_is_true(tmp_path: Path, others: tuple[int]) -> None:
    written(tmp_path, *sorted((2, *others)))
    folder = checkpoint_folder(tmp_path, 2)
    remains = f"continues behind step {max(others)}" if others else "begins anew"
    for damage in (
        lambda: flip_a_byte(folder / "optimizer.pt"),
        lambda: (folder / "manifest.json").write_text("{"),
    ):
        damage()
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(folder, *made(7))
        assert caught.value.fix == f"remove this checkpoint folder; the run {remains}"
    shutil.rmtree(folder)
    left = checkpoint_folder(tmp_path, max(others)) if others else None
    assert newest_checkpoint(tmp_path) == left


def test_everything_is_on_the_disk_before_what_relies_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a power cut, what was not waited for may be lost, and what came later may not."""
    from veritune.training import checkpoint

    events: list[str] = []

    def told(name: str, function: Callable[..., object], place: int = 0) -> None:
        def telling(*arguments: object, **named: object) -> object:
            events.append(f"{name} {Path(str(arguments[place])).name}")
            return function(*arguments, **named)

        monkeypatch.setattr(checkpoint, function.__name__, telling)

    written(tmp_path, 1)
    told("write", checkpoint._write_synced)
    told("sync", checkpoint._sync)

    def replace(source: Path, target: Path) -> None:
        events.append(f"rename to {target.name}")
        source.rename(target)

    def rmtree(folder: Path, ignore_errors: bool) -> None:
        if folder.exists():
            events.append(f"remove {folder.name}")

    monkeypatch.setattr(checkpoint.os, "replace", replace)
    monkeypatch.setattr(checkpoint.shutil, "rmtree", rmtree)
    written(tmp_path, 2, keep=1)
    assert events == [
        "sync trained.safetensors",
        "sync optimizer.pt",
        "sync .step-2.writing",
        "write manifest.json",
        "sync manifest.json",
        "sync .step-2.writing",
        "rename to step-2",
        "sync checkpoints",
        "remove step-1",
    ]


def test_the_manifest_is_the_last_file_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from veritune.training import checkpoint

    seen: list[set[str]] = []
    write = checkpoint._write_synced

    def watched(file: Path, text: str) -> None:
        seen.append({f.name for f in file.parent.iterdir()})
        assert set(json.loads(text)["files"]) == seen[-1]
        write(file, text)

    monkeypatch.setattr(checkpoint, "_write_synced", watched)
    written(tmp_path, 1)
    assert seen == [{"trained.safetensors", "optimizer.pt"}]
