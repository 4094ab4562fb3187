"""Packed rows: nothing over the budget, and every target sees its prompt and its own completion."""

from collections.abc import Callable
from itertools import count

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veritune.batches.batch import Batch, Segment, SegmentPlan
from veritune.batches.pack import pack, row_tokens, rows_by_budget
from veritune.batches.pad import pad
from veritune.tokens.encode import TokenizedRecord

Make = Callable[..., TokenizedRecord]
shapes = st.lists(
    st.tuples(st.integers(1, 6), st.lists(st.integers(1, 5), min_size=1, max_size=8)),
    min_size=1,
    max_size=4,
)
# (predicted token, the tokens it is predicted from with their positions, completion)
Prediction = tuple[int, tuple[tuple[int, int], ...], int]


def predictions_of_groups(groups: list[TokenizedRecord]) -> list[Prediction]:
    """What must be predicted from what, read off the groups themselves."""
    found = []
    numbers = count()
    for group in groups:
        for completion in group.completions:
            number = next(numbers)
            sequence = [*group.prompt.tolist(), *completion.ids.tolist()]
            for place, bears_loss in enumerate(completion.bears_loss):
                if bears_loss:
                    end = len(group.prompt) + place
                    context = tuple((token, i) for i, token in enumerate(sequence[:end]))
                    found.append((sequence[end], context, number))
    return found


def predictions_of_packed(batch: Batch) -> list[Prediction]:
    """The same, read off the plan: which keys a query attends to, and where they stand."""
    assert batch.plan is not None
    ids, positions = batch.input_ids[0].tolist(), batch.positions[0].tolist()
    seen_by: dict[int, list[int]] = {}
    laid = []
    for segment in batch.plan.segments:
        prefix = range(segment.prefix_start, segment.prefix_start + segment.prefix_length)
        for query in range(segment.start, segment.start + segment.length):
            # A query sees the prefix and its own segment up to itself.
            seen_by[query] = [*prefix, *range(segment.start, query + 1)]
            laid.append(query)
    assert laid == list(range(len(ids))), "every token of the row is a query exactly once"
    return [
        (target, tuple((ids[key], positions[key]) for key in seen_by[source]), number)
        for source, target, number in zip(
            batch.source.tolist(), batch.targets.tolist(), batch.completion.tolist(), strict=True
        )
    ]


def predictions_of_padded(batch: Batch) -> list[Prediction]:
    """The same for padded rows: a causal model sees the row up to the source."""
    assert batch.attention_mask is not None
    width = batch.input_ids.shape[1]
    found = []
    for source, target, number in zip(
        batch.source.tolist(), batch.targets.tolist(), batch.completion.tolist(), strict=True
    ):
        row, place = divmod(source, width)
        assert batch.attention_mask[row, : place + 1].all(), "nothing masked is attended to"
        ids = batch.input_ids[row, : place + 1].tolist()
        positions = batch.positions[row, : place + 1].tolist()
        found.append((target, tuple(zip(ids, positions, strict=True)), number))
    return found


@given(shapes=shapes, silent=st.sampled_from([0.0, 0.5]))
@settings(max_examples=100)
def test_every_layout_predicts_each_token_from_its_prompt_and_its_own_completion(
    make_group: Make, shapes: list[tuple[int, list[int]]], silent: float
):
    groups = [make_group(p, c, seed=i, silent=silent) for i, (p, c) in enumerate(shapes)]
    indices = [10 + i for i in range(len(groups))]
    expected = predictions_of_groups(groups)

    shared = pack(groups, indices)
    unshared = pack(groups, indices, shares_prefix=False)
    padded = pad(groups, indices)

    assert predictions_of_packed(shared) == expected
    assert predictions_of_packed(unshared) == expected
    assert predictions_of_padded(padded) == expected
    for batch in (shared, unshared, padded):
        assert batch.groups == tuple(indices)
        assert batch.group_sizes == tuple(len(c) for _, c in shapes)
        assert batch.num_completions == sum(len(c) for _, c in shapes)
    for batch, shares in ((shared, True), (unshared, False)):
        assert batch.num_tokens == sum(row_tokens(g, shares_prefix=shares) for g in groups)


@pytest.mark.parametrize("num_completions", range(1, 9))
def test_completions_of_one_token_are_predicted_by_the_last_prompt_token(
    make_group: Make, num_completions: int
):
    group = make_group(4, [1] * num_completions)

    batch = pack([group], [0])

    assert batch.input_ids.tolist() == [group.prompt.tolist()]
    assert batch.source.tolist() == [3] * num_completions
    assert batch.targets.tolist() == [int(c.ids[0]) for c in group.completions]
    assert batch.completion.tolist() == list(range(num_completions))


def test_the_check_sees_a_leak_from_another_completion(make_group: Make):
    """The control: one causal sequence over the row is what sharing must not be."""
    group = make_group(3, [3, 3])
    right = pack([group], [0])
    assert right.plan is not None
    one = Segment(0, right.num_tokens, 0, 0)
    leaking = Batch(
        right.input_ids,
        right.positions,
        None,
        SegmentPlan.of([one]),
        right.source,
        right.targets,
        right.completion,
        right.group_sizes,
        right.groups,
    )

    assert predictions_of_packed(right) == predictions_of_groups([group])
    assert predictions_of_packed(leaking) != predictions_of_groups([group])


