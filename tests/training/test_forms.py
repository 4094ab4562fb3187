import dataclasses

import torch
from tiny_world import random_dataset

from veritune.logprobs import CompletionLogProbs, PairedLogProbs, ScoredLogProbs, UnpairedLogProbs
from veritune.training.forms import GlobalFacts, assemble

FACTS = GlobalFacts(num_examples=9, num_tokens=50, num_desirable=4)


def numbered(count: int) -> CompletionLogProbs:
    """Completions whose values tell which one each is."""
    places = torch.arange(count)
    return CompletionLogProbs(-places.double(), places + 1, -100.0 - places.double())


def test_the_completions_of_pairs_go_to_their_sides() -> None:
    data = assemble(random_dataset("paired", 9), [4, 1, 7], numbered(6), FACTS)
    assert isinstance(data, PairedLogProbs)
    assert data.chosen.policy.tolist() == [0, -2, -4]
    assert data.rejected.policy.tolist() == [-1, -3, -5]
    assert data.rejected.length.tolist() == [2, 4, 6]
    assert data.chosen.log_ratio.tolist() == [100, 100, 100]


def test_sums_within_the_common_length_go_with_their_completions() -> None:
    places = torch.arange(6)
    completion = dataclasses.replace(
        numbered(6), policy_common=-0.5 * places.double(), reference_common=-50.0 - places.double()
    )
    data = assemble(random_dataset("paired", 9), [4, 1, 7], completion, FACTS)
    assert isinstance(data, PairedLogProbs)
    assert data.chosen.policy_common is not None
    assert data.rejected.reference_common is not None
    assert data.chosen.policy_common.tolist() == [0, -1, -2]
    assert data.rejected.reference_common.tolist() == [-51, -53, -55]


def test_labels_are_those_of_the_records_in_the_row_and_counts_those_of_the_batch() -> None:
    dataset = random_dataset("unpaired", 9)
    data = assemble(dataset, [4, 0, 1], numbered(3), FACTS)
    assert isinstance(data, UnpairedLogProbs)
    assert data.desirable.tolist() == [True, False, True]
    assert (data.num_desirable, data.num_undesirable) == (4, 5)


def test_groups_of_different_sizes_fill_a_rectangle_from_the_left() -> None:
    dataset = random_dataset("scored", 9, seed=1)
    sizes = [len(dataset.scores[i]) for i in range(9)]
    small, large = sizes.index(min(sizes)), sizes.index(max(sizes))
    assert min(sizes) < max(sizes)
    count = sizes[small] + sizes[large]
    data = assemble(dataset, [small, large], numbered(count), FACTS)
    assert isinstance(data, ScoredLogProbs)
    assert data.present.sum(1).tolist() == [sizes[small], sizes[large]]
    assert data.scores[0, : sizes[small]].tolist() == list(dataset.scores[small])
    assert data.scores[1].tolist() == list(dataset.scores[large])
    assert data.completions.policy[0, : sizes[small]].tolist() == [
        -float(k) for k in range(sizes[small])
    ]
    assert data.completions.policy[1].tolist() == [-float(k) for k in range(sizes[small], count)]
    absent = ~data.present[0]
    assert data.scores[0][absent].tolist() == [0] * int(absent.sum())


def test_gradients_pass_through_the_rectangle_to_their_completions() -> None:
    dataset = random_dataset("scored", 9, seed=1)
    count = sum(len(dataset.scores[i]) for i in range(9))
    completion = numbered(count)
    policy = completion.policy.requires_grad_()
    data = assemble(dataset, list(range(9)), completion, FACTS)
    assert isinstance(data, ScoredLogProbs)
    (data.completions.policy**2).sum().backward()
    assert policy.grad is not None
    assert torch.equal(policy.grad, 2 * policy.detach())
