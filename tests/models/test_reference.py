"""The frozen reference: scored once, by the training path, and checked when it is read again."""

import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from veritune.errors import ReferenceCacheError
from veritune.models.cache import ReferenceCache
from veritune.models.forward import CausalModel
from veritune.models.load import ModelSource
from veritune.models.reference import (
    ReferenceLogProbs,
    cache_identity,
    describe_reference,
    noise_tolerance,
    score_reference,
)
from veritune.tokens.dataset import View
from veritune.tokens.encode import TokenizedCompletion, TokenizedRecord

Groups = list[TokenizedRecord]
Make = Callable[..., Any]
SOURCE = ModelSource("policy", Path("here"), "weights-1")


def scored(
    model: CausalModel, groups: Groups, root: Path, *, tokens_per_row: int = 64, **arguments: Any
) -> tuple[ReferenceLogProbs, int]:
    cache = ReferenceCache(root, cache_identity(SOURCE, model))
    counts = score_reference(
        model, cache, groups, tokens_per_row=tokens_per_row, seed=0, **arguments
    )
    return ReferenceLogProbs(cache), counts.num_scored


def live(model: CausalModel, groups: Groups) -> torch.Tensor:
    with torch.no_grad():
        return model.completion_logprobs(model.batch(groups, range(len(groups))))[0]


def sums_of(reference: ReferenceLogProbs, groups: Groups) -> torch.Tensor:
    return reference.sums(groups)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt-oss"])
@pytest.mark.parametrize("sharing", ["shared", "packed", "padded"])
def test_cached_sums_are_those_of_the_model(
    make_model: Make, groups: Groups, tmp_path: Path, family: str, sharing: Any
):
    model = CausalModel(make_model(family), sharing=sharing)

    reference, count = scored(model, groups, tmp_path)

    assert count == len(groups)
    torch.testing.assert_close(sums_of(reference, groups), live(model, groups), rtol=0, atol=2e-5)


def test_cached_sums_are_those_of_the_same_row_bit_for_bit(
    make_model: Make, groups: Groups, tmp_path: Path
):
    """One row that holds all, the longest first: then the path is the same to the last bit."""
    model = CausalModel(make_model("llama"))
    groups = sorted(groups, key=lambda group: group.longest, reverse=True)

    reference, _ = scored(model, groups, tmp_path, tokens_per_row=1000)
    again, _ = scored(model, groups, tmp_path / "again", tokens_per_row=1000)

    assert torch.equal(sums_of(reference, groups), live(model, groups))
    assert torch.equal(sums_of(again, groups), sums_of(reference, groups))
    assert reference.sums(groups[:1]).dtype == torch.float64


def test_no_gradient_reaches_the_reference(make_model: Make, groups: Groups, tmp_path: Path):
    reference, _ = scored(CausalModel(make_model("llama")), groups, tmp_path)

    assert not reference.sums(groups[:1]).requires_grad


def test_groups_that_are_there_already_are_not_scored_again(
    make_model: Make, make_groups: Make, groups: Groups, tmp_path: Path
):
    model = CausalModel(make_model("llama"))
    more = make_groups([(4, (3,)), (5, (2, 2))], seed=9)
    seen: list[tuple[int, int]] = []
    scored(model, groups, tmp_path)

    _, again = scored(model, groups, tmp_path, progress=lambda *count: seen.append(count))
    assert seen == []
    reference, added = scored(
        model, [*more, *groups], tmp_path, progress=lambda *count: seen.append(count)
    )

    assert (again, added) == (0, 2)
    assert seen == [(4 + 2 + 5 + 1 + 1, 4 + 2 + 5 + 1 + 1)], "tokens of a row"
    torch.testing.assert_close(sums_of(reference, more), live(model, more), rtol=0, atol=2e-5)


def test_a_group_that_comes_twice_is_scored_once(make_model: Make, groups: Groups, tmp_path: Path):
    _, count = scored(CausalModel(make_model("llama")), [*groups, *groups], tmp_path)

    assert count == len(groups)


def test_a_group_that_was_never_scored_is_refused(make_model: Make, groups: Groups, tmp_path: Path):
    reference, _ = scored(CausalModel(make_model("llama")), groups[1:], tmp_path)

    with pytest.raises(ReferenceCacheError, match="missing"):
        reference.sums(groups[:1])


def test_other_weights_precision_temperature_or_layout_is_another_cache(
    make_model: Make, groups: Groups, tmp_path: Path
):
    hf_model = make_model("llama")
    models = [
        CausalModel(hf_model),
        CausalModel(hf_model, precision="bf16"),
        CausalModel(hf_model, temperature=0.7),
        CausalModel(hf_model, sharing="packed"),
    ]
    identities = [cache_identity(SOURCE, model) for model in models]
    identities.append(cache_identity(ModelSource("policy", Path("here"), "weights-2"), models[0]))

    folders = {ReferenceCache(tmp_path, identity).folder for identity in identities}

    assert len(folders) == 5
    renamed = cache_identity(ModelSource("other name", Path("there"), "weights-1"), models[0])
    assert ReferenceCache(tmp_path, renamed).folder in folders


