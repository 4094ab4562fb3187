from typing import Any

import pytest
from tiny_world import random_dataset

from veritune.batches.pack import row_tokens
from veritune.errors import SettingsError
from veritune.models.adapters import AdapterConfig
from veritune.models.rehearsal import GroupShape, Skeleton
from veritune.models.tiny import tiny_model
from veritune.training.memory_plan import (
    Lengths,
    MemoryPlan,
    Planner,
    RowSettings,
    changes,
    group_tokens,
    lengths_of,
    refuse_too_large,
    ways_to_fit,
)

LARGEST, LONGEST = 4096, 200
CONFIG = tiny_model("qwen2", vocab_size=300, hidden_size=64, num_layers=4).config
SKELETON = Skeleton(CONFIG)
LENGTHS = Lengths(LONGEST, GroupShape(100, (51, 51)), step=10_000, total=50_000)


def planner(**changes: Any) -> Planner:
    arguments: dict[str, Any] = {
        "skeleton": SKELETON,
        "lengths": LENGTHS,
        "precision": "fp32",
        "sharing": "shared",
        "largest_row": LARGEST,
    }
    return Planner(**{**arguments, **changes})


def plan(tokens: int, every: int | None = None) -> MemoryPlan:
    return planner().plan(RowSettings(tokens, every))


def chosen(limit: int, **changes: Any) -> MemoryPlan:
    return planner().choose(limit, **{"tokens_per_row": None, "checkpointing": "auto", **changes})


@pytest.mark.parametrize("kind", ["paired", "scored", "unpaired"])
@pytest.mark.parametrize("sharing", ["shared", "packed"])
def test_sizes_of_groups_are_those_that_packing_counts(kind: str, sharing: Any) -> None:
    dataset = random_dataset(kind, 20)
    expected = [
        row_tokens(dataset[index], shares_prefix=sharing == "shared") for index in range(20)
    ]
    sizes = group_tokens(dataset, sharing)
    assert sizes.tolist() == expected
    largest = dataset[int(sizes.argmax())]
    found = lengths_of(sizes, largest, share=3)
    assert found.longest == max(expected)
    assert found.shape.prompt == len(largest.prompt)
    assert found.step == sum(sorted(expected)[-3:])
    assert found.total == sum(expected)


def test_the_parts_of_a_full_run_are_sixteen_bytes_a_parameter_and_its_row() -> None:
    found = plan(LARGEST)
    count = SKELETON.num_trained
    assert found.gradients == 4 * count
    assert found.optimizer == 8 * count
    assert 4 * count <= found.weights < 4 * count + 1000
    row = found.activations + found.working
    assert found.total == found.weights + 12 * count + row
    assert found.row_tokens == pytest.approx(LARGEST, abs=4)
    assert sum(found.parts().values()) == found.total + found.scoring


def test_scoring_counts_where_it_takes_more_than_training() -> None:
    other = 10**12
    found = planner(reference_bytes=other).plan(RowSettings(LARGEST))
    assert found.total == found.weights + found.scoring
    assert found.scoring == plan(LARGEST).scoring + other
    assert planner(scoring_budget=0).plan(RowSettings(LARGEST)).scoring == 0


def test_everything_that_fits_is_left_as_fast_as_it_is() -> None:
    assert chosen(plan(LARGEST).total).rows == RowSettings(LARGEST, None)
    small = Lengths(LONGEST, LENGTHS.shape, step=900, total=5000)
    # A step never has more tokens than its records.
    rows = planner(lengths=small).choose(10**12, tokens_per_row=None, checkpointing="auto").rows
    assert rows == RowSettings(900, None)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_largest_rows_that_fit_are_chosen(share: float) -> None:
    low, high = plan(LONGEST).total, plan(LARGEST).total
    limit = int(low + share * (high - low))
    found = chosen(limit)
    assert found.rows.checkpoint_every is None
    assert found.total <= limit
    assert plan(found.rows.tokens_per_row + 256).total > limit


