"""Every law is broken by a function made for it, and by no law of the function beside it."""

import dataclasses

import pytest
import torch
from torch.nn.functional import logsigmoid

from veritune.logprobs import PairedLogProbs, SampledLogProbs, ScoredLogProbs, UnpairedLogProbs
from veritune.objectives.card import Card
from veritune.objectives.laws import LAWS, Trial, breaches
from veritune.objectives.paired.dpo import CARD as DPO


def _card(loss, data=PairedLogProbs, **facts) -> Card:
    return Card(loss=loss, data=data, source="none", title="made to fail", target="none", **facts)


def _margin(pairs: PairedLogProbs) -> torch.Tensor:
    return pairs.chosen.log_ratio - pairs.rejected.log_ratio


def summed(pairs):
    return -logsigmoid(_margin(pairs)).sum()


def in_double(pairs):
    return -logsigmoid(_margin(pairs)).double()


def centered_over_the_batch(pairs):
    margin = _margin(pairs)
    return -logsigmoid(margin - margin.mean())


def centered_without_gradient(pairs):
    margin = _margin(pairs)
    return -logsigmoid(margin - margin.mean().detach())


def without_gradient(pairs):
    return -logsigmoid(_margin(pairs)).detach() + 0 * pairs.chosen.policy


def detached(pairs):
    return -logsigmoid(_margin(pairs)).detach()


def weighted_by_place(pairs):
    margin = _margin(pairs)
    return -logsigmoid(margin) * torch.linspace(1, 2, len(margin)).to(margin)


def through_probabilities(pairs):
    return -torch.sigmoid(_margin(pairs)).log()


def with_a_stopped_gradient(pairs):
    return -logsigmoid(_margin(pairs)) * _margin(pairs).detach()


def cancelling(pairs):
    return -logsigmoid(_margin(pairs)) + 1e7 - 1e7


def cancelling_in_the_gradient(pairs):
    margin = _margin(pairs)
    clamped = margin.clamp(max=3)
    # The line is zero below 3, but its gradient is a sum of 1e6 and -1e6.
    return -logsigmoid(clamped) + 1e6 * (margin - clamped)


def quiet_about_the_reference(pairs):
    return -logsigmoid(pairs.chosen.policy - pairs.rejected.policy)


def blowing_up_the_baseline(labels):
    assert labels.mismatched_log_ratio is not None
    return labels.completion.log_ratio.exp() + labels.mismatched_log_ratio.exp()


LAW = {law.name: law for law in LAWS}


@pytest.mark.parametrize(
    ("law", "loss"),
    [
        ("every example has one loss in the dtype of the data", summed),
        ("every example has one loss in the dtype of the data", in_double),
        ("examples do not influence each other", centered_over_the_batch),
        ("examples do not influence each other", centered_without_gradient),
        ("every example has a gradient", without_gradient),
        ("every example has a gradient", detached),
        ("permuting examples permutes losses", weighted_by_place),
        ("loss and gradient are finite at extreme log ratios", through_probabilities),
        ("the gradient equals finite differences", with_a_stopped_gradient),
        ("float32 agrees with float64", cancelling),
        ("float32 agrees with float64", cancelling_in_the_gradient),
        ("the card says what is read", quiet_about_the_reference),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_function_made_to_break_a_law_breaks_it(law, loss):
    assert list(LAW[law].breaches(Trial(_card(loss), {})))


def test_a_function_that_grows_with_a_baseline_breaks_the_law_of_baselines():
    card = _card(blowing_up_the_baseline, UnpairedLogProbs, needs_mismatched=True)

    law = LAW["facts of the batch of any size keep the loss finite"]

    assert list(law.breaches(Trial(card, {})))


def test_a_wrong_closed_form_of_the_first_loss_is_found():
    card = dataclasses.replace(
        DPO, initial_loss=lambda pairs, beta: torch.full_like(pairs.chosen.policy, 0.7)
    )

    law = LAW["the initial loss is the loss of the reference"]

    assert list(law.breaches(Trial(card, {"beta": 0.1})))


def test_a_card_that_denies_infinite_losses_is_found_and_so_is_one_that_invents_them():
    law = LAW["loss and gradient are finite at extreme log ratios"]
    invented = dataclasses.replace(DPO, finite_everywhere=False)

    assert "and it is" in next(law.breaches(Trial(invented, {"beta": 0.1})))


def test_an_undeclared_advantage_and_an_undeclared_absence_of_the_reference_are_found():
    law = LAW["the card says what is read"]

    def with_advantages(samples):
        return -(samples.behavior_log_ratio * samples.advantages).sum(dim=(1, 2))

    undeclared = _card(with_advantages, SampledLogProbs, needs_reference=False)
    declared = dataclasses.replace(undeclared, needs_advantages=True)
    claims_reference = dataclasses.replace(declared, needs_reference=True)

    assert "advantages" in next(law.breaches(Trial(undeclared, {})))
    assert list(law.breaches(Trial(declared, {}))) == []
    assert "reference" in next(law.breaches(Trial(claims_reference, {})))


def test_an_essential_breach_ends_the_search():
    found = list(breaches(_card(summed), {}))

    assert {law.name for law, _ in found} == {"every example has one loss in the dtype of the data"}


def test_a_sound_objective_breaks_no_law():
    assert list(breaches(DPO, {"beta": 0.1})) == []


def test_scored_groups_of_a_trial_differ_in_size_and_scores():
    def first(groups: ScoredLogProbs):
        return groups.completions.policy[:, 0]

    trial = Trial(_card(first, ScoredLogProbs), {})

    data = trial.data(trial.tables())

    assert data.present.sum(dim=1).tolist() == [3, 2, 3, 2, 3, 2]
    assert not torch.equal(data.scores[0], data.scores[1])
