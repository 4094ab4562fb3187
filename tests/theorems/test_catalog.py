from importlib import import_module
from pathlib import Path

from veritune.laboratory import theorems
from veritune.laboratory.theorems.catalog import THEOREMS
from veritune.objectives.catalog import CATALOG

ALGORITHMS = {"apo", "optidice", "oppo", "rso"}


def test_every_theorem_of_every_file_is_listed_once():
    folder = Path(theorems.__file__).parent
    families = [f.stem for f in folder.glob("*.py") if f.stem not in ("__init__", "catalog")]
    written = [
        theorem.name
        for family in families
        for theorem in import_module(f"{theorems.__name__}.{family}").THEOREMS
    ]

    assert sorted(theorem.name for theorem in THEOREMS) == sorted(written)
    assert len(set(written)) == len(written)


def test_every_method_is_an_objective_of_the_catalog_or_a_known_algorithm():
    for theorem in THEOREMS:
        assert theorem.methods
        assert {*theorem.methods, *theorem.contrasts} <= set(CATALOG) | ALGORITHMS


def test_no_method_is_both_what_a_theorem_is_about_and_what_it_is_held_against():
    for theorem in THEOREMS:
        names = (*theorem.methods, *theorem.contrasts)
        assert len(set(names)) == len(names), theorem.name


def test_every_theorem_says_what_is_claimed_by_whom_and_what_is_false():
    for theorem in THEOREMS:
        assert theorem.claim.endswith(".")
        assert theorem.control.endswith(".")
        assert theorem.source
        assert theorem.tolerance > 0
