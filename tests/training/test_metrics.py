import math

import pytest
import torch
from torch import Tensor

from veritune.logprobs import (
    CompletionLogProbs,
    DemonstrationLogProbs,
    LogProbs,
    PairedLogProbs,
    ScoredLogProbs,
    UnpairedLogProbs,
)
from veritune.training.metrics import METRICS, MetricSums, finish


def values(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def completions(policy: Tensor, reference: Tensor | None = None) -> CompletionLogProbs:
    return CompletionLogProbs(policy, torch.ones_like(policy, dtype=torch.long), reference)


def measured(*rows: LogProbs, scale: float = 1.0) -> dict[str, float]:
    sums = MetricSums(type(rows[0]), scale)
    for row in rows:
        sums.add(row)
    return finish(sums.metrics, sums.totals)


def test_pairs_are_measured_by_scaled_log_ratios_and_plain_log_probabilities() -> None:
    pairs = PairedLogProbs(
        completions(values(-10, -20), values(-11, -18)),
        completions(values(-30, -5), values(-29, -9)),
    )
    assert measured(pairs, scale=0.1) == pytest.approx(
        {
            "rewards/chosen": 0.1 * (1 - 2) / 2,
            "rewards/rejected": 0.1 * (-1 + 4) / 2,
            "rewards/accuracies": 1 / 2,
            "logps/chosen": -15,
            "logps/rejected": -17.5,
            "rewards/margins": 0.1 * (-1 - 3) / 2,
        }
    )


def test_without_a_reference_the_reward_is_the_scaled_log_probability() -> None:
    pairs = PairedLogProbs(completions(values(-10)), completions(values(-30)))
    found = measured(pairs, scale=0.5)
    assert (found["rewards/chosen"], found["rewards/rejected"]) == (-5, -15)
    assert found["rewards/accuracies"] == 1


def test_a_tie_is_half_an_accurate_pair() -> None:
    pairs = PairedLogProbs(
        completions(values(-1, -2, -3), values(-1, -2, -3)),
        completions(values(-4, -1, -9), values(-4, -2, -3)),
    )
    # Equal; the rejected one better by 1; the chosen one better by 6.
    assert measured(pairs)["rewards/accuracies"] == pytest.approx((0.5 + 0 + 1) / 3)


def test_rows_are_summed_before_they_are_divided() -> None:
    one = PairedLogProbs(completions(values(-1)), completions(values(-2)))
    three = PairedLogProbs(completions(values(-5, -5, -5)), completions(values(-2, -2, -2)))
    found = measured(one, three)
    assert found["logps/chosen"] == pytest.approx((-1 - 15) / 4)
    assert found["rewards/accuracies"] == pytest.approx(1 / 4)
    # A mean of the means of the two rows is another number.
    assert found["logps/chosen"] != pytest.approx((-1 - 5) / 2)


def labels(policy: Tensor, desirable: list[bool]) -> UnpairedLogProbs:
    return UnpairedLogProbs(
        completions(policy, torch.zeros_like(policy)),
        desirable=torch.tensor(desirable),
        num_desirable=1,
        num_undesirable=1,
    )


def test_labels_are_measured_class_by_class_and_the_margin_is_between_the_class_means() -> None:
    first = labels(values(-1, -4, -6), [True, False, False])
    second = labels(values(-2, -3), [True, True])
    assert measured(first, second, scale=2) == pytest.approx(
        {
            "rewards/chosen": 2 * -(1 + 2 + 3) / 3,
            "rewards/rejected": 2 * -(4 + 6) / 2,
            "logps/chosen": -2,
            "logps/rejected": -5,
            "rewards/margins": 2 * (-2 - -5),
        }
    )


def test_a_class_without_an_example_has_no_metric_and_no_margin() -> None:
    found = measured(labels(values(-1, -3), [True, True]))
    assert found == {"rewards/chosen": -2, "logps/chosen": -2}


def test_scored_groups_of_different_size_are_measured_over_what_is_there() -> None:
    groups = ScoredLogProbs(
        completions(
            torch.stack([values(-1, -2, -3), values(-7, -5, 0), values(-4, 0, 0)]),
            torch.zeros(3, 3, dtype=torch.float64),
        ),
        scores=torch.stack([values(2, 1, 3), values(-1, -2, 0), values(-5, 0, 0)]),
        present=torch.tensor([[True, True, True], [True, True, False], [True, False, False]]),
    )
    # Group 1: 2 > 1 right, 3 > 2 wrong, 3 > 1 wrong. Group 2: -1 > -2 wrong. Group 3: no pair.
    assert measured(groups) == pytest.approx(
        {
            "rewards/chosen": (-3 - 7 - 4) / 3,
            "rewards/rejected": (-2 - 5 - 4) / 3,
            "rewards/accuracies": 1 / 4,
            "rewards/margins": (-14 + 11) / 3,
        }
    )


def test_equal_scores_are_no_comparison_and_equal_rewards_are_half_of_one() -> None:
    groups = ScoredLogProbs(
        completions(torch.stack([values(-1, -1, -2)]), torch.zeros(1, 3, dtype=torch.float64)),
        scores=torch.stack([values(1, 0, 0)]),
        present=torch.ones(1, 3, dtype=torch.bool),
    )
    # 1 > 0 with equal rewards: half; 1 > 0 with the larger reward: one; 0 = 0: none.
    assert measured(groups)["rewards/accuracies"] == pytest.approx((0.5 + 1) / 2)


def test_groups_of_one_completion_have_rewards_and_no_accuracy() -> None:
    groups = ScoredLogProbs(
        completions(torch.stack([values(-1)]), torch.zeros(1, 1, dtype=torch.float64)),
        scores=torch.zeros(1, 1),
        present=torch.ones(1, 1, dtype=torch.bool),
    )
    found = measured(groups)
    assert found["rewards/margins"] == 0
    assert "rewards/accuracies" not in found


def test_demonstrations_are_measured_by_their_log_probability() -> None:
    data = DemonstrationLogProbs(completions(values(-2, -6)))
    assert measured(data) == {"logps/completions": -4}


def test_metrics_carry_no_gradient() -> None:
    policy = values(-1, -2).requires_grad_()
    sums = MetricSums(DemonstrationLogProbs, 1.0)
    sums.add(DemonstrationLogProbs(completions(policy)))
    assert not sums.totals.requires_grad


def test_a_value_that_is_not_a_number_is_not_hidden() -> None:
    data = DemonstrationLogProbs(completions(values(-2, math.nan)))
    assert math.isnan(measured(data)["logps/completions"])


def test_no_two_metrics_of_a_kind_share_a_name_and_each_has_a_meaning() -> None:
    for metrics in METRICS.values():
        assert len({m.name for m in metrics}) == len(metrics)
        assert all(m.meaning for m in metrics)
