import copy

import numpy as np
import pytest
import torch
from tiny_world import lively_model, random_dataset

from veritune.models.forward import CausalModel
from veritune.training.dry_run import dry_run, largest_row
from veritune.training.memory_plan import group_tokens

DATASET = random_dataset("paired", 30)


def test_a_trial_changes_nothing() -> None:
    model = CausalModel(lively_model())
    before = copy.deepcopy(model.hf.state_dict())
    state = torch.get_rng_state()
    taken = dry_run(model, [DATASET[index] for index in range(8)], reserved=1000)
    assert taken is not None
    assert taken >= 1000
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.hf.parameters())
    for name, value in model.hf.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_trial_without_memory_is_told_and_leaves_no_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = CausalModel(lively_model())

    def failing(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(model, "target_logprobs", failing)
    assert dry_run(model, [DATASET[0]], reserved=0) is None
    assert all(parameter.grad is None for parameter in model.hf.parameters())


def test_another_error_of_a_trial_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = CausalModel(lively_model())

    def failing(*_: object) -> None:
        raise RuntimeError("shapes")

    monkeypatch.setattr(model, "target_logprobs", failing)
    with pytest.raises(RuntimeError, match="shapes"):
        dry_run(model, [DATASET[0]], reserved=0)


@pytest.mark.parametrize("budget", [1, 20, 60, 10_000])
def test_the_largest_row_holds_the_longest_groups_that_fit(budget: int) -> None:
    sizes = group_tokens(DATASET, "shared")
    model = CausalModel(lively_model())
    row = [model.row_tokens(group) for group in largest_row(DATASET, sizes, budget, 8)]
    assert row[0] == sizes.max()
    assert sum(row) <= max(budget, sizes.max())
    assert len(row) <= 8
    if budget == 10_000:
        assert row == sorted(sizes.tolist(), reverse=True)[:8]
    elif len(row) < 8:
        assert sizes.max() > budget or budget - sum(row) < np.median(sizes)
