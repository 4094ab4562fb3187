"""What a skeleton says a row takes, against what it takes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from veritune.models.adapters import AdapterConfig, attach_adapter
from veritune.models.forward import CausalModel
from veritune.models.load import checkpoint_activations
from veritune.models.rehearsal import (
    GroupShape,
    LiveBytes,
    NotRehearsedError,
    Row,
    Skeleton,
    carry,
    made_up_groups,
    rehearse,
)

SHAPE = GroupShape(20, (10, 12))
TOKENS = 400
FAMILIES = ["qwen2", "llama", "gpt2", "gemma", "gemma2", "opt", "qwen3-moe", "deepseek-v3"]
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16": {"precision": "bf16"},
    "recomputed": {"checkpoint_every": 1},
    "padded": {"sharing": "padded"},
    "not shared": {"sharing": "packed"},
}
Make = Callable[..., Any]


@pytest.fixture
def make_fast(make_model: Make) -> Make:
    """As `make_model`, with the experts in one product, as a model is loaded for a run."""

    def make(family: str) -> Any:
        hf = make_model(family)
        if family in ("qwen3-moe", "deepseek-v3", "mixtral"):
            hf.set_experts_implementation("grouped_mm")
        return hf

    return make


def real(hf: Any, *, checkpoint_every: int | None = None, **settings: Any) -> CausalModel:
    """A model with weights that is ready for a backward pass."""
    hf.train()
    if checkpoint_every is not None:
        checkpoint_activations(hf, every=checkpoint_every)
    for parameter in hf.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    return CausalModel(hf, **settings)


def row_of(model: CausalModel, num_tokens: int = TOKENS) -> Row:
    return Row.of(model, made_up_groups(SHAPE, num_tokens, model))


def saved_bytes(model: CausalModel, row: Row) -> int:
    """Unique bytes that autograd saves while the layers run, parameters and buffers excepted, and
    those of the masks that stay with the row.
    """
    known = {t.untyped_storage().data_ptr() for t in [*model.hf.parameters(), *model.hf.buffers()]}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.predicting_states(row.batch)
    if row.batch.plan is not None:
        for mask in tree_leaves(list(row.batch.plan.masks.values())):
            if isinstance(mask, Tensor):
                note(mask)
    return sum(saved.values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["plain", "bf16", "padded"])
def test_activations_are_those_that_autograd_saves(family: str, name: str, make_fast: Make) -> None:
    hf = make_fast(family)
    model = real(hf, **SETTINGS[name])
    predicted = Skeleton(hf.config).row(SHAPE, TOKENS, **SETTINGS[name])
    assert predicted.activations == pytest.approx(saved_bytes(model, row_of(model)), rel=0.12)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_row_without_weights_takes_what_one_with_weights_takes(
    family: str, name: str, make_fast: Make
) -> None:
    hf = make_fast(family)
    model = real(hf, **SETTINGS[name])
    taken = rehearse(model, row_of(model))
    predicted = Skeleton(hf.config).row(SHAPE, TOKENS, **SETTINGS[name])
    assert predicted.num_tokens == taken.num_tokens
    assert predicted.activations == pytest.approx(taken.activations, rel=0.1)
    assert predicted.peak == pytest.approx(taken.peak, rel=0.1)


@pytest.mark.parametrize("name", ["plain", "recomputed"])
def test_completions_far_from_their_prompt_are_rehearsed(name: str, make_fast: Make) -> None:
    """Their keys are copied behind the prompt's, which counts where layers are computed again."""
    hf = make_fast("llama")
    model = real(hf, **SETTINGS[name])
    shape = GroupShape(150, (80, 80, 80))
    taken = rehearse(model, Row.of(model, made_up_groups(shape, TOKENS, model)))
    predicted = Skeleton(hf.config).row(shape, TOKENS, **SETTINGS[name])
    assert predicted.peak == pytest.approx(taken.peak, rel=0.1)


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "mixtral"])
def test_adapters_are_rehearsed_as_they_are_trained(family: str, make_fast: Make) -> None:
    hf = make_fast(family)
    predicted = Skeleton(hf.config, adapter=AdapterConfig())
    attach_adapter(hf, AdapterConfig(), seed=0)
    model = real(hf)
    taken = rehearse(model, row_of(model))
    assert predicted.row(SHAPE, TOKENS).peak == pytest.approx(taken.peak, rel=0.05)
    assert predicted.num_trained == sum(p.numel() for p in hf.parameters() if p.requires_grad)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_skeleton_has_the_size_of_its_model(family: str, make_fast: Make) -> None:
    hf = make_fast(family)
    tensors = [*hf.parameters(), *hf.buffers()]
    skeleton = Skeleton(hf.config)
    assert skeleton.weight_bytes == sum(t.numel() * t.element_size() for t in tensors)
    assert skeleton.num_trained == sum(p.numel() for p in hf.parameters())


