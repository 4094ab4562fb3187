"""A run whose layers are compiled is the run, and `auto` compiles where it is worth it."""

from pathlib import Path

import pytest
import torch
from run_world import Listener, World, lines

from veritune.commands import train as command
from veritune.models.compiled import compile_layers
from veritune.training.loop import TrainingConfig


@pytest.mark.parametrize("train", [{}, {"train__gradient_checkpointing": True}, {"adapter": {}}])
def test_compiled_layers_give_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: dict[str, object]
) -> None:
    world = World(tmp_path)
    settings = {"train__steps": 4, **train}
    world.train("dpo", "plain", **settings)
    # The graphs are captured as always, and not made into programs, which takes a minute.
    captured: list[int] = []

    def capture(hf_model: torch.nn.Module, **how: object) -> int:
        captured.append(compile_layers(hf_model, backend="aot_eager"))
        return captured[-1]

    monkeypatch.setattr(command, "compile_layers", capture)
    display = Listener()
    world.train("dpo", "compiled", display=display, train__compile=True, **settings)
    assert captured == [2]
    assert display.facts["training"].endswith(", compiled")
    for plain, compiled in zip(
        lines(world.folder / "plain"), lines(world.folder / "compiled"), strict=True
    ):
        assert compiled["loss"] == pytest.approx(plain["loss"], rel=1e-5)
        assert compiled["gradient_norm"] == pytest.approx(plain["gradient_norm"], rel=1e-4)


@pytest.mark.parametrize(
    ("setting", "device", "steps", "expected"),
    [
        ("auto", "cuda", 200, True),
        ("auto", "cuda", 199, False),
        ("auto", "cpu", 10_000, False),
        (True, "cpu", 1, True),
        (False, "cuda", 10_000, False),
    ],
)
def test_auto_compiles_long_runs_on_a_gpu(
    setting: object, device: str, steps: int, expected: bool
) -> None:
    config = TrainingConfig(compile=setting, learning_rate=1e-4)
    assert config.compiles(torch.device(device), steps) is expected
