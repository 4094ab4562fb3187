"""The policy that is a table answers as a language model with those probabilities would."""

import math

import pytest
import torch
from peers.batches import extreme_rows, random_batch, random_rows
from peers.table_policy import IGNORED, TablePolicy, row_tables


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_the_fused_head_gives_the_log_probability_of_each_label() -> None:
    tables = torch.randn(2, 3, 4, generator=generator(), dtype=torch.float64)
    ids = torch.tensor([[1, 2, 0, 3], [0, 1, 1, 2]])
    found = TablePolicy(tables)(ids, labels=ids, fused_lm_head=True).log_probs
    expected = math.log(
        math.exp(tables[1, 0, 2]) / sum(math.exp(value) for value in tables[1, 0].tolist())
    )
    assert found.shape == (2, 3)
    assert found[0, 0].item() == pytest.approx(expected, rel=1e-12)
    assert found[1, 2].item() == pytest.approx(tables[0, 2].log_softmax(0)[2].item(), rel=1e-12)


def test_the_fused_head_gives_zero_where_a_label_is_ignored() -> None:
    labels = torch.tensor([[0, 1, IGNORED, IGNORED]])
    output = TablePolicy(torch.randn(1, 3, 4))(
        labels.clamp(min=0), labels=labels, fused_lm_head=True
    )
    for field in (output.log_probs, output.entropy, output.mean_logits, output.log_sum_sq_probs):
        assert (field[0, 1:] == 0).all()
        assert field[0, 0] != 0


def test_logits_have_a_position_for_every_token() -> None:
    tables = torch.randn(1, 5, 4)
    output = TablePolicy(tables)(torch.zeros(2, 4, dtype=torch.long))
    assert output.logits.shape == (2, 4, 4)
    assert torch.equal(output.logits[1, :3], tables[0, :3])


def test_entropy_is_finite_where_a_token_is_impossible() -> None:
    tables = torch.tensor([[[0.0, -1e4]]])
    ids = torch.zeros(1, 2, dtype=torch.long)
    assert TablePolicy(tables)(ids, labels=ids, fused_lm_head=True).entropy[0, 0] == 0


@pytest.mark.parametrize("logprob", [-1e4, -50.0, -1.0, -0.5, -1e-9])
def test_row_tables_have_the_given_log_probability(logprob: float) -> None:
    given = torch.tensor([[logprob]], dtype=torch.float64)
    assert row_tables(given).log_softmax(dim=-1)[0, 0, 0].item() == pytest.approx(logprob, rel=1e-9)


@pytest.mark.parametrize("size", [-1e4, -90.0, 0.0, 1.0, 1e4])
def test_extreme_rows_have_the_given_log_ratio_in_float32(size: float) -> None:
    rows = extreme_rows([size])
    assert rows.policy.dtype == torch.float32
    assert (rows.policy_sums - rows.reference_sums).item() == pytest.approx(size, abs=1e-3)


def test_padding_has_no_log_probability() -> None:
    rows = random_rows(generator(), [1, 3])
    tokens = rows.token_logprobs(rows.policy)
    assert tokens[0].tolist() == [tokens[0, 0].item(), 0, 0]
    assert (tokens[1] < 0).all()


@pytest.mark.parametrize("kind", ["pairs", "labels", "samples"])
def test_examples_of_a_batch_keep_their_log_ratios(kind: str) -> None:
    batch = random_batch(kind)
    part = batch.examples([4, 1])
    of_all = batch.rows.policy_sums - batch.rows.reference_sums
    rows = [4, 1, 4 + 6, 1 + 6] if kind == "pairs" else [4, 1]
    assert torch.allclose(part.rows.policy_sums - part.rows.reference_sums, of_all[rows])
    assert part.num_examples == 2
