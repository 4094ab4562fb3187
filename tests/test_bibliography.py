import re
import unicodedata
from pathlib import Path

import pytest
import yaml

import veritune
from veritune import rejection
from veritune.bibliography import (
    arxiv_identifiers,
    bibliography,
    entries_named,
    entry_of,
    software_entry,
)
from veritune.bridge import EVERY_THEOREM
from veritune.laboratory import apo, oppo, optidice
from veritune.objectives.catalog import CATALOG
from veritune.objectives.parameters import source

FILE = Path(veritune.__file__).with_name("bibliography.bib")
CITATION = Path(__file__).parents[1] / "CITATION.cff"
TEXT = FILE.read_text(encoding="utf-8")

FIELDS = {
    "article": {"title", "author", "year", "journal", "volume", "pages", "url"},
    "inproceedings": {"title", "author", "year", "booktitle", "url"},
    "misc": {"title", "author", "year", "url"},
}
"""What every entry of a kind has."""

ALSO = {"eprint", "archivePrefix", "volume", "number"}
"""What an entry may have besides."""

SOURCES = {
    **{
        f"objective {name}": f"{card.source}; {source(card.loss)}" for name, card in CATALOG.items()
    },
    **{f"theorem {theorem.name}": theorem.source for theorem in EVERY_THEOREM},
    **{
        f"function {function.__name__}": source(function)
        for module in (apo, oppo, optidice, rejection)
        for function in vars(module).values()
        if callable(function) and getattr(function, "__module__", "") == module.__name__
        if function.__doc__
    },
}
"""Everything in the code that is citable, and the source it gives."""


def parsed(text: str) -> list[tuple[str, str, dict[str, str]]]:
    """Kind, key and fields of every entry, by reading one character after the other as BibTeX does.

    Written apart from the code under test, and strict: whatever is out of place is an error.
    """
    found = []
    at = text.find("@")
    while at >= 0:
        head = re.compile(r"@(\w+)\{([^\s,{}]+),").match(text, at)
        assert head, f"an entry begins with @kind{{key, and this does not: {text[at : at + 40]!r}"
        fields: dict[str, str] = {}
        at = head.end()
        while not (end := re.compile(r"\s*\}").match(text, at)):
            field = re.compile(r"\s*(\w+)\s*=\s*\{").match(text, at)
            assert field, (
                f"{head[2]}: a field is name = {{, and this is not: {text[at : at + 40]!r}"
            )
            assert field[1] not in fields, f"{head[2]}: {field[1]} is given twice"
            depth, at = 1, field.end()
            while depth:
                assert at < len(text), f"{head[2]}: the braces of {field[1]} are not closed"
                assert text[at] != "@", f"{head[2]}: another entry begins inside of {field[1]}"
                depth += {"{": 1, "}": -1}.get(text[at], 0)
                at += 1
            fields[field[1]] = " ".join(text[field.end() : at - 1].split())
            assert text[at] == ",", f"{head[2]}: a comma ends {field[1]}"
            at += 1
        found.append((head[1], head[2], fields))
        at = text.find("@", end.end())
    return found


ENTRIES = parsed(TEXT)
KEYS = [key for _, key, _ in ENTRIES]


def plain(name: str) -> str:
    """Letters and digits alone, without accents, in lower case."""
    without_commands = re.sub(r"\\[^a-zA-Z]", "", name)
    decomposed = unicodedata.normalize("NFKD", without_commands)
    return re.sub(r"[^a-z0-9]", "", decomposed.lower())


@pytest.mark.parametrize(("kind", "key", "fields"), ENTRIES, ids=KEYS)
def test_an_entry_has_the_fields_of_its_kind_and_a_key_that_says_what_it_is(kind, key, fields):
    assert fields.keys() >= FIELDS[kind]
    assert fields.keys() <= FIELDS[kind] | ALSO
    assert all(fields.values())
    authors = fields["author"].split(" and ")
    assert all(re.fullmatch(r"[^,]+, [^,]+", author) for author in authors), "Family, Given"
    assert len(set(authors)) == len(authors)
    words = re.findall(r"\w+", fields["title"])
    first_word = next(word for word in words if word not in ("A", "An", "The"))
    assert key == plain(authors[0].split(",")[0] + fields["year"] + first_word)


