import dataclasses

import pytest
import torch

from veritune.errors import SettingsError
from veritune.objectives.catalog import CATALOG
from veritune.objectives.combine import combine
from veritune.objectives.laws import breaches
from veritune.objectives.paired.dpo import dpo_loss
from veritune.objectives.paired.pmle import pmle_loss

DPO_AND_PMLE = combine([CATALOG["dpo"], CATALOG["pmle"]])
SETTINGS = {"dpo.beta": 0.3, "dpo.weight": 1.0, "pmle.gamma": 0.2, "pmle.weight": 0.5}


def test_the_loss_is_the_weighted_sum(pairs):
    loss = DPO_AND_PMLE.loss(pairs, **SETTINGS)

    expected = dpo_loss(pairs, beta=0.3) + 0.5 * pmle_loss(pairs, gamma=0.2)
    assert torch.allclose(loss, expected)
    assert not torch.allclose(loss, dpo_loss(pairs, beta=0.3) + pmle_loss(pairs, gamma=0.2))


def test_the_first_loss_is_the_weighted_sum_of_the_first_losses():
    card = combine([CATALOG["dpo"], CATALOG["ipo"]])

    settings = {"dpo.beta": 0.3, "dpo.weight": 1.0, "ipo.tau": 0.2, "ipo.weight": 0.5}

    assert list(breaches(card, settings)) == []
    assert card.initial_loss is not None


def test_a_part_without_a_first_loss_leaves_the_sum_without():
    part = dataclasses.replace(CATALOG["ipo"], initial_loss=None)

    assert combine([CATALOG["dpo"], part]).initial_loss is None


def test_the_card_needs_what_any_part_needs():
    card = combine([CATALOG["pmle"], CATALOG["dpo"]])

    assert not CATALOG["pmle"].needs_reference
    assert card.needs_reference
    assert card.name == "pmle+dpo"
    assert card.kind == "paired"
    assert card.reward_scale == "pmle.gamma"
    labels = combine([CATALOG["kto"], CATALOG["rdro"]])
    assert labels.needs_mismatched
    assert labels.data_fraction == "rdro.alpha"
    assert not combine([CATALOG["ddro"], CATALOG["rdro"]]).finite_everywhere


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["dpo"], "at least two parts"),
        (["dpo", "dpo"], "stands twice"),
        (["dpo", "rdro"], "different kinds of records.*dpo: paired, rdro: unpaired"),
        (["ppo", "rloo"], "averaged over different things"),
    ],
)
def test_parts_that_cannot_be_added_are_refused(names, message):
    with pytest.raises(SettingsError, match=message.replace(".*", "(.|\n)*")):
        combine([CATALOG[name] for name in names])
