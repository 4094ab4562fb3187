"""The frozen reference: what it is, and its log-probabilities from the cache.

The reference is scored once per group and never lives beside the policy: before the first update
the starting model is the reference, and another model is loaded, asked and let go. Scoring uses the
training path itself (layout, precision, head), so policy and reference agree where they are equal.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from veritune import distributed, seeds
from veritune.batches.pack import rows_by_budget
from veritune.errors import ReferenceCacheError
from veritune.models.cache import ReferenceCache
from veritune.models.forward import CausalModel
from veritune.models.load import ModelSource
from veritune.provenance import versions
from veritune.tokens.encode import TokenizedRecord

_NUM_CHECKED = 4
_ROWS_PER_FILE = 64
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

    def sums(self, group: TokenizedRecord) -> Float[Tensor, " K"]:
        """Sequence log-probability of each completion, float64, in nats.

        Raises:
            ReferenceCacheError: The group was never scored.
        """
        tokens, lengths = self._tokens(group)
        return torch.stack([part.double().sum() for part in torch.split(tokens, lengths)])

    def common_sums(self, pair: TokenizedRecord) -> Float[Tensor, " 2"]:
        """The same over the first tokens, as many as the shorter completion of a pair has."""
        tokens, lengths = self._tokens(pair)
        parts = torch.split(tokens, lengths)
        return torch.stack([part[: min(lengths)].double().sum() for part in parts])

    def _tokens(self, group: TokenizedRecord) -> tuple[Float[Tensor, " R"], list[int]]:
        lengths = [int(c.bears_loss.sum()) for c in group.completions]
        values = np.array(self.cache.get(group.key(), sum(lengths)))
        return torch.from_numpy(values), lengths


@torch.no_grad()
def score_reference(
    model: CausalModel,
    cache: ReferenceCache,
    groups: Iterable[TokenizedRecord],
    *,
    tokens_per_row: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Fill the cache with the log-probabilities of all groups; ranks share the work.

    Groups that the cache holds already are not scored, but a few of them are checked live.

    Args:
        model: The reference.
        cache: Where values are kept.
        groups: Groups that the run needs; repeats are scored once.
        tokens_per_row: Token budget of a row.
        seed: Chooses the cached groups that are checked.
        progress: Called with (groups done, groups to do) on this rank.

    Returns:
        The number of groups that were scored, over all ranks.

    Raises:
        ReferenceCacheError: A value is not finite, or a checked one is not what the model gives.
        SettingsError: Something is missing in the cache, and its folder cannot be written.
    """
    model.hf.eval()
    cache.load()
    unique = {group.key(): group for group in groups}
    present = [key for key in unique if key in cache]
    missing = [group for key, group in unique.items() if key not in cache]
    if missing:
        cache.check_writable()
    # Shared out by place among all groups: another run may fill the cache between the looks of two
    # ranks, and what is missing then differs.
    shares = list(unique.items())[distributed.rank() :: distributed.world_size()]
    distributed.barrier()
    _spot_check(model, cache, unique, present, seed)

    mine = [group for key, group in shares if key not in cache]
    sizes = [model.row_tokens(group) for group in mine]
    rows = rows_by_budget(sizes, tokens_per_row)
    done = 0
    entries: dict[bytes, np.ndarray[tuple[int], np.dtype[np.float32]]] = {}
    for number, row in enumerate(rows):
        batch = [mine[i] for i in row]
        tokens = model.token_logprobs(model.batch(batch, row)).cpu()
        counts = [sum(int(c.bears_loss.sum()) for c in group.completions) for group in batch]
        for group, values in zip(batch, torch.split(tokens, counts), strict=True):
            entries[group.key()] = values.numpy()
        done += len(row)
        if progress is not None:
            progress(done, len(mine))
        if (number + 1) % _ROWS_PER_FILE == 0:
            cache.add(entries)
            entries = {}
    cache.add(entries)
    distributed.barrier()
    cache.load()
    return len(missing)


def _spot_check(
    model: CausalModel,
    cache: ReferenceCache,
    groups: dict[bytes, TokenizedRecord],
    present: Sequence[bytes],
    seed: int,
) -> None:
    """Score a few cached groups again and compare."""
    if not present:
        return
    chosen = torch.randperm(len(present), generator=seeds.stream(seed, "spot check"))
    for index in chosen[:_NUM_CHECKED].tolist():
        group = groups[present[index]]
        live, lengths, _ = model.completion_logprobs(model.batch([group], [0]))
        kept = ReferenceLogProbs(cache).sums(group)
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
