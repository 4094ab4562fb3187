import pytest

from veritune.commands.objectives import theorems_about, theorems_against
from veritune.objectives.catalog import CATALOG


@pytest.fixture
def listing(veritune) -> list[str]:
    outcome = veritune("objectives")
    assert outcome.code == 0
    return [line.rstrip() for line in outcome.out.splitlines()]


def entries(listing: list[str]) -> dict[str, str]:
    """What is said of each objective, on one line."""
    found: dict[str, list[str]] = {}
    for line in listing:
        if line[:2] == "  " and line[2:3].strip():
            found[line.split()[0]] = entry = []
        elif line[:1] != " ":
            entry = []
        entry.append(line.strip())
    return {name: " ".join(lines) for name, lines in found.items()}


@pytest.mark.parametrize("name", CATALOG)
def test_every_objective_is_listed_with_its_title_paper_target_and_theorems(name, listing):
    card = CATALOG[name]
    entry = entries(listing)[name]

    assert entry.startswith(f"{name}  {card.title}")
    assert card.source.split(",")[0].split(";")[0] in entry
    assert card.target in entry
    assert ("(no reference)" in entry) == (not card.needs_reference)
    count = len(theorems_about(name))
    assert (f" · {count} theorem" in entry) == (count > 0)


def test_objectives_stand_below_the_kind_of_records_that_they_take(listing):
    kind, found = None, []
    for line in listing:
        if line and not line.startswith(" "):
            kind = line.split()[0]
        elif line[:2] == "  " and line[2:3].strip():
            found.append(line.split()[0])
            assert CATALOG[found[-1]].kind == kind
    assert found == list(CATALOG)


def test_a_card_lists_its_theorems(veritune):
    outcome = veritune("objectives", "pmle")

    assert "theorems, checked by veritune lab pmle:" in outcome.out
    words = " ".join(outcome.out.split())
    for theorem in theorems_about("pmle"):
        assert theorem.claim in words


def test_a_card_names_the_theorems_that_are_held_against_it_and_does_not_count_them(veritune):
    about, against = theorems_about("dr_grpo"), theorems_against("dr_grpo")
    assert about
    assert against
    assert not set(about) & set(against)

    words = " ".join(veritune("objectives", "dr_grpo").out.split())

    assert f"theorems held against it: {', '.join(t.name for t in against)}" in words
    assert all(theorem.claim in words for theorem in about)
    assert not any(theorem.claim in words for theorem in against)


def test_the_card_of_a_function_of_ones_own_says_which_laws_it_breaks(veritune, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from veritune.logprobs import PairedLogProbs\n"
        "def sound(pairs: PairedLogProbs, *, beta: float = 0.1):\n"
        "    return (beta * (pairs.chosen.log_ratio - pairs.rejected.log_ratio) - 1) ** 2\n"
        "def wild(pairs: PairedLogProbs):\n"
        "    return (pairs.rejected.log_ratio - pairs.chosen.log_ratio).exp()\n"
    )

    sound, wild = (veritune("objectives", f"{tmp_path}/mine.py:{n}") for n in ("sound", "wild"))

    assert sound.code == wild.code == 0
    assert "none; all" in sound.out
    assert "finite at extreme log ratios" in wild.out


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


@pytest.mark.parametrize("name", CATALOG)
def test_every_card_is_shown(name, veritune):
    """Also of an objective whose hyper-parameters have no default."""
    outcome = veritune("objectives", name)

    assert outcome.code == 0
    assert outcome.out.startswith(f"{name}: ")


def test_laws_of_a_function_without_a_default_are_not_checked_and_it_says_so(veritune, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from veritune.logprobs import PairedLogProbs\n"
        "def mine(pairs: PairedLogProbs, *, scale: float):\n"
        "    return scale * pairs.chosen.policy\n"
    )

    outcome = veritune("objectives", f"{tmp_path}/mine.py:mine")

    assert outcome.code == 0
    assert "not checked without a default of scale" in outcome.out
