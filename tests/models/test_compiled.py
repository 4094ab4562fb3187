"""Compiled layers: the same numbers, and one program for rows of every length."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import finish, start

from veritune.batches.pack import pack
from veritune.errors import ModelError
from veritune.models.compiled import compile_layers
from veritune.models.forward import CausalModel

Make = Callable[..., Any]
WORLDS = Path(__file__).parents[1] / "worlds"


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """By case: programs made until the end of each of four rows, breaks, and the error."""
    code, out, err = finish(start([sys.executable, WORLDS / "compiled_layers.py"]))
    assert code == 0, err
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_rows_of_every_length_use_the_programs_of_the_first(measured: Any, family: str):
    found = measured[family]

    # Before and behind the attention, which stays outside, in two layers.
    assert 0 < found["counts"][0] <= 6
    assert len(set(found["counts"])) == 1
    assert found["error"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "adapted llama", "gemma3"])
def test_the_kernel_for_gpus_stays_inside_one_program_for_rows_of_every_length(
    measured: Any, family: str
):
    found = measured[f"{family} for gpus"]

    # One for each kind of layer: those of gemma3 differ by their window, and the first adapted one
    # from others in that its input needs no gradient. Rows in which nothing is shared, as is the
    # second, gather no keys and have one of their own.
    kinds = {"llama": 1, "adapted llama": 2, "gemma3": 2}[family]
    assert found["counts"] == [kinds, 2 * kinds, 2 * kinds, 2 * kinds]
    assert found["breaks"] == 0
    assert found["error"] < 1e-5


@pytest.mark.slow
def test_layers_with_closed_lengths_would_be_compiled_for_every_row(measured: Any):
    """The control."""
    counts = measured["closed lengths"]["counts"]

    assert counts == sorted(set(counts))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "adapted llama"])
def test_programs_that_are_taken_apart_and_put_together_give_the_same_numbers(
    measured: Any, family: str
):
    assert measured[f"{family} taken apart"]["error"] < 1e-5


def test_names_of_weights_stay_as_they_are(make_model: Make):
    hf_model = make_model("llama")
    before = list(hf_model.state_dict())

    assert compile_layers(hf_model) == 2

    assert list(hf_model.state_dict()) == before
    assert torch._dynamo.config.recompile_limit >= 64


def test_a_model_without_decoder_layers_is_refused():
    with pytest.raises(ModelError, match="no decoder layers"):
        compile_layers(torch.nn.Linear(2, 2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_this_gpu_compiled_layers_are_the_layers(make_model: Make, make_groups: Make):
    model = CausalModel(make_model("llama").cuda(), precision="bf16")
    rows = [make_groups([(11, (9, 4))]), make_groups([(30, (40, 20)), (4, (5,))])]

    def gradient(groups: Any) -> torch.Tensor:
        model.hf.zero_grad()
        batch = pack(groups, range(len(groups)), multiple_of=128)
        model.completion_logprobs(batch)[0].sum().backward()
        return torch.cat([p.grad.flatten() for p in model.hf.parameters()])

    expected = [gradient(groups) for groups in rows]
    compile_layers(model.hf)
    for groups, correct in zip(rows, expected, strict=True):
        assert (gradient(groups) - correct).norm() < 0.05 * correct.norm()


def test_a_model_without_decoder_layers_may_stay_as_it_is():
    assert compile_layers(torch.nn.Linear(2, 2), is_optional=True) == 0
