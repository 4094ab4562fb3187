import pytest

from veritune.objectives.catalog import CATALOG


@pytest.fixture
def listing(veritune) -> list[str]:
    outcome = veritune("objectives")
    assert outcome.code == 0
    return [line.rstrip() for line in outcome.out.splitlines()]


@pytest.mark.parametrize("name", CATALOG)
def test_every_objective_stands_on_one_line_with_its_title_and_paper(name, listing):
    card = CATALOG[name]
    (line,) = [line for line in listing if line.split()[:1] == [name]]
    assert card.title in line
    assert card.source.split(",")[0].split(";")[0] in line
    assert ("(no reference)" in line) == (not card.needs_reference)


def test_objectives_stand_below_the_kind_of_records_that_they_take(listing):
    kind = None
    for line in listing[:-1]:
        if line.endswith(" records") and not line.startswith(" "):
            kind = line.removesuffix(" records")
        elif line:
            assert CATALOG[line.split()[0]].kind == kind


def test_the_listing_fits_into_a_hundred_columns(listing):
    assert max(len(line) for line in listing) <= 100


def test_the_card_of_one_objective_has_its_formula_and_hyper_parameters(veritune):
    outcome = veritune("objectives", "dpo")
    assert outcome.code == 0
    assert "log sigmoid" in outcome.out
    assert "beta: greater than 0; default 0.1" in outcome.out


def test_the_nearest_objective_is_named(veritune):
    outcome = veritune("objectives", "rdor")
    assert outcome.code == 2
    assert "did you mean rdro?" in outcome.err


def test_the_papers_stand_in_one_column(listing):
    places = {line.index("arXiv:") for line in listing if "arXiv:" in line}
    assert len(places) == 1
