"""One kind of record to another; each conversion says what it discards."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Generic, TypeVar

from veritune.errors import DataError
from veritune.records.content import prompt_key
from veritune.records.kinds import (
    Demonstration,
    Paired,
    Prompt,
    Record,
    Scored,
    Text,
    Unpaired,
)

RecordT = TypeVar("RecordT", bound=Record, covariant=True)


@dataclass(frozen=True)
class Converted(Generic[RecordT]):
    """Records of another kind, and what they no longer say."""

    records: tuple[RecordT, ...]
    discarded: Mapping[str, int]
    """What was left out, in words, to how many of it; empty if nothing was."""


def best_against_worst(records: Sequence[Scored]) -> Converted[Paired]:
    """Of each record the completion of the highest score over that of the lowest.

    Of several with the same score the first is taken.
    """
    pairs: list[Paired] = []
    discarded: Counter[str] = Counter()
    for record in records:
        if len(record.completions) < 2:
            discarded["records with one completion"] += 1
        elif len(set(record.scores)) == 1:
            discarded["records whose scores are all equal"] += 1
        else:
            best, worst = _first_best(record), record.scores.index(min(record.scores))
            if record.completions[best] == record.completions[worst]:
                discarded["pairs of identical completions"] += 1
            else:
                pairs.append(_pair(record, best, worst))
                discarded["completions between best and worst"] += len(record.completions) - 2
    return Converted(tuple(pairs), dict(+discarded))


def all_ordered_pairs(records: Sequence[Scored]) -> Converted[Paired]:
    """Of each record every two completions of different score, the higher over the lower."""
    pairs: list[Paired] = []
    discarded: Counter[str] = Counter()
    for record in records:
        if len(record.completions) < 2:
            discarded["records with one completion"] += 1
        for one, other in combinations(range(len(record.completions)), 2):
            if record.scores[one] == record.scores[other]:
                discarded["pairs of equal score"] += 1
            elif record.completions[one] == record.completions[other]:
                discarded["pairs of identical completions"] += 1
            elif record.scores[one] > record.scores[other]:
                pairs.append(_pair(record, one, other))
            else:
                pairs.append(_pair(record, other, one))
    return Converted(tuple(pairs), dict(discarded))


def labels_from_pairs(records: Sequence[Paired]) -> Converted[Unpaired]:
    """Chosen as desirable, and next to it rejected as undesirable.

    Lost is which completion was compared with which: a rejected completion may be a good one.
    """
    labels = tuple(
        Unpaired(record.prompt, completion, desirable, record.origin, record.rendering)
        for record in records
        for completion, desirable in ((record.chosen, True), (record.rejected, False))
    )
    return Converted(labels, {"comparisons": len(records)} if records else {})


def labels_from_scores(records: Sequence[Scored], *, threshold: float) -> Converted[Unpaired]:
    """Completions of at least this score as desirable, all others as undesirable."""
    labels = tuple(
        Unpaired(record.prompt, completion, score >= threshold, record.origin, record.rendering)
        for record in records
        for completion, score in zip(record.completions, record.scores, strict=True)
    )
    return Converted(labels, {"values of scores": len(labels)} if labels else {})


def scores_from_pairs(records: Sequence[Paired]) -> Converted[Scored]:
    """Chosen with score 1 next to rejected with score 0, as EXO's pipeline feeds pairs.

    Nothing is discarded; the scale of the scores is a convention, which a reward temperature
    divides.

    Source:
        Ji et al. 2024, arXiv:2402.00856, released pipeline.
    """
    scored = [
        Scored(r.prompt, (r.chosen, r.rejected), (1.0, 0.0), r.origin, r.rendering) for r in records
    ]
    return Converted(tuple(scored), {})


def prompts_alone(records: Sequence[Record]) -> Converted[Prompt]:
    """Each distinct prompt once, where it first occurs."""
    prompts: dict[bytes, Prompt] = {}
    discarded: Counter[str] = Counter()
    for record in records:
        discarded["completions"] += len(record.completions)
        key = prompt_key(record)
        if key in prompts:
            discarded["repeated prompts"] += 1
        else:
            prompts[key] = Prompt(record.prompt, record.origin, record.rendering)
    return Converted(tuple(prompts.values()), dict(+discarded))


def demonstrations(records: Sequence[Record]) -> Converted[Demonstration]:
    """Completions worth imitating: chosen, desirable, or the first of the highest score.

    Raises:
        DataError: A record is a prompt alone.
    """
    shown: list[Demonstration] = []
    discarded: Counter[str] = Counter()
    for record in records:
        completion = _worth_imitating(record, discarded)
        if completion is not None:
            shown.append(Demonstration(record.prompt, completion, record.origin, record.rendering))
    return Converted(tuple(shown), dict(+discarded))


def convert_records(records: Sequence[Record], kind: str) -> Converted[Record]:
    """The records as another kind, by the conversion that needs no further choice.

    Scored become paired by `best_against_worst`, paired scored by `scores_from_pairs`. Records of
    that kind already are kept as they are.

    Raises:
        DataError: The records do not say what that kind needs, or a choice must be made.
    """
    kinds = sorted({record.kind for record in records})
    if kinds in ([], [kind]):
        return Converted(tuple(records), {})
    if kind == "prompt":
        return prompts_alone(records)
    if kind == "demonstration" and "prompt" not in kinds:
        return demonstrations(records)
    if kind == "paired" and kinds == ["scored"]:
        return best_against_worst([record for record in records if isinstance(record, Scored)])
    if kind == "unpaired" and kinds == ["paired"]:
        return labels_from_pairs([record for record in records if isinstance(record, Paired)])
    if kind == "scored" and kinds == ["paired"]:
        return scores_from_pairs([record for record in records if isinstance(record, Paired)])
    fix = f"give records that are {kind}, or choose another objective"
    if kind == "unpaired" and kinds == ["scored"]:
        fix = "choose the score from which on a completion is desirable, and write labels "
        fix += "(labels_from_scores of veritune.records.convert does it)"
    raise DataError(
        f"{' and '.join(kinds)} records cannot become {kind} without a further choice",
        where=records[0].origin.file,
        why="they do not say what that kind needs",
        fix=fix,
    )


def _first_best(record: Scored) -> int:
    return record.scores.index(max(record.scores))


def _pair(record: Scored, better: int, worse: int) -> Paired:
    chosen, rejected = record.completions[better], record.completions[worse]
    return Paired(record.prompt, chosen, rejected, record.origin, record.rendering)


def _worth_imitating(record: Record, discarded: Counter[str]) -> Text | None:
    match record:
        case Demonstration():
            return record.completion
        case Paired():
            discarded["rejected completions"] += 1
            return record.chosen
        case Unpaired(desirable=True):
            return record.completion
        case Unpaired():
            discarded["undesirable completions"] += 1
            return None
        case Scored():
            discarded["completions below the best"] += len(record.completions) - 1
            return record.completions[_first_best(record)]
        case Prompt():
            raise DataError(
                "a prompt alone shows no completion",
                where=record.origin,
                fix="give records with completions",
            )
