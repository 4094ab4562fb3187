import pytest

from veritune.laboratory.languages import FiniteLanguage


def test_a_finite_language_holds_every_string_once_shorter_ones_first():
    assert FiniteLanguage(("a", "b"), longest=2).strings == ("a", "b", "aa", "ab", "ba", "bb")


def test_a_finite_language_has_the_sum_of_powers_of_its_alphabet():
    language = FiniteLanguage(("x", "y", "z"), longest=4)

    assert len(language) == len(set(language.strings)) == 3 + 9 + 27 + 81


def test_an_alphabet_that_spells_a_string_in_two_ways_is_refused():
    with pytest.raises(AssertionError, match="spelled in one way"):
        FiniteLanguage(("a", "aa"), longest=2)
