import pytest
import torch

from veritune.logprobs import CompletionLogProbs, PairedLogProbs, UnpairedLogProbs
from veritune.training.running import RunningLogRatio, class_totals


def completions(log_ratios) -> CompletionLogProbs:
    values = torch.tensor(log_ratios)
    return CompletionLogProbs(values - 3, torch.ones_like(values, dtype=torch.long), 0 * values - 3)


def test_the_mean_is_zero_before_the_first_step():
    assert RunningLogRatio().mean == 0.0


def test_labels_count_by_class():
    labels = UnpairedLogProbs(
        completions([1.0, 2.0, 3.0, -8.0]), torch.tensor([True, True, True, False]), 3, 1
    )
    running = RunningLogRatio()

    running.add(class_totals(labels))

    assert class_totals(labels).tolist() == [[6.0, 3.0], [-8.0, 1.0]]
    assert running.mean == pytest.approx((2.0 - 8.0) / 2)


def test_the_mean_is_over_all_steps_and_survives_a_checkpoint():
    running, restored = RunningLogRatio(), RunningLogRatio()
    for chosen, rejected in ([1.0], [-3.0]), ([0.3, 0.5], [0.1, 0.7]):
        running.add(class_totals(PairedLogProbs(completions(chosen), completions(rejected))))
    restored.restore(running.state)

    assert running.mean == pytest.approx((1.0 + 0.3 + 0.5 - 3.0 + 0.1 + 0.7) / 6)
    assert restored.mean == running.mean


def test_a_class_not_seen_yet_does_not_count():
    labels = UnpairedLogProbs(completions([1.0, 3.0]), torch.tensor([True, True]), 2, 0)
    running = RunningLogRatio()

    running.add(class_totals(labels))

    assert running.mean == pytest.approx(2.0)
