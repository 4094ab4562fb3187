"""One record as the model sees it: its tokens as text, with those that bear loss marked."""

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from veritune.commands.display import Display
from veritune.tokens.dataset import TokenizedDataset
from veritune.tokens.encode import TextEncoder, TokenizedRecord

_SHOWN_TOKENS = 160
_LOSS_OPEN, _LOSS_CLOSE = "⟦", "⟧"


def names_of_completions(dataset: TokenizedDataset, index: int) -> Sequence[str]:
    """What the data say of each completion of a group."""
    match dataset.kind:
        case "paired":
            return ("chosen", "rejected")
        case "unpaired":
            return (
                "desirable completion" if dataset.desirable[index] else "undesirable completion",
            )
        case "scored":
            return [f"completion of score {score:g}" for score in dataset.scores[index]]
        case _:
            return ("completion",)


def show_example(
    group: TokenizedRecord, names: Sequence[str], encoder: TextEncoder, display: Display
) -> None:
    """One record as the model sees it; tokens that bear loss stand between brackets."""
    display.note(f"\n{group.origin}: prompt of {len(group.prompt)} tokens")
    display.console.print(_tokens_as_text(encoder, group.prompt, None), soft_wrap=True)
    for name, completion in zip(names, group.completions, strict=False):
        counted = int(completion.bears_loss.sum())
        display.note(
            f"{name}: {len(completion.ids)} tokens, {counted} bear loss (between "
            f"{_LOSS_OPEN} and {_LOSS_CLOSE})"
        )
        text = _tokens_as_text(encoder, completion.ids, completion.bears_loss)
        display.console.print(text, soft_wrap=True)


def _tokens_as_text(
    encoder: TextEncoder, ids: NDArray[np.int32], bears_loss: NDArray[np.bool_] | None
) -> Text:
    text = Text()
    half = _SHOWN_TOKENS // 2
    for start, stop in _parts(len(ids), half):
        if start:
            text.append(f" … {start - half} tokens … ", style="dim italic")
        mask = np.zeros(len(ids), bool) if bears_loss is None else bears_loss
        for counts, run in groupby(range(start, stop), key=lambda place: bool(mask[place])):
            places = list(run)
            decoded = encoder.tokenizer.decode(
                ids[places].tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            if counts:
                text.append(f"{_LOSS_OPEN}{_visible(decoded)}{_LOSS_CLOSE}", style="green")
            else:
                text.append(_visible(decoded))
    return text


def _visible(text: str) -> str:
    """The text with control characters as escapes, because a terminal would obey them."""
    return "".join(
        repr(c)[1:-1] if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text
    )


def _parts(length: int, half: int) -> Iterator[tuple[int, int]]:
    """The whole of a short text; the first and the last half of a long one."""
    if length <= 2 * half:
        yield 0, length
    else:
        yield 0, half
        yield length - half, length
