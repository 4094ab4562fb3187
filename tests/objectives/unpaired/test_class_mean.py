import pytest
import torch

from veritune.logprobs import CompletionLogProbs, UnpairedLogProbs
from veritune.objectives.unpaired.class_mean import class_mean_weight


def labels_of(desirable, num_desirable, num_undesirable):
    values = torch.zeros(len(desirable))
    return UnpairedLogProbs(
        CompletionLogProbs(values, torch.ones(len(desirable)).int(), values),
        torch.tensor(desirable, dtype=torch.bool),
        num_desirable,
        num_undesirable,
    )


def test_class_mean_weight_turns_a_mean_into_the_sum_of_class_means():
    loss = torch.tensor([1.0, 2.0, 6.0, 10.0])
    labels = labels_of([True, False, False, False], num_desirable=1, num_undesirable=3)

    mean = (class_mean_weight(labels) * loss).mean()

    assert mean.item() == pytest.approx(1.0 + (2.0 + 6.0 + 10.0) / 3)


def test_class_mean_weight_is_the_same_however_the_global_batch_is_cut():
    whole = class_mean_weight(labels_of([True, False, False], 1, 2))
    first = class_mean_weight(labels_of([True], 1, 2))
    rest = class_mean_weight(labels_of([False, False], 1, 2))

    assert torch.equal(whole, torch.cat([first, rest]))


def test_a_class_that_the_global_batch_lacks_contributes_nothing():
    loss = torch.tensor([1.0, 3.0])

    mean = (class_mean_weight(labels_of([False, False], 0, 2)) * loss).mean()

    assert mean.item() == pytest.approx(2.0)
