"""Rows of one optimizer step, with lengths like those of three data sets, cut for either device.

Only the groups of a step can share rows, so how full rows are is a matter of steps and not of data
sets: the fewer the groups, the more a single row decides.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from veritune.batches.loader import GlobalBatch
from veritune.models.forward import CausalModel
from veritune.models.tiny import tiny_model
from veritune.objectives.catalog import find_card
from veritune.records.kinds import Origin
from veritune.tokens.dataset import TokenizedDataset
from veritune.training.memory_plan import LARGEST_ROW
from veritune.training.objective_pass import Objective, ObjectivePass

NUM_STEPS = 10


@dataclass(frozen=True)
class Lengths:
    """Log-normal lengths in tokens: medians, and deviations of the logarithm; as in
    `benchmarks/step/cases.py`."""

    prompt: float
    prompt_deviation: float
    completion: float
    completion_deviation: float
    longest: int
    """No prompt with its completion is longer."""


LENGTHS = {
    "ultrafeedback": Lengths(120, 0.95, 250, 0.75, 2048),
    "tldr": Lengths(350, 0.30, 35, 0.35, 1024),
    "hh": Lengths(110, 0.85, 60, 0.80, 1024),
}


@cache
def steps(name: str, completions: int, groups: int, device: str) -> tuple[list[list[int]], float]:
    """Data tokens of each row of each step, and the share of data in all tokens of the worst step.

    The rows are those that a run forms and prepares.
    """
    budget = LARGEST_ROW[device]
    dataset = made_up(LENGTHS[name], completions, NUM_STEPS * groups)
    model = CausalModel(tiny_model("qwen2", vocab_size=8, hidden_size=8), device_type=device)
    objective = Objective(find_card("orpo"), {})
    a_pass = ObjectivePass(model, objective, dataset, None, budget)
    rows, shares = [], []
    for step in range(NUM_STEPS):
        indices = tuple(range(step * groups, (step + 1) * groups))
        batches = [row.batch for row in a_pass.prepare(GlobalBatch(indices, ())).rows]
        assert sorted(index for batch in batches for index in batch.groups) == list(indices)
        rows.append([batch.num_data_tokens for batch in batches])
        shares.append(sum(rows[-1]) / sum(batch.num_tokens for batch in batches))
    return rows, min(shares)


def made_up(lengths: Lengths, completions: int, groups: int) -> TokenizedDataset:
    """Groups of these lengths; what the tokens are does not matter here."""
    draw = np.random.default_rng(0)

    def sizes(median: float, deviation: float, shape: tuple[int, ...]) -> np.ndarray:
        return np.exp(draw.normal(np.log(median), deviation, shape)).round().astype(np.int64)

    prompts = sizes(lengths.prompt, lengths.prompt_deviation, (groups, 1))
    prompts = prompts.clip(1, lengths.longest // 2)
    texts = sizes(lengths.completion, lengths.completion_deviation, (groups, completions))
    pieces = np.concatenate([prompts, texts.clip(1, lengths.longest - prompts)], axis=1).ravel()
    starts = np.concatenate([[0], np.cumsum(pieces)])
    return TokenizedDataset(
        kind="paired",
        ids=np.zeros(starts[-1], np.int32),
        bears_loss=np.ones(starts[-1], np.bool_),
        piece_starts=starts,
        group_starts=np.arange(0, len(starts), 1 + completions),
        desirable=np.zeros(0, np.bool_),
        scores=(),
        origins=tuple(Origin("made-up.jsonl", n + 1) for n in range(groups)),
        max_length=lengths.longest,
    )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("groups", [16, 64, 256])
@pytest.mark.parametrize("completions", [2, 8])
@pytest.mark.parametrize("name", LENGTHS)
def test_of_the_tokens_of_every_step_at_least_97_in_100_are_data(
    name: str, completions: int, groups: int, device: str
) -> None:
    _, share = steps(name, completions, groups, device)
    # Only a GPU's rows are filled up, to multiples of 128 tokens.
    assert share >= (0.97 if device == "cuda" else 1.0)


@pytest.mark.parametrize(("completions", "least"), [(2, 0.99), (8, 0.97)])
@pytest.mark.parametrize("groups", [64, 256])
@pytest.mark.parametrize("name", LENGTHS)
def test_rows_on_a_gpu_use_their_budget_but_for_the_emptiest_of_a_step(
    name: str, groups: int, completions: int, least: float
) -> None:
    rows, _ = steps(name, completions, groups, "cuda")
    full = [tokens for step in rows for tokens in sorted(step)[1:]]
    assert sum(full) / (len(full) * LARGEST_ROW["cuda"]) >= least
