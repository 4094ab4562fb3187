"""The bibliography: the papers that the code cites, as BibTeX, found by what a source says."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

_FILE = Path(__file__).with_suffix(".bib")
_ENTRY = re.compile(r"^@(\w+)\{([\w-]+),\n(.*?)^\}$", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"^  (\w+) = \{(.*?)\},$", re.MULTILINE | re.DOTALL)
_ARXIV = re.compile(r"arxiv(?::|\.org/(?:abs|pdf|html)/)\s*(\d{4}\.\d{4,5})", re.IGNORECASE)


@dataclass(frozen=True)
class Entry:
    """One entry of a bibliography."""

    key: str
    """What `\\cite` is called with."""

    fields: Mapping[str, str]
    """Name to value, in the order of the file; a value is on one line."""

    text: str
    """The whole entry, as BibTeX reads it."""

    @property
    def arxiv(self) -> str | None:
        """The identifier on arXiv, without its prefix."""
        return self.fields.get("eprint")

    @property
    def surname(self) -> str:
        """The family name of the first author."""
        return self.fields["author"].split(" and ")[0].split(",")[0].strip("{}")


@cache
def bibliography() -> Mapping[str, Entry]:
    """Every paper that a card, a theorem or an algorithm names, by key."""
    entries = [
        Entry(key, MappingProxyType(_fields(body)), f"@{kind}{{{key},\n{body}}}")
        for kind, key, body in _ENTRY.findall(_FILE.read_text(encoding="utf-8"))
    ]
    return MappingProxyType({entry.key: entry for entry in entries})


def software_entry(version: str) -> Entry:
    """The entry of Veritune itself.

    Args:
        version: The one that was used.
    """
    body = (
        "  title = {Veritune},\n"
        "  author = {{The Veritune developers}},\n"
        f"  note = {{Software, version {version}}},\n"
    )
    return Entry("veritune", MappingProxyType(_fields(body)), f"@misc{{veritune,\n{body}}}")


def arxiv_identifiers(source: str) -> list[str]:
    """The identifiers that a source names, `arXiv:2305.18290` or a link, once each, in order."""
    return list(dict.fromkeys(_ARXIV.findall(source)))


def entry_of(identifier: str) -> Entry | None:
    """The entry of a paper on arXiv, if it is one that the code cites."""
    return next((e for e in bibliography().values() if e.arxiv == identifier), None)


def entries_named(source: str) -> list[Entry]:
    """The entries that a source of the code names.

    Papers on arXiv are named by their identifier, all others by first author and year, as in
    `Kanamori et al. 2009`.
    """
    found = [entry_of(identifier) for identifier in arxiv_identifiers(source)]
    found += [e for e in bibliography().values() if e.arxiv is None and _is_named(e, source)]
    return [entry for entry in found if entry is not None]


def _is_named(entry: Entry, source: str) -> bool:
    # No other year may stand between the two: that would be the year of another paper.
    return bool(re.search(rf"\b{entry.surname}\b[^\d;]*\b{entry.fields['year']}\b", source))


def _fields(body: str) -> dict[str, str]:
    return {name: " ".join(value.split()) for name, value in _FIELD.findall(body)}