def test_activations_are_computed_again_where_the_longest_group_does_not_fit_otherwise() -> None:
    limits = {every: plan(LONGEST, every).total for every in (None, 4, 2, 1)}
    assert limits[None] > limits[4] > limits[2] > limits[1]
    for every, limit in limits.items():
        assert chosen(limit).rows.checkpoint_every == every
    found = chosen(limits[1] + 100_000)
    assert found.rows.tokens_per_row >= LONGEST


def test_what_is_given_is_not_chosen() -> None:
    tight = plan(LONGEST, 1).total
    assert chosen(tight, checkpointing=False).rows.checkpoint_every is None
    assert chosen(10**12, checkpointing=True).rows.checkpoint_every == 1
    assert chosen(10**12, tokens_per_row=77).rows == RowSettings(77, None)
    assert chosen(10**12, tokens_per_row=50_000).rows.tokens_per_row == 50_000


def test_where_nothing_fits_the_smallest_plan_is_given() -> None:
    assert chosen(1) == plan(LONGEST, 1)
    assert chosen(plan(LONGEST, 1).total - 1).total == plan(LONGEST, 1).total


def test_changes_are_named_in_the_order_of_their_cost_until_one_fits() -> None:
    full = plan(LARGEST)
    every = list(changes(planner(), full, 0, CONFIG, has_bf16=True))
    assert [words for words, _ in every] == [
        f"train.tokens_per_row={LONGEST}",
        "train.gradient_checkpointing=true",
        "train.precision=bf16",
        "adapter={}",
        "tokens.max_length=75",
    ]
    totals = [full.total, *(lower.total for _, lower in every)]
    assert totals == sorted(totals, reverse=True)
    # Adapters leave the weights alone: their gradients and the optimizer's state are gone.
    assert every[3][1].gradients < full.gradients / 2
    some = list(changes(planner(), full, totals[2], CONFIG, has_bf16=True))
    assert [words for words, _ in some] == [words for words, _ in every[:2]]
    assert "train.precision=bf16" not in dict(changes(planner(), full, 0, CONFIG, has_bf16=False))


def test_adapters_are_not_proposed_to_a_run_that_trains_them() -> None:
    adapted = planner(skeleton=Skeleton(CONFIG, adapter=AdapterConfig(rank=1)))
    found = adapted.plan(RowSettings(LARGEST))
    assert "adapter={}" not in dict(changes(adapted, found, 0, CONFIG, has_bf16=False))


def test_a_smaller_model_is_what_is_left_where_the_changes_are_not_enough_or_none() -> None:
    full = plan(LARGEST)
    every = list(changes(planner(), full, 0, CONFIG, has_bf16=True))
    some = ways_to_fit(planner(), full, every[1][1].total, CONFIG, has_bf16=True)
    assert [way.split(" (")[0] for way in some] == [words for words, _ in every[:2]]
    assert ways_to_fit(planner(), full, 0, CONFIG, has_bf16=True)[-1] == "a smaller model"
    # Everything that could be changed has been.
    smallest = planner(
        skeleton=Skeleton(CONFIG, adapter=AdapterConfig(rank=1)),
        lengths=Lengths(40, GroupShape(20, (11, 11)), step=400, total=4000),
    )
    found = smallest.plan(RowSettings(40, 1))
    assert ways_to_fit(smallest, found, 0, CONFIG, has_bf16=False) == ["a smaller model"]


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    full = plan(LARGEST)
    refuse_too_large(planner(), full, full.total, CONFIG, has_bf16=False)
    with pytest.raises(SettingsError) as caught:
        refuse_too_large(planner(), full, full.total - 1, CONFIG, has_bf16=False)
    message = str(caught.value)
    assert "train.memory: the run does not fit into memory" in message
    assert f"train.tokens_per_row={LONGEST} (" in message
    assert "a smaller model" not in message
    with pytest.raises(SettingsError, match="a smaller model; train"):
        refuse_too_large(planner(), full, 1, CONFIG, has_bf16=False)
