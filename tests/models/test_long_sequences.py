"""The promise on sequences of real length: 1e-4 nats on the sum of hundreds of tokens."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from veritune.models.forward import CausalModel
from veritune.models.plain import plain_logprobs
from veritune.models.tiny import tiny_model
from veritune.records.kinds import Origin
from veritune.tokens.encode import TokenizedCompletion, TokenizedRecord

VOCAB = 211
FAMILIES = ("llama", "qwen2", "qwen3", "gemma", "mistral", "gpt2", "opt")


def group(num_prompt: int, *lengths: int) -> TokenizedRecord:
    numbers = np.random.default_rng(num_prompt)
    ids = [numbers.integers(0, VOCAB, size).astype(np.int32) for size in (num_prompt, *lengths)]
    completions = (TokenizedCompletion(c, np.ones(len(c), bool)) for c in ids[1:])
    return TokenizedRecord(ids[0], tuple(completions), Origin("made", 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_sums_over_hundreds_of_tokens_are_those_of_a_plain_float64_run(family):
    hf_model = tiny_model(family, vocab_size=VOCAB, max_positions=512)
    exact = deepcopy(hf_model).double()
    model = CausalModel(hf_model)
    groups = [group(150, 300, 220), group(3, 400)]
    with torch.no_grad():
        found, _, _ = model.completion_logprobs(model.batch(groups, range(2)))
    expected = torch.cat([plain_logprobs(exact, g) for g in groups])

    assert expected.min() < -1000
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    # Sums kept in float32 alone would not hold this: their neighbors lie 1.2e-4 apart.
    assert torch.nextafter(expected.min().float(), torch.tensor(0.0)) - expected.min() > 1e-4
