"""Mismatched groups stay within the length of the data set, and messages name the setting."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_world import ONE_ROW, objective_named

from veritune.errors import DataError
from veritune.models.cache import ReferenceCache
from veritune.models.forward import CausalModel
from veritune.models.reference import ReferenceLogProbs, score_reference
from veritune.models.tiny import byte_level_tokenizer, tiny_model
from veritune.records.kinds import Origin, TokenIds, Unpaired
from veritune.tokens.dataset import TokenizedDataset, tokenize
from veritune.tokens.encode import TextEncoder
from veritune.training.loop import TrainingConfig
from veritune.training.objective_pass import ObjectivePass, mismatched_group
from veritune.training.plan import groups_to_score, plan_run, whole_set

LIMIT = 64
BOS = 7
CONFIG = TrainingConfig(steps=1, batch_size=2)


def labels(
    *shapes: tuple[int, int], bos: int | None = None, limit: int = LIMIT
) -> TokenizedDataset:
    """Records with so many tokens of prompt and of completion; prompts count up from `BOS`."""
    tokenizer = byte_level_tokenizer()
    if bos is not None:
        tokenizer.bos_token = tokenizer.convert_ids_to_tokens(bos)
    made = [
        Unpaired(
            TokenIds((BOS, *range(10 + number, 9 + number + num_prompt))),
            TokenIds((200 + number,) * num_completion),
            number % 2 == 0,
            Origin("a.jsonl", number + 1),
        )
        for number, (num_prompt, num_completion) in enumerate(shapes)
    ]
    return tokenize(made, TextEncoder(tokenizer), max_length=limit)


def test_a_mismatched_prompt_loses_its_beginning_where_both_would_be_too_long() -> None:
    dataset = labels((50, 3), (4, 50))

    group = mismatched_group(dataset, 0, 1)

    # Room for 64 - 50 = 14 tokens of 7, 10, 11, ... 58.
    assert group.prompt.tolist() == list(range(45, 59))
    assert [c.ids.tolist() for c in group.completions] == [[201] * 50]
    assert mismatched_group(dataset, 1, 0).prompt.tolist() == [BOS, 11, 12, 13]


def test_a_mismatched_prompt_keeps_its_beginning_token() -> None:
    group = mismatched_group(labels((50, 3), (4, 50), bos=BOS), 0, 1)

    assert group.prompt.tolist() == [BOS, *range(46, 59)]


def test_a_mismatched_prompt_keeps_a_token_beside_the_longest_completion() -> None:
    group = mismatched_group(labels((50, 3), (1, 63), bos=BOS), 0, 1)

    assert group.prompt.tolist() == [58]


def test_kto_trains_a_model_of_learned_positions_on_records_as_long_as_it_reads(
    tmp_path: Path,
) -> None:
    dataset = labels((50, 3), (4, 50))
    objective = objective_named("kto", dataset)
    model = CausalModel(tiny_model("gpt2", vocab_size=259, hidden_size=16, max_positions=LIMIT))
    batch = plan_run(CONFIG, dataset, objective).first_batch
    cache = ReferenceCache(tmp_path, {"made": "for a test"})
    groups = groups_to_score([(dataset, [batch])])
    score_reference(model, cache, groups, tokens_per_row=ONE_ROW, seed=0)

    result = ObjectivePass(model, objective, dataset, ReferenceLogProbs(cache), ONE_ROW).run(batch)

    assert result.largest_log_ratio <= 1


def test_every_group_that_a_run_meets_is_scored_once_mismatched_and_held_out_ones_too() -> None:
    dataset, held_out = labels((5, 3), (4, 2), (6, 4), (3, 2)), labels((7, 2), (8, 3))
    objective = objective_named("kto", dataset)
    plan = plan_run(TrainingConfig(epochs=3, batch_size=2), dataset, objective)
    evaluated = whole_set(CONFIG, held_out, objective)

    groups = groups_to_score([(dataset, plan.batches()), (held_out, [evaluated])])

    expected = {data[index].key() for data in (dataset, held_out) for index in range(len(data))}
    for data, batches in ((dataset, plan.batches()), (held_out, iter([evaluated]))):
        for batch in batches:
            for index, partner in zip(batch.indices, batch.mismatched, strict=True):
                assert partner is not None
                expected.add(mismatched_group(data, index, partner).key())
    found = [group.key() for group in groups]
    assert set(found) == expected
    assert len(found) == len(expected) > 6 + 4


def test_records_that_a_run_does_not_reach_are_not_scored() -> None:
    dataset = labels((5, 3), (4, 2), (6, 4), (3, 2))
    plan = plan_run(CONFIG, dataset, objective_named("bco", dataset))

    groups = groups_to_score([(dataset, plan.batches())])

    assert [g.key() for g in groups] == [dataset[i].key() for i in sorted(plan.first_batch.indices)]


@pytest.mark.parametrize(("plan", "setting"), [(plan_run, "data"), (whole_set, "evaluation")])
def test_a_single_prompt_where_others_are_needed_is_blamed_on_its_setting(
    plan: Callable[..., object], setting: str
) -> None:
    dataset = labels((5, 3))

    with pytest.raises(DataError, match="at least two different prompts") as caught:
        plan(CONFIG, dataset, objective_named("kto", dataset))

    assert caught.value.where == setting


def test_partners_of_a_run_stand_under_other_prompts() -> None:
    tokenizer = byte_level_tokenizer()
    prompts = ["a", "b", "a", "a", "ab", "a"]
    made = [
        Unpaired(prompt, "text", number % 2 == 0, Origin("a.jsonl", number + 1))
        for number, prompt in enumerate(prompts)
    ]
    dataset = tokenize(made, TextEncoder(tokenizer), max_length=LIMIT)

    plan = plan_run(TrainingConfig(steps=3, batch_size=4), dataset, objective_named("kto", dataset))

    partners = [
        (prompts[index], prompts[partner])
        for batch, _ in plan.loader.batches()
        for index, partner in zip(batch.indices, batch.mismatched, strict=True)
        if partner is not None
    ]
    assert len(partners) == 12
    assert all(own != other for own, other in partners)
