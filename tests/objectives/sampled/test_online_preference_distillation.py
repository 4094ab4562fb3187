from math import exp, log

import pytest

from veritune.objectives.sampled.online_preference_distillation import (
    online_preference_distillation_loss,
)


def test_it_is_the_cross_entropy_of_the_preferences_on_summed_log_probabilities(samples):
    loss = online_preference_distillation_loss(samples, gamma=0.1)
    loss.sum().backward()

    p = 1 / (1 + exp(-1.5))
    q = 1 / (1 + exp(-0.1 * 3.0))
    assert loss.item() == pytest.approx(-p * log(q) - (1 - p) * log(1 - q))
    slopes = samples.policy.grad[0].flatten().tolist()
    assert slopes == pytest.approx([0.1 * (q - p)] * 2 + [-0.1 * (q - p), 0.0])
