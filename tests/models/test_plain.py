"""The plain way, against numbers worked out by hand."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from veritune.models.plain import plain_logprobs
from veritune.records.kinds import Origin
from veritune.tokens.encode import TokenizedCompletion, TokenizedRecord

Make = Callable[..., Any]


class Bigram(torch.nn.Module):
    """Logits of the next token depend on the last one: log of (last + next + 1)."""

    def __init__(self) -> None:
        super().__init__()
        ids = torch.arange(4)
        self.table = torch.nn.Parameter((ids[:, None] + ids[None] + 1).double().log())

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        return SimpleNamespace(logits=self.table[input_ids])


def test_a_sequence_logprob_is_the_sum_over_its_loss_bearing_tokens():
    """After token a, token b has probability (a + b + 1) / (4 a + 10)."""
    completion = TokenizedCompletion(np.array([2, 0, 3], np.int32), np.array([True, False, True]))
    one = TokenizedCompletion(np.array([1], np.int32), np.array([True]))
    group = TokenizedRecord(np.array([3, 1], np.int32), (completion, one), Origin("a", 1))

    found = plain_logprobs(Bigram(), group)

    # After the prompt's 1 comes 2: 4/14; after the 0 comes 3: 4/10. The second: after 1 comes 1.
    expected = [np.log(4 / 14) + np.log(4 / 10), np.log(3 / 14)]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_the_temperature_divides_the_logits():
    one = TokenizedCompletion(np.array([1], np.int32), np.array([True]))
    group = TokenizedRecord(np.array([1], np.int32), (one,), Origin("a", 1))

    found = plain_logprobs(Bigram(), group, temperature=0.5)

    # Squares of 2, 3, 4, 5.
    assert found.item() == pytest.approx(np.log(9 / (4 + 9 + 16 + 25)), abs=1e-12)


def test_the_plain_way_is_the_exact_way_of_the_tests(
    make_model: Make, groups: list[TokenizedRecord], exact_logprobs: Make
):
    hf_model = make_model("gemma2")
    with torch.no_grad():
        expected = exact_logprobs(hf_model, groups)

    found = torch.cat([plain_logprobs(hf_model, group) for group in groups])

    assert not found.requires_grad
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=3e-5)
