from veritune.objectives.paired.chosen_nll import chosen_nll_loss


def test_chosen_nll_loss_and_its_derivatives_are_those_of_the_formula(pairs):
    loss = chosen_nll_loss(pairs)
    loss.sum().backward()

    assert loss.item() == 12.0
    assert pairs.chosen.policy.grad.item() == -1.0
    assert pairs.rejected.policy.grad is None