def test_activations_grow_with_the_tokens_of_the_row(make_fast: Make) -> None:
    skeleton = Skeleton(make_fast("llama").config)
    one, two = skeleton.row(SHAPE, 4000), skeleton.row(SHAPE, 8000)
    assert two.num_tokens == 2 * one.num_tokens
    assert two.activations == pytest.approx(2 * one.activations, rel=0.01)


def test_the_more_layers_are_computed_again_the_less_is_kept(make_fast: Make) -> None:
    skeleton = Skeleton(make_fast("llama").config)
    kept, half, none = (
        skeleton.row(SHAPE, 4000, checkpoint_every=every).activations for every in (None, 2, 1)
    )
    # Two layers, of which every second is computed again.
    assert none < half < kept
    assert half - none == pytest.approx(kept - half, rel=0.2)


def test_a_row_that_is_scored_only_keeps_no_activations(make_fast: Make) -> None:
    config = make_fast("llama").config
    peaks = []
    for layers in (2, 8):
        config.num_hidden_layers = layers
        peaks.append([Skeleton(config).row(SHAPE, 4000, backward=b).peak for b in (True, False)])
    (trained, scored), (trained_deep, scored_deep) = peaks
    assert trained_deep > 2.5 * trained
    assert scored_deep == pytest.approx(scored, rel=0.01)


def test_a_model_whose_layers_look_at_values_is_not_rehearsed(make_fast: Make) -> None:
    skeleton = Skeleton(make_fast("llama").config)

    def looking(module: Any, inputs: Any, output: Tensor) -> None:
        float(output.sum())

    skeleton._hf.model.layers[0].mlp.register_forward_hook(looking)
    with pytest.raises(NotRehearsedError, match="DataDependentOutput"):
        skeleton.row(SHAPE, TOKENS)


@pytest.mark.parametrize("num_tokens", [1, 41, 100, 399, 400])
def test_made_up_groups_fill_the_row(num_tokens: int, make_fast: Make) -> None:
    model = CausalModel(make_fast("llama"))
    size = SHAPE.prompt + sum(SHAPE.completions) - len(SHAPE.completions)
    found = sum(map(model.row_tokens, made_up_groups(SHAPE, num_tokens, model)))
    assert abs(found - max(num_tokens, size)) <= 2 * len(SHAPE.completions)


def test_live_bytes_count_what_lives() -> None:
    before = torch.ones(5)
    with LiveBytes() as live:
        live.ignore([before])
        made = before.repeat(100)
        view = made[:3]
        assert live.now == 4 * 500
        other = torch.zeros(1000, dtype=torch.int64)
        del other, made
        assert live.now == 4 * 500
        del view
        before.add_(1)
    assert (live.now, live.peak) == (0, 4 * 500 + 8 * 1000)


def test_the_passes_of_a_row_give_its_gradient_a_few_targets_at_a_time(make_fast: Make) -> None:
    model = real(make_fast("llama"))
    row = row_of(model)
    assert row.at_once is not None
    gradients = []
    for at_once in (None, 7):
        model.hf.zero_grad()
        carry(model, Row(row.batch, at_once))
        gradients.append([p.grad.clone() for p in model.hf.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
