"""A batch moves whole."""

from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from veritune.batches.batch import Batch
from veritune.batches.pack import pack
from veritune.batches.pad import pad
from veritune.tokens.encode import TokenizedRecord

Make = Callable[..., TokenizedRecord]


@pytest.mark.parametrize("layout", [pack, pad])
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
        assert moved.plan.order.device == meta
        for before, after in zip(batch.plan.groups, moved.plan.groups, strict=True):
            assert (after.num_queries, after.num_prefix) == (before.num_queries, before.num_prefix)
            assert after.query_index.device == after.key_index.device == meta


def test_on_its_own_device_a_batch_is_itself(make_group: Make):
    batch = pack([make_group(3, [2, 3])], [0])

    assert batch.to(torch.device("cpu")) is batch
