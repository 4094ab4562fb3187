"""A batch moves whole."""

from collections.abc import Callable
from dataclasses import fields
from functools import partial

import pytest
import torch
from torch import Tensor

from veritune.batches.batch import Batch
from veritune.batches.pack import pack
from veritune.batches.pad import pad
from veritune.tokens.encode import TokenizedRecord

Make = Callable[..., TokenizedRecord]


@pytest.mark.parametrize("layout", [pack, pad, partial(pack, multiple_of=16)])
def test_on_another_device_every_tensor_is_there(make_group: Make, layout: Callable[..., Batch]):
    batch = layout([make_group(3, [2, 3]), make_group(2, [1])], [0, 1])
    meta = torch.device("meta")

    moved = batch.to(meta)

    for field in fields(Batch):
        before, after = getattr(batch, field.name), getattr(moved, field.name)
        if isinstance(before, Tensor):
            assert (after.device, after.shape, after.dtype) == (meta, before.shape, before.dtype)
        elif field.name != "plan":
            assert after == before
    if batch.plan is not None:
        assert moved.plan is not None
        assert moved.plan.segments == batch.plan.segments
        for name in ("query_ends", "key_ends", "key_index"):
            before, after = getattr(batch.plan, name), getattr(moved.plan, name)
            assert (after.device, after.shape, after.dtype) == (meta, before.shape, before.dtype)
        for name in ("max_queries", "max_keys", "num_filling"):
            assert getattr(moved.plan, name) == getattr(batch.plan, name)


@pytest.mark.parametrize("layout", [pack, pad, partial(pack, multiple_of=16)])
def test_every_tensor_has_a_place_in_memory_for_each_element(
    make_group: Make, layout: Callable[..., Batch]
):
    """What is spread over several places cannot be pinned for the way to a GPU."""
    batch = layout([make_group(3, [2, 3]), make_group(2, [1])], [0, 1])
    for field in fields(Batch):
        value = getattr(batch, field.name)
        assert not isinstance(value, Tensor) or value.is_contiguous(), field.name


def test_on_its_own_device_a_batch_is_itself(make_group: Make):
    batch = pack([make_group(3, [2, 3])], [0])

    assert batch.to(torch.device("cpu")) is batch


def test_padding_is_no_data(make_group: Make):
    groups = [make_group(3, [2, 3]), make_group(2, [1])]

    padded = pad(groups, [0, 1])

    assert padded.num_tokens == 3 * 5
    assert padded.num_data_tokens == (3 + 1) + (3 + 2) + 2
