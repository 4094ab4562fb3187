"""Attention by blocks of queries: values and gradients of the plain loop, whatever the blocks."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from veritune.batches.batch import Segment, SegmentPlan
from veritune.batches.pack import pack
from veritune.models import attention_blocks
from veritune.models.attention_blocks import block_attention
from veritune.models.attention_kernels import ScoreRule, loop_attention

Make = Callable[..., Any]


@pytest.fixture
def plan(make_groups: Make) -> SegmentPlan:
    groups = make_groups([(70, (45, 3, 20)), (2, (1, 66)), (1, (4,)), (33, (2,))])
    found = pack(groups, range(len(groups))).plan
    assert found is not None
    return found


def states(plan: SegmentPlan, heads: int, key_heads: int, size: int, value_size: int) -> Any:
    draw = torch.Generator().manual_seed(0)
    num_tokens = plan.segments[-1].stop
    return [
        torch.randn(1, num_tokens, count, width, generator=draw).transpose(1, 2).requires_grad_()
        for count, width in ((heads, size), (key_heads, size), (key_heads, value_size))
    ]


def results(out: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return [out, *torch.autograd.grad(out, leaves, upstream.to(out.dtype))]


@pytest.mark.parametrize("rows", [1, 6, 32, 128, 1000])
@pytest.mark.parametrize("window", [None, 1, 7, 40, 1000])
def test_blocks_of_any_size_give_what_the_loop_gives(
    plan: SegmentPlan, rows: int, window: int | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(attention_blocks, "_ROWS", rows)
    leaves = states(plan, 4, 2, 8, 8)

    found = results(block_attention(*leaves, plan, 0.5, window), leaves)
    (laid,) = plan.masks.values()
    expected = results(loop_attention(*leaves, plan, ScoreRule(0.5, window)), leaves)

    assert max(block.num_queries for block, _ in laid) <= max(2, rows)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("heads", "key_heads", "size", "value_size"),
    [(4, 4, 8, 8), (6, 1, 8, 8), (6, 3, 5, 7), (1, 1, 16, 4)],
)
def test_any_number_of_heads_and_any_size_gives_what_the_loop_gives(
    plan: SegmentPlan, heads: int, key_heads: int, size: int, value_size: int
):
    leaves = states(plan, heads, key_heads, size, value_size)

    found = results(block_attention(*leaves, plan, 0.3, None), leaves)
    expected = results(loop_attention(*leaves, plan, ScoreRule(0.3)), leaves)

    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [None, 3, 40])
@pytest.mark.parametrize("worth", [0, 60, 10**9])
@pytest.mark.parametrize("layout", [{}, {"shares_prefix": False}, {"multiple_of": 64}])
def test_segments_that_share_a_block_see_nothing_of_each_other(
    make_groups: Make,
    window: int | None,
    worth: int,
    layout: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
):
    shapes = [(3, (2, 3)), (1, (5, 1, 4)), (20, (9, 2, 3)), (6, (3,)), (10, (80, 30))]
    groups = make_groups(shapes * 8)
    plan = pack(groups, range(len(groups)), **layout).plan
    assert plan is not None
    monkeypatch.setattr(attention_blocks, "_SCORES_OF_A_BLOCK", worth)
    leaves = states(plan, 4, 2, 8, 8)

    found = results(block_attention(*leaves, plan, 0.5, window), leaves)
    expected = results(loop_attention(*leaves, plan, ScoreRule(0.5, window)), leaves)

    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("worth", "blocks"),
    [
        # The first completion stands right behind its prompt, so its keys are the row's.
        (0, [(0, 64), (64, 70), (70, 100), (100, 105), (105, 108), (108, 110), (110, 113)]),
        # The second and the third share a block behind the prompt's keys.
        (300, [(0, 64), (64, 70), (70, 100), (100, 108), (108, 113)]),
        (10**9, [(0, 64), (64, 113)]),
    ],
)
def test_blocks_are_joined_where_that_is_cheaper(
    worth: int, blocks: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
):
    plan = SegmentPlan.of(
        [
            Segment(0, 70, 0, 0),
            Segment(70, 30, 0, 70),
            Segment(100, 5, 0, 70),
            Segment(105, 3, 0, 70),
            Segment(108, 2, 108, 0),
            Segment(110, 3, 108, 2),
        ]
    )
    monkeypatch.setattr(attention_blocks, "_SCORES_OF_A_BLOCK", worth)

    found = attention_blocks._blocks(plan, 2, 2, None)

    assert [(block.start, block.stop) for block in found] == blocks
    joined = [block for block in found if block.start == 100 and len(block.segments) == 2]
    assert [block.prefix_length for block in joined] == ([70] if worth == 300 else [])


def test_a_plan_serves_passes_of_any_kind(plan: SegmentPlan):
    """Scored first, then trained twice over one graph, then in float64."""
    leaves = states(plan, 4, 2, 8, 8)
    with torch.no_grad():
        scored = block_attention(*leaves, plan, 0.5, None)

    out = block_attention(*leaves, plan, 0.5, None)
    upstream = torch.ones_like(out)
    first = torch.autograd.grad(out, leaves, upstream, retain_graph=True)
    again = torch.autograd.grad(out, leaves, upstream)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    wide = block_attention(*exact, plan, 0.5, None)

    assert torch.equal(scored, out)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    torch.testing.assert_close(wide.float(), out, rtol=0, atol=1e-5)


def test_long_rows_are_cut_into_smaller_blocks(plan: SegmentPlan, monkeypatch: pytest.MonkeyPatch):
    leaves = states(plan, 4, 2, 8, 8)
    whole = results(block_attention(*leaves, plan, 0.5, None), leaves)
    monkeypatch.setattr(attention_blocks, "_MAX_SCORES", 2 * plan.max_keys * 8)
    plan = SegmentPlan.of(plan.segments)

    cut = results(block_attention(*leaves, plan, 0.5, None), leaves)

    (laid,) = plan.masks.values()
    assert 4 <= max(block.num_queries for block, _ in laid) <= 2 * 4
    for one, other in zip(cut, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_the_gradient_is_that_of_finite_differences():
    plan = SegmentPlan.of([Segment(0, 3, 0, 0), Segment(3, 2, 0, 3), Segment(5, 2, 0, 3)])
    leaves = [leaf.detach().double().requires_grad_() for leaf in states(plan, 4, 2, 3, 2)]

    for window in (None, 2):
        assert torch.autograd.gradcheck(
            lambda *given, window=window: block_attention(*given, plan, 0.7, window), leaves
        )


def test_scores_far_apart_neither_overflow_nor_lose_the_largest(plan: SegmentPlan):
    """Scores of some thousands, as no softmax without its maximum taken off would survive."""
    leaves = states(plan, 4, 2, 8, 8)

    found = results(block_attention(*leaves, plan, 300.0, None), leaves)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = results(loop_attention(*exact, plan, ScoreRule(300.0)), exact)

    assert all(torch.isfinite(one).all() for one in found)
    # Scores of 5000 are known to 5e-4 in float32, and weights with them.
    torch.testing.assert_close(found[0].double(), expected[0], rtol=0, atol=5e-3)
    torch.testing.assert_close(found[3].double(), expected[3], rtol=0, atol=5e-2)


def test_blocks_compute_little_of_what_causality_hides(make_groups: Make):
    """Masked attention over rectangles would compute half as much again for such a pair."""
    plan = pack(make_groups([(400, (801, 801))]), [0]).plan
    assert plan is not None
    blocks = attention_blocks._blocks(plan, num_key_heads=2, repeats=2, window=None)

    computed = sum(block.num_scores for block in blocks)
    seen = sum(s.length * s.prefix_length + math.comb(s.length + 1, 2) for s in plan.segments)
    masked = sum(s.length * (s.prefix_length + s.length) for s in plan.segments)

    assert seen < computed < 1.06 * seen
    assert masked > 1.45 * seen
