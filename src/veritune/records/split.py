"""Held-out sets by prompt, so that no prompt is on both sides."""

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
    keys = [content_key(record.prompt) for record in records]
    draws = {key: stream_seed(seed, "split", key.hex()) / _SEEDS for key in keys}
    heldout = {key for key, draw in draws.items() if draw < fraction}
    if len(draws) == 1:
        heldout = set()
    elif draws and not heldout:
        heldout = {min(draws, key=lambda key: draws[key])}
    elif draws and len(heldout) == len(draws):
        heldout.remove(max(draws, key=lambda key: draws[key]))
    sides = list(zip(records, keys, strict=True))
    train = tuple(record for record, key in sides if key not in heldout)
    return train, tuple(record for record, key in sides if key in heldout)
