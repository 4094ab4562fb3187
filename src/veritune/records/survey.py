"""Whole-set checks: what is true of a set of records and of no single one.

Everything is counted by content hashes in one pass, so time and memory grow linearly.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from veritune.records.content import content_key, prompt_key
from veritune.records.kinds import Paired, Record, Scored, Unpaired
from veritune.records.validate import is_empty

CountedT = TypeVar("CountedT", int, str)


@dataclass(frozen=True)
class Survey:
    """What a set of records holds; the same for every order of the records.

    A prompt is counted with its tools: the same words with other tools are another prompt.
    """

    num_records: int
    num_by_kind: Mapping[str, int]
    num_prompts: int
    """Distinct prompts."""

    num_duplicates: int
    """Records that repeat an earlier one in every part; removing them changes only weights."""

    num_by_completions: Mapping[int, int]
    """Number of completions of a record, K, to the number of such records."""

    num_identical_pairs: int
    """Pairs whose completions are the same."""

    num_empty_completions: int

    num_reversed_pairs: int
    """Pairs of completions of one prompt that occur in both orders."""

    num_cyclic_prompts: int
    """Prompts whose preferences run in a circle of three or more (A over B over C over A), so
    that no reward explains them all; reversed pairs are not counted here."""

    num_conflicting_labels: int
    """Completions of one prompt that are labelled desirable and undesirable."""

    desirable_fraction: float | None
    """Share of labels that are desirable; None without labels."""

    num_prompts_with_several_labels: int

    desirable_fraction_range: tuple[float, float] | None
    """Smallest and largest share of desirable labels of a prompt, over prompts with several."""

    label_dispersion: float | None
    """How much the share of desirable labels varies between prompts with several labels, as a
    multiple of what chance would give if it were the same for all: 0 is no variation at all, about
    1 is chance, far above 1 means that some prompts are answered well and others badly. None
    with fewer than two such prompts, or with labels of one side only.

    Source: Pearson's chi-square statistic of homogeneity over its degrees of freedom."""

    score_range: tuple[float, float] | None
    """Smallest and largest score; None without scores."""

    num_with_ties: int
    """Scored records in which some two scores are equal."""

    num_all_tied: int
    """Scored records of several completions with one and the same score: no preference."""

    @property
    def num_conflicts(self) -> int:
        """Statements that contradict another: labels, reversed pairs and circles."""
        return self.num_conflicting_labels + self.num_reversed_pairs + self.num_cyclic_prompts


def survey_records(records: Sequence[Record]) -> Survey:
    """What the records hold, and where they contradict or repeat themselves."""
    pairs = [record for record in records if isinstance(record, Paired)]
    labelled = [record for record in records if isinstance(record, Unpaired)]
    scored = [record for record in records if isinstance(record, Scored)]
    finite = [score for record in scored for score in record.scores if math.isfinite(score)]
    several = [record for record in scored if len(record.scores) > 1]
    reversed_pairs, cyclic_prompts = _contradicting_preferences(pairs)
    by_prompt = [labels for labels in _labels_by_prompt(labelled).values() if len(labels) > 1]
    shares = [sum(labels) / len(labels) for labels in by_prompt]
    return Survey(
        num_records=len(records),
        num_by_kind=_sorted_counts(record.kind for record in records),
        num_prompts=len({prompt_key(record) for record in records}),
        num_duplicates=len(records) - len({content_key(record) for record in records}),
        num_by_completions=_sorted_counts(len(record.completions) for record in records),
        num_identical_pairs=sum(pair.chosen == pair.rejected for pair in pairs),
        num_empty_completions=sum(is_empty(c) for record in records for c in record.completions),
        num_reversed_pairs=reversed_pairs,
        num_cyclic_prompts=cyclic_prompts,
        num_conflicting_labels=_conflicting_labels(labelled),
        desirable_fraction=(
            sum(record.desirable for record in labelled) / len(labelled) if labelled else None
        ),
        num_prompts_with_several_labels=len(by_prompt),
        desirable_fraction_range=(min(shares), max(shares)) if shares else None,
        label_dispersion=_label_dispersion(by_prompt),
        score_range=(min(finite), max(finite)) if finite else None,
        num_with_ties=sum(len(set(record.scores)) < len(record.scores) for record in several),
        num_all_tied=sum(len(set(record.scores)) == 1 for record in several),
    )


def prompts_in_common(ours: Iterable[Record], theirs: Iterable[Record]) -> tuple[Record, ...]:
    """Of each prompt that occurs in both sets, the first record of ours.

    Tools do not count here: a held-out set that shares a prompt's words is not held out.
    """
    their_prompts = {content_key(record.prompt) for record in theirs}
    found: dict[bytes, Record] = {}
    for record in ours:
        key = content_key(record.prompt)
        if key in their_prompts:
            found.setdefault(key, record)
    return tuple(found.values())


def _sorted_counts(values: Iterable[CountedT]) -> dict[CountedT, int]:
    return dict(sorted(Counter(values).items()))


def _contradicting_preferences(pairs: Sequence[Paired]) -> tuple[int, int]:
    """Number of reversed pairs, and number of prompts with a longer circle."""
    by_prompt: dict[bytes, set[tuple[bytes, bytes]]] = defaultdict(set)
    for pair in pairs:
        better, worse = content_key(pair.chosen), content_key(pair.rejected)
        if better != worse:
            by_prompt[prompt_key(pair)].add((better, worse))
    num_reversed = num_cyclic = 0
    for edges in by_prompt.values():
        one_way = {(better, worse) for better, worse in edges if (worse, better) not in edges}
        num_reversed += (len(edges) - len(one_way)) // 2
        num_cyclic += _has_cycle(one_way)
    return num_reversed, num_cyclic


def _has_cycle(edges: set[tuple[bytes, bytes]]) -> bool:
    """True if taking away what nothing is preferred to, again and again, does not end at nothing.

    Source: Kahn 1962, topological sorting of large networks.
    """
    worse_than: dict[bytes, list[bytes]] = defaultdict(list)
    num_better: Counter[bytes] = Counter()
    for better, worse in edges:
        worse_than[better].append(worse)
        num_better[worse] += 1
    free = [node for node in worse_than if num_better[node] == 0]
    num_taken = 0
    while free:
        for worse in worse_than.get(free.pop(), ()):
            num_taken += 1
            num_better[worse] -= 1
            if num_better[worse] == 0:
                free.append(worse)
    return num_taken < len(edges)


def _labels_by_prompt(records: Sequence[Unpaired]) -> dict[bytes, list[bool]]:
    labels: dict[bytes, list[bool]] = defaultdict(list)
    for record in records:
        labels[prompt_key(record)].append(record.desirable)
    return labels


def _conflicting_labels(records: Sequence[Unpaired]) -> int:
    labels: dict[tuple[bytes, bytes], set[bool]] = defaultdict(set)
    for record in records:
        labels[prompt_key(record), content_key(record.completion)].add(record.desirable)
    return sum(len(seen) == 2 for seen in labels.values())


def _label_dispersion(by_prompt: Sequence[Sequence[bool]]) -> float | None:
    num_labels = sum(len(labels) for labels in by_prompt)
    num_desirable = sum(sum(labels) for labels in by_prompt)
    if len(by_prompt) < 2 or num_desirable in (0, num_labels):
        return None
    share = num_desirable / num_labels
    # fsum rounds once, so the order of the prompts does not show.
    chi_square = math.fsum(
        (sum(labels) - len(labels) * share) ** 2 / (len(labels) * share * (1 - share))
        for labels in by_prompt
    )
    return chi_square / (len(by_prompt) - 1)
