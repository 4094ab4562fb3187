"""The frozen reference: scored once, by the training path, and checked when it is read again."""

from collections.abc import Callable
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
from veritune.tokens.encode import TokenizedCompletion, TokenizedRecord

Groups = list[TokenizedRecord]
Make = Callable[..., Any]
SOURCE = ModelSource("policy", Path("here"), "weights-1")


def scored(
    model: CausalModel, groups: Groups, root: Path, *, tokens_per_row: int = 64, **arguments: Any
) -> tuple[ReferenceLogProbs, int]:
    cache = ReferenceCache(root, cache_identity(SOURCE, model))
    count = score_reference(
        model, cache, groups, tokens_per_row=tokens_per_row, seed=0, **arguments
    )
    return ReferenceLogProbs(cache), count


def live(model: CausalModel, groups: Groups) -> torch.Tensor:
    with torch.no_grad():
        return model.completion_logprobs(model.batch(groups, range(len(groups))))[0]


def sums_of(reference: ReferenceLogProbs, groups: Groups) -> torch.Tensor:
    return torch.cat([reference.sums(group) for group in groups])


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
    """One row that holds all: then the path is the same to the last bit."""
    model = CausalModel(make_model("llama"))

    reference, _ = scored(model, groups, tmp_path, tokens_per_row=1000)
    again, _ = scored(model, groups, tmp_path / "again", tokens_per_row=1000)

    assert torch.equal(sums_of(reference, groups), live(model, groups))
    assert torch.equal(sums_of(again, groups), sums_of(reference, groups))
    assert reference.sums(groups[0]).dtype == torch.float64


def test_no_gradient_reaches_the_reference(make_model: Make, groups: Groups, tmp_path: Path):
    reference, _ = scored(CausalModel(make_model("llama")), groups, tmp_path)

    assert not reference.sums(groups[0]).requires_grad


def test_groups_that_are_there_already_are_not_scored_again(
    make_model: Make, make_groups: Make, groups: Groups, tmp_path: Path
):
    model = CausalModel(make_model("llama"))
    more = make_groups([(4, (3,)), (5, (2, 2))], seed=9)
    scored(model, groups, tmp_path)

    _, again = scored(model, groups, tmp_path)
    reference, added = scored(model, [*more, *groups], tmp_path)

    assert (again, added) == (0, 2)
    torch.testing.assert_close(sums_of(reference, more), live(model, more), rtol=0, atol=2e-5)


def test_a_group_that_comes_twice_is_scored_once(make_model: Make, groups: Groups, tmp_path: Path):
    _, count = scored(CausalModel(make_model("llama")), [*groups, *groups], tmp_path)

    assert count == len(groups)


def test_a_group_that_was_never_scored_is_refused(make_model: Make, groups: Groups, tmp_path: Path):
    reference, _ = scored(CausalModel(make_model("llama")), groups[1:], tmp_path)

    with pytest.raises(ReferenceCacheError, match="missing"):
        reference.sums(groups[0])


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

    reference, _ = scored(model, groups, tmp_path, tokens_per_row=1000)
    hf_model.eval()

    assert torch.equal(sums_of(reference, groups), live(model, groups))
    hf_model.train()
    assert not torch.equal(sums_of(reference, groups), live(model, groups))


def test_long_work_is_kept_piece_by_piece(
    make_model: Make, make_groups: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What was scored before a run was stopped need not be scored again."""
    monkeypatch.setattr("veritune.models.reference._ROWS_PER_FILE", 2)
    groups = make_groups([(6, (3,))] * 10)
    model = CausalModel(make_model("llama"))
    seen: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scored(model, groups, tmp_path, tokens_per_row=8, progress=stop)
    _, count = scored(model, groups, tmp_path, tokens_per_row=8)

    assert seen == [(n, 10) for n in range(1, 7)]
    assert count == 6, "the first four lay in two whole files"
    kept = [len(load_file(file)["keys"]) for file in tmp_path.rglob("values-*.safetensors")]
    assert sorted(kept) == [2] * 5, "every group lies in one file"


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
    assert reference.sums(masked).item() == pytest.approx(expected, abs=1e-5)


def test_what_the_reference_is_can_be_said():
    base = ModelSource("base", Path("b"), "1")
    same = ModelSource("copy", Path("c"), "1")
    adapter = ModelSource("adapter", Path("a"), "1+2", base)

    assert describe_reference(base, None) == "the starting model (base)"
    assert describe_reference(base, same) == "copy (the same weights as the starting model)"
    assert describe_reference(base, ModelSource("m", Path("m"), "3")) == "the model m"
    assert describe_reference(base, adapter) == "the adapter adapter"
