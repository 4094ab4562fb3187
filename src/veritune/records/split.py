"""Held-out sets by prompt, so that no prompt is on both sides."""

import math
from collections.abc import Sequence
from typing import TypeVar

from veritune.errors import SettingsError
from veritune.records.content import content_key
from veritune.records.kinds import Record
from veritune.seeds import stream_seed

RecordT = TypeVar("RecordT", bound=Record)

_SEEDS = 2**63


def split_by_prompt(
    records: Sequence[RecordT], fraction: float, seed: int
) -> tuple[tuple[RecordT, ...], tuple[RecordT, ...]]:
    """The records to train on, and the held-out ones.

    Each prompt draws its side from its own content and the seed, so records of a prompt stay
    together, and neither the order of the records nor adding others moves it. The share of
    prompts held out is therefore near the fraction, not exactly it. Of two prompts or more each
    side gets at least one; a single prompt is trained on.

    Args:
        records: Records of any kinds, in any order; both sides keep it. Tools do not count: the
            same words with other tools are the same prompt here.
        fraction: Share of the prompts to hold out, strictly between 0 and 1.
        seed: Another seed holds out other prompts.

    Raises:
        SettingsError: The fraction is out of its range.
    """
    if not 0 < fraction < 1:
        raise SettingsError(
            "the held-out fraction must be strictly between 0 and 1",
            got=fraction,
            fix="give for example 0.1",
        )
    draws = [prompt_draw(content_key(record.prompt), seed) for record in records]
    threshold = settled_threshold(fraction, min(draws, default=0), max(draws, default=0))
    sides = list(zip(records, draws, strict=True))
    train = tuple(record for record, draw in sides if draw >= threshold)
    return train, tuple(record for record, draw in sides if draw < threshold)


def prompt_draw(key: bytes, seed: int) -> float:
    """The number in [0, 1) that the prompt of a content key draws; below the threshold it is held
    out."""
    return stream_seed(seed, "split", key.hex()) / _SEEDS


def settled_threshold(fraction: float, lowest: float, highest: float) -> float:
    """The threshold below which draws are held out, such that neither side is without a prompt.

    It is the fraction, unless all draws lie on one side of it. Then the nearest draw goes to the
    other side; a single prompt is trained on.

    Args:
        fraction: The share of prompts to hold out.
        lowest: The smallest draw of all prompts.
        highest: The largest.
    """
    if lowest == highest:
        return 0.0
    if highest < fraction:
        return highest
    return fraction if lowest < fraction else math.nextafter(lowest, 1)
