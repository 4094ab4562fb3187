"""The frozen reference: what it is, and its log-probabilities from the cache.

The reference is scored once per group and never lives beside the policy: before the first update
the starting model is the reference, and another model is loaded, asked and let go. Scoring uses the
training path itself (layout, precision, head), so policy and reference agree where they are equal.

Groups are made when their row is: beside the rows at work, a group is a few numbers in flat arrays.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from veritune import distributed, seeds
from veritune.errors import ReferenceCacheError
from veritune.models.cache import KEY_BYTES, Keys, ReferenceCache, Values, keys_of
from veritune.models.forward import CausalModel, common_length_mask, sum_by_completion
from veritune.models.load import ModelSource
from veritune.provenance import versions
from veritune.tokens.encode import TokenizedRecord

_NUM_CHECKED = 4
_ROWS_ON_GPU = 4
_FILE_BYTES, _FILE_SECONDS = 16 * 2**20, 30.0
_FP32_PER_TOKEN, _BF16_PER_TOKEN = 1e-4, 0.1


def describe_reference(policy: ModelSource, reference: ModelSource | None) -> str:
    """What the reference is, for the header of a run."""
    if reference is None:
        return f"the starting model ({policy.name})"
    if reference.identity == policy.identity:
        return f"{reference.name} (the same weights as the starting model)"
    kind = "adapter" if reference.is_adapter else "model"
    return f"the {kind} {reference.name}"


def cache_identity(source: ModelSource, model: CausalModel) -> dict[str, str]:
    """Everything that reference log-probabilities depend on beside the tokens."""
    libraries = versions()
    return {
        "weights": source.identity,
        "precision": model.precision,
        "temperature": repr(model.temperature),
        "layout": model.sharing,
        "device": model.device.type,
        "torch": libraries["torch"],
        "transformers": libraries["transformers"],
    }


def noise_tolerance(model: CausalModel, num_tokens: int) -> float:
    """How far two computations of one sequence log-probability may differ by rounding, in nats.

    Rounding errors of tokens are nearly independent, so their sum grows with the root of the
    number of tokens. Rows of another composition round differently.
    """
    per_token = _FP32_PER_TOKEN if model.precision == "fp32" else _BF16_PER_TOKEN
    return per_token * math.sqrt(max(num_tokens, 1))


@dataclass(frozen=True)
class ReferenceLogProbs:
    """Looks up the reference's log-probabilities of groups."""

    cache: ReferenceCache

    def sums(self, groups: Sequence[TokenizedRecord]) -> Float[Tensor, " S"]:
        """Sequence log-probability of every completion, float64, in nats, group behind group.

        Raises:
            ReferenceCacheError: A group was never scored.
        """
        return _summed(*self._tokens(groups))

    def common_sums(self, pairs: Sequence[TokenizedRecord]) -> Float[Tensor, " S"]:
        """The same over the first tokens, as many as the shorter completion of a pair has."""
        tokens, lengths = self._tokens(pairs)
        return _summed(torch.where(common_length_mask(lengths), tokens, 0), lengths)

    def _tokens(
        self, groups: Sequence[TokenizedRecord]
    ) -> tuple[Float[Tensor, " R"], Int[Tensor, " S"]]:
        lengths = [_lengths(group) for group in groups]
        counts = np.array([sum(group) for group in lengths], np.int64)
        values = self.cache.gather(keys_of(group.key() for group in groups), counts)
        flat = torch.tensor([n for group in lengths for n in group], dtype=torch.int64)
        return torch.from_numpy(values), flat


@dataclass(frozen=True)
class ReferenceCounts:
    """Where the values of the different groups of a run came from, over all ranks."""

    num_scored: int
    num_cached: int


def scoring_budget(device: torch.device) -> int:
    """How many times the tokens of a row with gradients a row without them holds.

    On a GPU larger rows take fewer calls, and without gradients there is memory for them. On a CPU
    they only leave its caches.
    """
    return 1 if device.type == "cpu" else _ROWS_ON_GPU


