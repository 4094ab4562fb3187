"""Groups of random ids."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from veritune.records.kinds import Origin
from veritune.tokens.encode import TokenizedCompletion, TokenizedRecord


@pytest.fixture(scope="session")
def make_group() -> Callable[..., TokenizedRecord]:
    """A group from its lengths; `silent` is the share of completion tokens without loss."""

    def make(
        num_prompt: int, lengths: Sequence[int], *, seed: int = 0, silent: float = 0.0
    ) -> TokenizedRecord:
        draw = np.random.default_rng([seed, num_prompt, *lengths])
        completions = []
        for length in lengths:
            bears_loss = draw.random(length) >= silent
            bears_loss[draw.integers(length)] = True
            ids = draw.integers(0, 10_000, length).astype(np.int32)
            completions.append(TokenizedCompletion(ids, bears_loss))
        prompt = draw.integers(0, 10_000, num_prompt).astype(np.int32)
        return TokenizedRecord(prompt, tuple(completions), Origin("a.jsonl", seed))

    return make