def test_a_cache_of_other_values_is_found_out(make_model: Make, groups: Groups, tmp_path: Path):
    """Well-formed and complete, but not what this model gives: another model wrote it."""
    model = CausalModel(make_model("llama"))
    identity = cache_identity(SOURCE, model)
    scored(CausalModel(make_model("llama", seed=1)), groups, tmp_path)
    assert ReferenceCache(tmp_path, identity).folder.is_dir(), "it is taken for this model's"

    with pytest.raises(ReferenceCacheError, match="not what the reference gives now") as caught:
        scored(model, groups, tmp_path)

    assert "nats" in str(caught.value)
    assert "a.jsonl" in str(caught.value)


@pytest.mark.parametrize(("shift", "is_caught"), [(0.01, True), (1e-6, False)])
def test_a_small_change_of_a_cached_value_is_found_out_above_the_noise(
    make_model: Make, groups: Groups, tmp_path: Path, shift: float, is_caught: bool
):
    model = CausalModel(make_model("llama"))
    reference, _ = scored(model, groups[:3], tmp_path)
    changed = {}
    for group in groups[:3]:
        count = sum(int(c.bears_loss.sum()) for c in group.completions)
        values = np.array(reference.cache.get(group.key(), count))
        values[0] += shift
        changed[group.key()] = values
    # The public way to write, so the checksum is right.
    ReferenceCache(tmp_path, cache_identity(SOURCE, model)).add(changed)

    if is_caught:
        with pytest.raises(ReferenceCacheError, match="not what the reference gives now"):
            scored(model, groups[:3], tmp_path)
    else:
        scored(model, groups[:3], tmp_path)


def test_a_damaged_file_is_scored_again(make_model: Make, groups: Groups, tmp_path: Path):
    model = CausalModel(make_model("llama"))
    before, _ = scored(model, groups, tmp_path)
    (file,) = tmp_path.rglob("values-*.safetensors")
    file.write_bytes(file.read_bytes()[:-5])

    with pytest.warns(UserWarning, match="damaged"):
        after, count = scored(model, groups, tmp_path)

    assert count == len(groups)
    assert torch.equal(sums_of(after, groups), sums_of(before, groups))


def test_a_reference_that_gives_no_numbers_is_refused(
    make_model: Make, groups: Groups, tmp_path: Path
):
    hf_model = make_model("llama")
    with torch.no_grad():
        hf_model.model.norm.weight[0] = float("nan")

    with pytest.raises(ReferenceCacheError, match="not finite"):
        scored(CausalModel(hf_model), groups, tmp_path)


def test_scoring_leaves_dropout_out(make_model: Make, groups: Groups, tmp_path: Path):
    hf_model = make_model("gpt2")
    for module in hf_model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    hf_model.train()
    model = CausalModel(hf_model)

    groups = sorted(groups, key=lambda group: group.longest, reverse=True)
    reference, _ = scored(model, groups, tmp_path, tokens_per_row=1000)
    hf_model.eval()

    assert torch.equal(sums_of(reference, groups), live(model, groups))
    hf_model.train()
    assert not torch.equal(sums_of(reference, groups), live(model, groups))