# Not in inference mode: a tensor that a layer keeps for later (a mask, a gathered shard) could then
# have no part in training, and the bookkeeping that is saved is below what can be measured.
@torch.no_grad()
def score_reference(
    model: CausalModel,
    cache: ReferenceCache,
    groups: Sequence[TokenizedRecord],
    *,
    tokens_per_row: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> ReferenceCounts:
    """Fill the cache with the log-probabilities of all groups; ranks share the work.

    Groups that the cache holds already are not scored, but a few of them are checked live. Rows
    hold groups of about one length, so that segments of one shape go through attention together;
    the longest come first, so that too little memory shows at once.

    Args:
        model: The reference.
        cache: Where values are kept.
        groups: Groups that the run needs, asked for one by one; repeats are scored once.
        tokens_per_row: Token budget of a row; halved as often as a GPU has not enough memory.
        seed: Chooses the cached groups that are checked.
        progress: Called with (tokens done, tokens to do) on this rank.

    Raises:
        ReferenceCacheError: A value is not finite, or a checked one is not what the model gives.
        SettingsError: Something is missing in the cache, and its folder cannot be written.
    """
    model.hf.eval()
    cache.load()
    needed = _longest_first(model, groups)
    is_held = cache.holds(needed.keys)
    if not is_held.all():
        cache.check_writable()
    distributed.barrier()
    _spot_check(model, cache, groups, needed.numbers[is_held], seed)
    # Shared out by place among all groups: another run may fill the cache between the looks of two
    # ranks, and what is missing then differs.
    places = np.arange(distributed.rank(), len(is_held), distributed.world_size())
    mine = needed.at(places[~is_held[places]])
    _score(model, cache, groups, mine, tokens_per_row, progress)
    distributed.barrier()
    cache.load()
    num_cached = int(is_held.sum())
    return ReferenceCounts(len(is_held) - num_cached, num_cached)


@dataclass(frozen=True)
class _Needed:
    """N different groups in the order in which they are scored, by what scoring asks of them."""

    keys: Keys
    numbers: NDArray[np.int64]
    """Where each group stands in the sequence that it is made from."""

    row_tokens: NDArray[np.int32]
    longest: NDArray[np.int32]
    """Tokens of the prompt with the longest completion."""

    num_completions: NDArray[np.int32]

    def at(self, places: NDArray[np.int64]) -> "_Needed":
        """Some of them."""
        return _Needed(
            self.keys[places],
            self.numbers[places],
            self.row_tokens[places],
            self.longest[places],
            self.num_completions[places],
        )


def _longest_first(model: CausalModel, groups: Sequence[TokenizedRecord]) -> _Needed:
    """The different ones among groups; behind each other those of one shape."""
    keys = np.empty((len(groups), KEY_BYTES), np.uint8)
    sizes = np.empty((4, len(groups)), np.int32)
    for number in range(len(groups)):
        group = groups[number]
        keys[number] = np.frombuffer(group.key(), np.uint8)
        sizes[:, number] = (
            model.row_tokens(group),
            group.longest,
            len(group.completions),
            len(group.prompt),
        )
    flat = keys.view(f"V{KEY_BYTES}")[:, 0]
    _, first = np.unique(flat, return_index=True)
    row_tokens, longest, num_completions, prompt = sizes[:, first]
    order = np.lexsort((prompt, row_tokens, longest))[::-1]
    chosen = first[order]
    return _Needed(flat[chosen], chosen, row_tokens[order], longest[order], num_completions[order])


def _score(
    model: CausalModel,
    cache: ReferenceCache,
    groups: Sequence[TokenizedRecord],
    needed: _Needed,
    budget: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Score groups row by row and hand their values to the cache."""
    # A padded row is as long as its first sequence, for every sequence; others are as they are.
    is_padded = model.sharing == "padded"
    costs = needed.num_completions if is_padded else needed.row_tokens
    ends = np.concatenate([[0], np.cumsum(costs, dtype=np.int64)])
    done = np.concatenate([[0], np.cumsum(needed.row_tokens, dtype=np.int64)])
    kept = _Kept(cache)
    start, waiting = 0, None

    while start < len(needed.keys):
        room = budget // needed.longest[start] if is_padded else budget
        stop = max(start + 1, int(np.searchsorted(ends, ends[start] + room, side="right")) - 1)
        numbers = needed.numbers[start:stop].tolist()
        row = [groups[number] for number in numbers]
        batch = model.batch(row, numbers)
        if waiting is not None:
            # A device computes a row while the next one is laid out.
            kept.add(*waiting)
            waiting = None
            if progress is not None:
                progress(int(done[start]), int(done[-1]))
        try:
            tokens = model.token_logprobs(batch)
        except torch.OutOfMemoryError:
            if stop == start + 1:
                raise
            budget = int(done[stop] - done[start]) // 2
            continue
        waiting = needed.keys[start:stop], [sum(_lengths(group)) for group in row], tokens
        start = stop
    if waiting is not None:
        kept.add(*waiting)
        if progress is not None:
            progress(int(done[-1]), int(done[-1]))
    kept.write()


class _Kept:
    """Values on their way to the cache, in files large enough and soon enough.

    A million groups make some hundred files, and a run that is stopped loses half a minute's work.
    """

    def __init__(self, cache: ReferenceCache) -> None:
        self._cache = cache
        self._start()

    def _start(self) -> None:
        self._entries: dict[bytes, Values] = {}
        self._bytes, self._since = 0, time.monotonic()

    def add(self, keys: Keys, counts: Sequence[int], tokens: Float[Tensor, " R"]) -> None:
        """Keep the values of a row: so many of the group with each key, one behind the other."""
        parts = torch.split(tokens.cpu(), list(counts))
        for key, values in zip(keys, parts, strict=True):
            self._entries[key.tobytes()] = values.numpy()
        self._bytes += 4 * len(tokens)
        if self._bytes >= _FILE_BYTES or time.monotonic() - self._since >= _FILE_SECONDS:
            self.write()

    def write(self) -> None:
        """Write what has come since the last file."""
        self._cache.add(self._entries)
        self._start()


def _spot_check(
    model: CausalModel,
    cache: ReferenceCache,
    groups: Sequence[TokenizedRecord],
    present: NDArray[np.int64],
    seed: int,
) -> None:
    """Score a few cached groups again and compare."""
    chosen = torch.randperm(len(present), generator=seeds.stream(seed, "spot check"))
    for place in chosen[:_NUM_CHECKED].tolist():
        group = groups[int(present[place])]
        live, lengths, _ = model.completion_logprobs(model.batch([group], [0]))
        kept = ReferenceLogProbs(cache).sums([group])
        error = (live.cpu() - kept).abs().max().item()
        tolerance = noise_tolerance(model, int(lengths.max()))
        if not error <= tolerance:
            raise ReferenceCacheError(
                "cached reference log-probabilities are not what the reference gives now",
                where=cache.folder,
                got=f"a difference of {error:.3g} nats for {group.origin} (tolerance "
                f"{tolerance:.2g})",
                why="log-ratios would start from a wrong reference",
                fix="remove the folder; it is made again",
            )


def _lengths(group: TokenizedRecord) -> list[int]:
    """Loss-bearing tokens of each completion."""
    return [int(np.count_nonzero(completion.bears_loss)) for completion in group.completions]


def _summed(tokens: Float[Tensor, " R"], lengths: Int[Tensor, " S"]) -> Float[Tensor, " S"]:
    """Sums over completions that lie one behind the other."""
    owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    return sum_by_completion(tokens, owner, len(lengths))
