"""Layouts of rows, recomputed activations, row budgets: the same trajectory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from run_world import World, largest_difference, lines

from veritune.batches.loader import GlobalBatch
from veritune.models.forward import CausalModel
from veritune.training.objective_pass import PreparedBatch
from veritune.training.step import TrainingStep


def comparable(run: Path, ignoring: Sequence[str]) -> list[dict[str, Any]]:
    found = [{k: v for k, v in line.items() if k not in ignoring} for line in lines(run)]
    # Before the first update every reward is zero, and the sign of a rounding error is no result.
    found[0].pop("rewards/accuracies", None)
    return found


def assert_same_trajectory(one: Path, other: Path, *, ignoring: Sequence[str] = ()) -> None:
    expected, got = comparable(one, ignoring), comparable(other, ignoring)
    assert len(got) == len(expected)
    for a, b in zip(expected, got, strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-4)
    assert largest_difference(one, other) < 2e-4


@pytest.mark.parametrize("objective", ["dpo", "kto", "exo_rw", "sft"])
def test_shared_packed_and_padded_rows_give_one_trajectory(objective: str, tmp_path: Path) -> None:
    world = World(tmp_path)
    for sharing in ("shared", "packed", "padded"):
        world.train(objective, sharing, train__sharing=sharing)
    for sharing in ("packed", "padded"):
        # How many tokens are computed is what layouts differ in.
        ignored = ["tokens", "fill"]
        assert_same_trajectory(tmp_path / "shared", tmp_path / sharing, ignoring=ignored)


@pytest.mark.parametrize("objective", ["dpo", "kto", "sft"])
def test_the_token_budget_of_a_row_does_not_change_the_trajectory(
    objective: str, tmp_path: Path
) -> None:
    world = World(tmp_path)
    world.train(objective, "large")
    world.train(objective, "small", train__tokens_per_row=1)
    assert_same_trajectory(tmp_path / "large", tmp_path / "small")


@pytest.mark.parametrize("adapter", [None, "{rank: 4}"])
def test_recomputed_activations_do_not_change_the_trajectory(
    adapter: str | None, tmp_path: Path
) -> None:
    world = World(tmp_path)
    world.train("dpo", "kept", adapter=adapter)
    world.train("dpo", "recomputed", adapter=adapter, train__gradient_checkpointing="true")
    assert_same_trajectory(tmp_path / "kept", tmp_path / "recomputed")


def test_another_seed_is_another_trajectory(tmp_path: Path) -> None:
    """Control: the tolerances above tell trajectories apart."""
    world = World(tmp_path)
    world.train("dpo", "one")
    world.train("dpo", "other", train__seed=1)
    with pytest.raises(AssertionError):
        assert_same_trajectory(tmp_path / "one", tmp_path / "other")


def test_the_records_of_a_step_do_not_depend_on_the_token_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, GlobalBatch]] = []
    run = TrainingStep.run

    def watched(
        self: TrainingStep, step: int, batch: GlobalBatch | PreparedBatch
    ) -> dict[str, float]:
        seen.append((step, batch.batch if isinstance(batch, PreparedBatch) else batch))
        return run(self, step, batch)

    monkeypatch.setattr(TrainingStep, "run", watched)
    world = World(tmp_path)
    batches = []
    for name, budget in (("large", 4096), ("small", 1)):
        seen.clear()
        world.train("kto", name, train__tokens_per_row=budget)
        batches.append(list(seen))
    assert batches[0] == batches[1]
    assert len(batches[0]) == 6


def test_recomputed_activations_are_computed_twice(tmp_path: Path) -> None:
    """Control: the setting reaches the model."""
    world = World(tmp_path)
    calls: dict[str, int] = {}
    for name in ("false", "true"):
        calls[name] = 0

        def count(*_: Any, name: str = name) -> None:
            calls[name] += 1

        def watch(model: CausalModel, step: int, count: Any = count) -> None:
            if step == 0:
                model.hf.model.layers[0].mlp.register_forward_pre_hook(count)

        world.train("dpo", name, train__gradient_checkpointing=name, measure=watch)
    assert calls == {"false": 6, "true": 12}