@pytest.mark.parametrize(("kind", "key", "fields"), ENTRIES, ids=KEYS)
def test_an_entry_on_arxiv_says_so_in_each_field_alike(kind, key, fields):
    assert ("eprint" in fields) == ("archivePrefix" in fields) == ("arxiv.org" in fields["url"])
    if "eprint" not in fields:
        return
    assert fields["archivePrefix"] == "arXiv"
    assert fields["url"] == f"https://arxiv.org/abs/{fields['eprint']}"
    # A venue is at most two years behind the preprint, and never before it.
    preprint = 2000 + int(fields["eprint"][:2])
    assert preprint <= int(fields["year"]) <= preprint + (0 if kind == "misc" else 2)


def test_keys_and_identifiers_are_unique_and_in_order():
    identifiers = [fields["eprint"] for *_, fields in ENTRIES if "eprint" in fields]
    assert sorted(set(KEYS)) == KEYS
    assert len(identifiers) == len(set(identifiers))
    assert not any(letter in TEXT.partition("@")[0] for letter in "{}%")


def test_the_reader_finds_what_the_file_says():
    read = [(e.key, dict(e.fields)) for e in bibliography().values()]
    assert read == [(key, fields) for _, key, fields in ENTRIES]
    for entry in bibliography().values():
        [(_, key, fields)] = parsed(entry.text)
        assert (key, fields) == (entry.key, dict(entry.fields))
        assert entry.text in TEXT


@pytest.mark.parametrize("what", SOURCES)
def test_every_paper_that_a_source_names_has_an_entry(what):
    for identifier in arxiv_identifiers(SOURCES[what]):
        entry = entry_of(identifier)
        assert entry is not None, f"add arXiv:{identifier} to {FILE.name}"
        assert entry in entries_named(SOURCES[what])


def test_every_objective_has_an_entry_and_every_entry_is_named_by_some_source():
    named = {what: {entry.key for entry in entries_named(text)} for what, text in SOURCES.items()}
    assert [name for name in CATALOG if not named[f"objective {name}"]] == []
    assert set().union(*named.values()) == set(bibliography())


def test_the_author_whom_a_source_names_is_the_first_author_of_the_entry():
    """Two records of one fact, made apart: an identifier that is off by a digit shows here."""
    names = re.compile(
        r"([A-Z]\w+)(?:,? (?:et al\.|and|&)[^;\d]*|, [^;\d]*)? \d{4}, arXiv:(\d{4}\.\d{5})"
    )
    found = [match for text in SOURCES.values() for match in names.findall(text)]
    assert len(set(found)) > 25
    for surname, identifier in found:
        entry = entry_of(identifier)
        assert entry is not None
        assert surname in entry.surname.split(), identifier


def test_a_source_without_an_identifier_is_known_by_author_and_year():
    [mitchell] = entries_named("Mitchell 2023; derived here")
    assert mitchell.key == "mitchell2023note"
    assert entries_named("criterion of Sugiyama et al. 2008")[0].key == "sugiyama2008direct"
    assert entries_named("the baseline is that of Kool, van Hoof and Welling 2019.") != []
    for other in ("Mitchell 2024", "Mitchell et al. 2022; somebody else 2023", "Mitchells 2023"):
        assert entries_named(other) == []
    # By the preprint's year and a common name, two papers would be one.
    assert entries_named("Liu et al. 2024") == []


def test_identifiers_are_read_in_every_way_of_writing_them():
    text = "arXiv:2305.18290, eq. 7; https://arxiv.org/abs/2310.12036v2, arxiv: 2305.18290"
    assert arxiv_identifiers(text) == ["2305.18290", "2310.12036"]
    assert arxiv_identifiers("2305.18290 tokens, arXiv:23.1") == []


def test_veritune_is_cited_as_its_citation_file_says():
    stated = yaml.safe_load(CITATION.read_text(encoding="utf-8"))
    [(_, key, fields)] = parsed(software_entry("1.2.3").text)

    assert key == "veritune"
    assert fields["title"] == stated["title"]
    assert fields["author"] == "{" + " and ".join(a["name"] for a in stated["authors"]) + "}"
    assert "version 1.2.3" in fields["note"]


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("@misc{a,\n  title = {A {B},\n", "not closed"),
        ("@misc{a,\n  title = {A {B {C},\n}\n\n@misc{b,\n}\n", "another entry begins"),
        ("@misc{a,\n  title = {A}\n}\n", "a comma ends title"),
        ("@misc{a,\n  title = A,\n}\n", "a field is name"),
        ("@misc{a,\n  title = {A},\n  title = {B},\n}\n", "given twice"),
        ("@misc{a b,\n}\n", "an entry begins"),
    ],
)
def test_a_damaged_entry_is_found(text, finding):
    with pytest.raises(AssertionError, match=finding):
        parsed(text)
