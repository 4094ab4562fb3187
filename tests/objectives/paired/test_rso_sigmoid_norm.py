from veritune.objectives.paired.dpo import dpo_loss
from veritune.objectives.paired.rso_sigmoid_norm import rso_sigmoid_norm_loss


def test_it_is_dpo_with_a_scale_of_its_own(pairs):
    assert rso_sigmoid_norm_loss(pairs, gamma=0.05).item() == dpo_loss(pairs, beta=0.05).item()
    assert rso_sigmoid_norm_loss(pairs, gamma=0.05).item() != dpo_loss(pairs, beta=0.1).item()
