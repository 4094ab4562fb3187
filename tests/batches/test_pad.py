"""Padded rows: one sequence each, filled on the right."""

from collections.abc import Callable

from veritune.batches.pad import pad
from veritune.tokens.encode import TokenizedRecord

Make = Callable[..., TokenizedRecord]


def test_a_row_is_the_prompt_and_the_completion_without_its_last_token(make_group: Make):
    group = make_group(2, [3, 1])
    long, short = group.completions

    batch = pad([group], [4], pad_id=9)

    prompt = group.prompt.tolist()
    assert batch.input_ids.tolist() == [
        [*prompt, *long.ids[:-1].tolist()],
        [*prompt, 9, 9],
    ]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert batch.positions.tolist() == [[0, 1, 2, 3]] * 2
    assert batch.source.tolist() == [1, 2, 3, 5]
    assert batch.targets.tolist() == [*long.ids.tolist(), *short.ids.tolist()]
    assert batch.plan is None


def test_what_fills_a_row_never_predicts(make_group: Make):
    groups = [make_group(p, [c, 1], seed=p) for p in range(1, 5) for c in range(1, 5)]

    batch = pad(groups, range(len(groups)))

    assert batch.attention_mask is not None
    assert batch.attention_mask.flatten()[batch.source].all()