def test_a_prompt_stands_once_whatever_the_number_of_its_completions(make_group: Make):
    group = make_group(5, [3, 4, 2])

    assert row_tokens(group, shares_prefix=True) == 5 + 2 + 3 + 1
    assert row_tokens(group, shares_prefix=False) == (5 + 2) + (5 + 3) + (5 + 1)
    assert pack([group], [0]).positions.tolist() == [[0, 1, 2, 3, 4, 5, 6, 5, 6, 7, 5]]


def test_a_row_of_mixed_kinds_keeps_its_order(make_group: Make):
    groups = [make_group(2, [2], seed=1), make_group(1, [1, 2], seed=2)]

    batch = pack(groups, [7, 3])

    assert batch.groups == (7, 3)
    assert batch.group_sizes == (1, 2)
    assert batch.completion.tolist() == [0, 0, 1, 2, 2]


def test_the_tensors_of_a_plan_say_what_its_segments_say(make_group: Make):
    plan = pack([make_group(3, [3, 1, 2]), make_group(2, [2, 1])], [0, 1]).plan

    assert plan is not None
    assert plan.segments == (
        Segment(0, 3, 0, 0), Segment(3, 2, 0, 3), Segment(5, 1, 0, 3),
        Segment(6, 2, 6, 0), Segment(8, 1, 6, 2),
    )  # fmt: skip
    assert plan.query_ends.tolist() == [0, 3, 5, 6, 8, 9]
    assert plan.key_ends.tolist() == [0, 3, 8, 12, 14, 17]
    assert plan.query_ends.dtype == plan.key_ends.dtype == torch.int32
    assert plan.key_index is not None
    assert plan.key_index.tolist() == [
        *(0, 1, 2), *(0, 1, 2, 3, 4), *(0, 1, 2, 5),
        *(6, 7), *(6, 7, 8),
    ]  # fmt: skip
    assert (plan.max_queries, plan.max_keys) == (3, 5)


def test_a_plan_without_prefixes_needs_no_other_order_of_keys(make_group: Make):
    plan = pack([make_group(3, [3, 1])], [0], shares_prefix=False).plan

    assert plan is not None
    assert plan.key_index is None
    assert torch.equal(plan.query_ends, plan.key_ends)


@pytest.mark.parametrize("shares_prefix", [True, False])
def test_a_row_is_filled_up_behind_what_is_predicted(make_group: Make, shares_prefix: bool):
    groups = [make_group(3, [3, 2]), make_group(2, [4])]

    plain = pack(groups, [0, 1], shares_prefix=shares_prefix)
    filled = pack(groups, [0, 1], shares_prefix=shares_prefix, multiple_of=16)

    assert plain.plan is not None
    assert filled.plan is not None
    size = plain.num_tokens
    assert filled.num_tokens == -(-size // 16) * 16 > size
    assert torch.equal(filled.input_ids[:, :size], plain.input_ids)
    assert torch.equal(filled.positions[:, :size], plain.positions)
    assert filled.plan.segments == (*plain.plan.segments, Segment(size, 16 - size % 16, size, 0))
    assert predictions_of_packed(filled) == predictions_of_packed(plain)
    assert filled.source.max() < size
    assert (plain.num_data_tokens, filled.num_data_tokens) == (size, size)
    exact = pack(groups, [0, 1], shares_prefix=shares_prefix, multiple_of=size)
    assert exact.plan is not None
    assert exact.plan.segments == plain.plan.segments


def test_one_completion_shares_nothing_and_is_one_segment(make_group: Make):
    groups = [make_group(3, [4]), make_group(2, [1]), make_group(2, [2, 3])]

    row = pack(groups, [0, 1, 2])

    assert row.plan is not None
    assert row.plan.segments[:2] == (Segment(0, 6, 0, 0), Segment(6, 2, 6, 0))
    assert [(s.start, s.length) for s in row.plan.segments[2:]] == [(8, 2), (10, 1), (11, 2)]
    assert predictions_of_packed(row) == predictions_of_packed(
        pack(groups, [0, 1, 2], shares_prefix=False)
    )


sizes = st.lists(st.integers(1, 50), max_size=40)


@given(sizes=sizes, budget=st.integers(1, 60))
def test_rows_hold_every_item_once_and_never_more_than_the_budget(sizes: list[int], budget: int):
    rows = rows_by_budget(sizes, budget)

    assert sorted(item for row in rows for item in row) == list(range(len(sizes)))
    for row in rows:
        assert row == sorted(row)
        assert sum(sizes[i] for i in row) <= budget or len(row) == 1


@given(sizes=sizes, budget=st.integers(1, 60))
def test_no_two_rows_would_fit_into_one(sizes: list[int], budget: int):
    rows = rows_by_budget(sizes, budget)

    totals = sorted(sum(sizes[i] for i in row) for row in rows)
    assert len(totals) < 2 or totals[0] + totals[1] > budget


def test_items_go_longest_first_into_the_fullest_row_that_has_room():
    # 7 opens row 0, 5 row 1; 4 fits row 1 only, 3 goes to row 0 and fills it, 2 opens row 2.
    assert rows_by_budget([3, 7, 2, 5, 4], 10) == [[0, 1], [3, 4], [2]]


def test_an_item_over_the_budget_has_a_row_of_its_own():
    assert rows_by_budget([3, 90, 4], 10) == [[1], [0, 2]]
    assert rows_by_budget([], 10) == []


def test_many_items_are_laid_out_at_once():
    """A data set of this size took minutes when every item looked at every row."""
    sizes = [200 + (i * 7919) % 1800 for i in range(50_000)]

    rows = rows_by_budget(sizes, 8192)

    assert sum(map(len, rows)) == 50_000
    assert sum(sizes) / (8192 * len(rows)) > 0.97
