"""Segment attention against one dense masked softmax in float64."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dense_attention import dense_attention, dense_mask
from torch import Tensor
from torch.utils._pytree import tree_leaves

from veritune.batches.batch import Batch
from veritune.batches.pack import pack
from veritune.models.attention import segment_attention
from veritune.tokens.encode import TokenizedRecord

HEADS, KEY_HEADS, DIM = 4, 2, 8
MODULE = SimpleNamespace(is_causal=True)
Make = Callable[..., list[TokenizedRecord]]


@pytest.fixture(scope="module")
def row(make_groups: Make) -> tuple[list[TokenizedRecord], Batch]:
    groups = make_groups([(7, (5, 3)), (2, (1, 6)), (7, (5,)), (1, (4, 4))])
    return groups, pack(groups, range(len(groups)))


def states(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, batch.num_tokens, DIM, generator=draw)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )
    return query, key, value


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("scaling", [None, 0.9])
def test_segments_are_a_dense_masked_softmax(
    row: Any, window: int | None, softcap: float | None, has_sinks: bool, scaling: float | None
):
    groups, batch = row
    query, key, value = (state.requires_grad_() for state in states(batch))
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0], requires_grad=True) if has_sinks else None

    found, nothing = segment_attention(
        MODULE,
        query,
        key,
        value,
        None,
        scaling=scaling,
        sliding_window=window,
        softcap=softcap,
        s_aux=sinks,
        plan=batch.plan,
    )
    mask = dense_mask(groups, batch, window)
    scale = 1 / math.sqrt(DIM) if scaling is None else scaling
    expected = dense_attention(query, key, value, mask, scale, softcap, sinks)

    assert nothing is None
    assert found.shape == (1, batch.num_tokens, HEADS, DIM)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6)
    leaves = [query, key, value, *([sinks] if sinks is not None else [])]
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    given = torch.autograd.grad((found * upstream).sum(), leaves)
    wanted = torch.autograd.grad((expected * upstream.double()).sum(), leaves)
    for gradient, correct in zip(given, wanted, strict=True):
        torch.testing.assert_close(gradient, correct, rtol=0, atol=1e-5)


def test_windows_softcaps_and_sinks_change_the_result(row: Any):
    """The control: what a model hands over is not to be dropped."""
    _, batch = row
    query, key, value = states(batch)
    settings: list[dict[str, Any]] = [
        {},
        {"sliding_window": 3},
        {"softcap": 2.0},
        {"s_aux": torch.ones(HEADS)},
        {"scaling": 0.9},
    ]

    results = [
        segment_attention(MODULE, query, key, value, None, plan=batch.plan, **setting)[0]
        for setting in settings
    ]

    for i, one in enumerate(results):
        for other in results[:i]:
            assert (one - other).abs().max() > 1e-2


def test_layers_with_different_windows_share_a_plan(row: Any):
    groups, batch = row
    query, key, value = states(batch)
    assert batch.plan is not None
    for window in (3, None, 2, 3):
        found, _ = segment_attention(
            MODULE, query, key, value, None, sliding_window=window, plan=batch.plan
        )
        mask = dense_mask(groups, batch, window)
        expected = dense_attention(query, key, value, mask, 1 / math.sqrt(DIM), None, None)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6)
    assert batch.plan.windows >= {2, 3}


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_a_dropout_rate_drops_weights(row: Any, softcap: float | None):
    _, batch = row
    query, key, value = states(batch)

    def attend(rate: float) -> Tensor:
        return segment_attention(
            MODULE, query, key, value, None, dropout=rate, softcap=softcap, plan=batch.plan
        )[0]

    torch.manual_seed(0)
    assert torch.equal(attend(0.0), attend(0.0))
    assert not torch.equal(attend(0.5), attend(0.5))


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_no_mask_over_the_row_is_made(make_groups: Make, window: int | None, softcap: float | None):
    groups = make_groups([(7, (5, 3)), (40, (1, 60)), (7, (5,)), (1, (4, 4))] * 20)
    batch = pack(groups, range(len(groups)))
    query, key, value = states(batch)

    segment_attention(
        MODULE, query, key, value, None, sliding_window=window, softcap=softcap, plan=batch.plan
    )

    assert batch.plan is not None
    masks = [m for m in tree_leaves(list(batch.plan.masks.values())) if isinstance(m, Tensor)]
    assert sum(mask.numel() for mask in masks) < batch.num_tokens**2 / 4


def test_attention_that_looks_ahead_is_refused(row: Any):
    _, batch = row
    query, key, value = states(batch)

    with pytest.raises(NotImplementedError):
        segment_attention(
            SimpleNamespace(is_causal=False), query, key, value, None, plan=batch.plan
        )