def test_long_work_is_kept_piece_by_piece(
    make_model: Make, make_groups: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What was scored before a run was stopped need not be scored again."""
    # Two rows of three values of four bytes.
    monkeypatch.setattr("veritune.models.reference._FILE_BYTES", 24)
    groups = make_groups([(6, (3,))] * 10)
    model = CausalModel(make_model("llama"))
    seen: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done >= 6 * 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scored(model, groups, tmp_path, tokens_per_row=8, progress=stop)
    _, count = scored(model, groups, tmp_path, tokens_per_row=8)

    assert seen == [(8 * n, 8 * 10) for n in range(1, 7)]
    assert count == 4, "the first four lay in two whole files"
    kept = [len(load_file(file)["keys"]) for file in tmp_path.rglob("values-*.safetensors")]
    assert sorted(kept) == [2] * 5, "every group lies in one file"


def test_slow_work_is_kept_before_a_file_is_full(
    make_model: Make, make_groups: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("veritune.models.reference._FILE_SECONDS", 0.0)

    scored(
        CausalModel(make_model("llama")), make_groups([(6, (3,))] * 3), tmp_path, tokens_per_row=8
    )

    assert len(list(tmp_path.rglob("values-*.safetensors"))) == 3


def test_what_is_scored_behind_a_stop_is_what_it_would_have_been_bit_for_bit(
    make_model: Make, make_groups: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Rows are cut from one order, so those that are left are the same rows."""
    monkeypatch.setattr("veritune.models.reference._FILE_SECONDS", 0.0)
    groups = make_groups([(3 + n % 5, (2 + n % 4, 3)) for n in range(20)])
    model = CausalModel(make_model("llama"))
    whole, _ = scored(model, groups, tmp_path / "whole", tokens_per_row=30)

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scored(model, groups, tmp_path / "broken", tokens_per_row=30, progress=stop)
    broken, count = scored(model, groups, tmp_path / "broken", tokens_per_row=30)

    assert 0 < count < 20
    assert torch.equal(sums_of(broken, groups), sums_of(whole, groups))


@pytest.mark.parametrize("sharing", ["shared", "packed", "padded"])
def test_the_value_of_a_group_does_not_depend_on_its_row(
    make_model: Make, make_groups: Make, tmp_path: Path, sharing: Any
):
    groups = make_groups([(2 + n % 7, (1 + n % 5, 4)) for n in range(12)], seed=3)
    model = CausalModel(make_model("qwen3"), sharing=sharing)

    alone, _ = scored(model, groups, tmp_path / "alone", tokens_per_row=1)
    some, _ = scored(model, groups[::-1], tmp_path / "some", tokens_per_row=50)
    all_in_one, _ = scored(model, groups, tmp_path / "one", tokens_per_row=10_000)

    tolerance = noise_tolerance(model, 5)
    for other in (some, all_in_one):
        error = (sums_of(other, groups) - sums_of(alone, groups)).abs().max().item()
        assert error < 0.1 * tolerance
    # Control: another group has another value.
    assert (sums_of(alone, groups[1:]) - sums_of(alone, groups[:-1])).abs().min() > tolerance


@pytest.mark.parametrize("sharing", ["shared", "packed", "padded"])
def test_cached_values_are_those_of_the_path_that_trains(
    make_model: Make, groups: Groups, tmp_path: Path, sharing: Any
):
    """With gradients, in training mode, in rows of another composition."""
    model = CausalModel(make_model("llama"), sharing=sharing)
    reference, _ = scored(model, groups, tmp_path, tokens_per_row=20)
    model.hf.train()

    sums, lengths, _ = model.completion_logprobs(model.batch(groups, range(len(groups))))

    assert sums.requires_grad
    error = (sums.detach() - reference.sums(groups)).abs()
    assert (error <= 0.1 * noise_tolerance(model, 1) * lengths.sqrt()).all()


class RowsOf(CausalModel):
    """A model that remembers the groups of its rows and their tokens, padding included."""

    rows: list[list[TokenizedRecord]]
    row_sizes: list[int]
    most_tokens = 10**9

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.rows, self.row_sizes = [], []

    def batch(self, groups: Sequence[TokenizedRecord], indices: Sequence[int]) -> Any:
        batch = super().batch(groups, indices)
        if batch.num_tokens <= self.most_tokens:
            self.rows.append(list(groups))
            self.row_sizes.append(batch.num_tokens)
        return batch

    def token_logprobs(self, batch: Any) -> Any:
        if batch.num_tokens > self.most_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().token_logprobs(batch)


@pytest.mark.parametrize("sharing", ["shared", "packed", "padded"])
def test_rows_hold_groups_of_one_length_the_longest_first(
    make_model: Make, make_groups: Make, tmp_path: Path, sharing: Any
):
    shapes = [(2 + 5 * n % 23, (1 + n % 9, 1 + 2 * n % 11)) for n in range(40)]
    model = RowsOf(make_model("llama"), sharing=sharing)

    scored(model, make_groups(shapes), tmp_path, tokens_per_row=120)

    lengths = [group.longest for row in model.rows for group in row]
    assert lengths == sorted(lengths, reverse=True)
    assert len(lengths) == 40
    assert len(model.rows) > 3
    assert max(model.row_sizes) <= 120
    # All but the last are full: another group would not have fitted.
    assert min(model.row_sizes[:-1]) > 120 - 2 * max(lengths)


def test_a_group_that_is_longer_than_the_budget_gets_a_row_of_its_own(
    make_model: Make, make_groups: Make, tmp_path: Path
):
    model = RowsOf(make_model("llama"))

    scored(model, make_groups([(40, (9,)), (3, (3,)), (3, (2,))]), tmp_path, tokens_per_row=20)

    assert [len(row) for row in model.rows] == [1, 2]


@pytest.mark.parametrize("sharing", ["shared", "padded"])
def test_rows_become_smaller_where_memory_is_too_small(
    make_model: Make, make_groups: Make, tmp_path: Path, sharing: Any
):
    groups = make_groups([(4, (3, 2))] * 3 + [(5, (2, 2))] * 9, seed=2)
    model = RowsOf(make_model("llama"), sharing=sharing)
    plain, _ = scored(model, groups, tmp_path / "plain", tokens_per_row=1000)
    model.rows, model.most_tokens = [], 30

    small, count = scored(model, groups, tmp_path / "small", tokens_per_row=1000)

    assert count == 12
    assert 3 <= len(model.rows) <= 8
    torch.testing.assert_close(sums_of(small, groups), sums_of(plain, groups), rtol=0, atol=2e-5)
    model.most_tokens = 5
    with pytest.raises(torch.OutOfMemoryError):
        scored(model, groups, tmp_path / "none", tokens_per_row=1000)


def test_no_more_groups_exist_at_a_time_than_two_rows_hold(
    make_model: Make, make_groups: Make, tmp_path: Path
):
    """A run over a million records holds none of them but those at work."""
    made = make_groups([(4 + n % 3, (3,)) for n in range(60)])
    alive: set[int] = set()
    most = 0

    def group(number: int) -> TokenizedRecord:
        nonlocal most
        fresh = TokenizedRecord(made[number].prompt, made[number].completions, made[number].origin)
        alive.add(id(fresh))
        weakref.finalize(fresh, alive.discard, id(fresh))
        most = max(most, len(alive))
        return fresh

    lazy: Any = View(len(made), group)
    reference, count = scored(CausalModel(make_model("llama")), lazy, tmp_path, tokens_per_row=40)
    scored(CausalModel(make_model("llama")), lazy, tmp_path, tokens_per_row=40)

    assert count == 60
    assert most <= 2 * 6
    assert len(sums_of(reference, made)) == 60


def test_sums_of_many_groups_are_those_of_each(make_model: Make, groups: Groups, tmp_path: Path):
    reference, _ = scored(CausalModel(make_model("llama")), groups, tmp_path)

    each = [reference.sums([group]) for group in groups]

    assert torch.equal(reference.sums(groups), torch.cat(each))
    assert reference.sums([]).shape == (0,)


def test_common_sums_stop_where_the_shorter_completion_of_a_pair_does(
    make_model: Make, make_groups: Make, tmp_path: Path
):
    pairs = make_groups([(4, (3, 5)), (2, (4, 1)), (3, (2, 2))])
    reference, _ = scored(CausalModel(make_model("llama")), pairs, tmp_path)
    expected = []
    for pair, common in zip(pairs, (3, 1, 2), strict=True):
        first = len(pair.completions[0].ids)
        tokens = reference.cache.get(pair.key(), first + len(pair.completions[1].ids))
        sides = tokens[:first], tokens[first:]
        expected += [float(side[:common].astype(np.float64).sum()) for side in sides]

    assert reference.common_sums(pairs).tolist() == pytest.approx(expected, abs=1e-12)
    assert reference.common_sums(pairs)[3] != reference.sums(pairs)[2]


def test_the_tolerance_grows_with_the_root_of_the_length_and_is_wider_in_bf16(make_model: Make):
    hf_model = make_model("llama")
    wide, narrow = CausalModel(hf_model), CausalModel(hf_model, precision="bf16")

    assert noise_tolerance(wide, 400) == pytest.approx(20 * noise_tolerance(wide, 1))
    assert noise_tolerance(wide, 0) == noise_tolerance(wide, 1)
    assert noise_tolerance(narrow, 100) > 100 * noise_tolerance(wide, 100)


def test_tokens_without_loss_are_no_part_of_the_cached_sums(
    make_model: Make, make_groups: Make, tmp_path: Path
):
    (full,) = make_groups([(4, (6,))])
    mask = np.array([True, False, True, False, False, True])
    masked = TokenizedRecord(
        full.prompt, (TokenizedCompletion(full.completions[0].ids, mask),), full.origin
    )
    model = CausalModel(make_model("llama"))

    reference, count = scored(model, [full, masked], tmp_path, tokens_per_row=1000)

    assert count == 2
    tokens = reference.cache.get(full.key(), 6)
    expected = float(tokens[mask].astype(np.float64).sum())
    assert reference.sums([masked]).item() == pytest.approx(expected, abs=1e-5)


def test_what_the_reference_is_can_be_said():
    base = ModelSource("base", Path("b"), "1")
    same = ModelSource("copy", Path("c"), "1")
    adapter = ModelSource("adapter", Path("a"), "1+2", base)

    assert describe_reference(base, None) == "the starting model (base)"
    assert describe_reference(base, same) == "copy (the same weights as the starting model)"
    assert describe_reference(base, ModelSource("m", Path("m"), "3")) == "the model m"
    assert describe_reference(base, adapter) == "the adapter adapter"
