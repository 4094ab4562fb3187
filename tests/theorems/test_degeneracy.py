import pytest

from veritune.laboratory.theorems.degeneracy import (
    MAKERS,
    NUM_COMPLETIONS,
    SETTINGS,
    where_each_ends,
)
from veritune.objectives.catalog import CATALOG, settings_of

# Lengths are one here, or the loss is another member of a family that is looked at.
LEFT_OUT = {
    "dpo_mean",
    "length_regularized_dpo",
    "ld_dpo",
    "ld_dpo_policy",
    "ipo_mean",
    "rpo_mean",
    "chosen_nll_mean",
    "rdro_pooled",
    "rdro_lsif",
    "rdro_kliep",
    "ddro_stabilized",
    "ddro_unweighted",
    "ddro_lsif",
}


@pytest.fixture(scope="module")
def rows():
    return where_each_ends()


def test_every_objective_on_pairs_or_labels_is_looked_at_or_left_out_by_name():
    offline = {card.name for card in CATALOG.values() if card.kind in ("paired", "unpaired")}

    assert set(SETTINGS) | LEFT_OUT == offline
    assert set(SETTINGS).isdisjoint(LEFT_OUT)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_settings_are_in_the_ranges_of_the_objective(name):
    settings_of(CATALOG[name], SETTINGS[name], data_fraction=None)


def test_each_objective_has_a_clear_ending_under_each_kind_of_preferences(rows):
    assert [(row.objective, row.preferences) for row in rows] == [
        (name, preferences) for name in SETTINGS for preferences in MAKERS
    ]
    for row in rows:
        assert row.ending in ("rests", "drops", "collapses"), row
        assert 1 / NUM_COMPLETIONS <= row.largest_probability <= 1, row
        assert (row.num_kept == NUM_COMPLETIONS) == (row.ending == "rests"), row
        assert (row.num_kept == 1) == (row.ending == "collapses"), row


def test_every_claimed_optimum_is_where_training_ends_but_ddros_on_certain_labels(rows):
    claims = {
        (row.objective, row.preferences): row.distance_to_claim
        for row in rows
        if row.distance_to_claim is not None
    }

    assert {name for name, _ in claims} == {
        name for name in SETTINGS if CATALOG[name].optimum is not None and name != "rdpo"
    }
    assert claims.pop(("ddro", "deterministic")) > 0.05
    assert max(claims.values()) < 1e-9
