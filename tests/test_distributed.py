"""Ranks are played here by a world of two in which both ranks hold the same."""

from pathlib import Path

import pytest
import torch
from tiny_world import lively_model, random_dataset

from veritune import distributed
from veritune.models.cache import ReferenceCache
from veritune.models.forward import CausalModel
from veritune.models.reference import score_reference


@pytest.fixture
def _two_equal_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda tensor: tensor.mul_(2))


@pytest.mark.usefixtures("_two_equal_ranks")
@pytest.mark.parametrize("bucket", [1, 7, 12, 10_000])
def test_every_gradient_is_summed_once_however_the_buckets_fall(
    bucket: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "_BUCKET_NUMBERS", bucket)
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((3, 2), (5,), (1,), (4, 4))]
    for number, parameter in enumerate(parameters):
        parameter.grad = torch.arange(parameter.numel()).view_as(parameter) + 100.0 * number
    expected = [2 * p.grad for p in parameters if p.grad is not None]
    distributed.sum_gradients(parameters)
    for parameter, total in zip(parameters, expected, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, total)


@pytest.mark.usefixtures("_two_equal_ranks")
def test_a_missing_gradient_counts_as_zero_and_a_frozen_parameter_takes_no_part() -> None:
    idle, frozen = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))
    frozen.requires_grad_(False)
    distributed.sum_gradients([idle, frozen])
    assert idle.grad is not None
    assert idle.grad.tolist() == [0, 0, 0]
    assert frozen.grad is None


@pytest.mark.usefixtures("_two_equal_ranks")
def test_a_global_sum_leaves_what_it_was_given_alone() -> None:
    own = torch.tensor([1.0, 2.0])
    assert distributed.global_sum(own).tolist() == [2, 4]
    assert own.tolist() == [1, 2]
    assert distributed.global_any(True)
    assert not distributed.global_any(False)


def test_one_process_is_a_world_of_one() -> None:
    own = torch.tensor([1.0])
    parameter = torch.nn.Parameter(torch.ones(2))
    distributed.sum_gradients([parameter])
    assert parameter.grad is None
    assert distributed.global_sum(own) is own
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.is_main_rank()


def test_the_main_rank_goes_first_and_lets_the_others_pass_when_it_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[str] = []
    monkeypatch.setattr(distributed, "barrier", lambda: events.append("barrier"))
    with distributed.main_rank_first():
        events.append("main")
    assert events == ["main", "barrier"]
    with pytest.raises(ZeroDivisionError), distributed.main_rank_first():
        raise ZeroDivisionError
    assert events == ["main", "barrier", "barrier"]
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    with distributed.main_rank_first():
        events.append("other")
    assert events[3:] == ["barrier", "other"]


def test_ranks_that_see_different_caches_leave_no_group_unscored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = random_dataset("paired", 9)
    groups = [dataset[index] for index in range(9)]
    model = CausalModel(lively_model())
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank in (0, 1):
        # The second rank opens the cache when the first has filled its share.
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        cache = ReferenceCache(tmp_path, {})
        score_reference(model, cache, groups, tokens_per_row=50, seed=0)
    assert all(group.key() in cache for group in groups)
