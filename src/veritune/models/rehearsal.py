"""A row carried through a model without weights: the memory it would take, before it is taken.

The skeleton is the model of a config whose tensors have shapes and no content. A row goes through
it on the training path itself, and every tensor that would be allocated is counted while it lives.
Nothing is computed, so a row of any length and a model of any size take a few seconds. What a
kernel does in many small calls is outlined: the tensors that it keeps and makes, at once.
"""

import logging
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from veritune.batches.batch import Batch, SegmentPlan
from veritune.models import attention, head_tiles
from veritune.models.adapters import AdapterConfig, attach_adapter
from veritune.models.attention_blocks import lay_blocks, most_scores
from veritune.models.attention_kernels import ScoreRule
from veritune.models.forward import CausalModel, Precision, Sharing
from veritune.models.load import checkpoint_activations, empty_hf_model
from veritune.records.kinds import Origin
from veritune.tokens.encode import TokenizedCompletion, TokenizedRecord

_OUTLINED_TARGETS = 4096
"""Most targets that the head of a skeleton sees; with more it would take minutes and no more."""

_TILE_BYTES = 2**26
"""Logits of the head of a skeleton that exist at a time."""

_BLOCK_ROWS = 128
"""Queries whose scores a GPU's kernel holds at a time."""


@dataclass(frozen=True)
class RowMemory:
    """What one row takes beside weights, gradients and the optimizer's state."""

    num_tokens: int
    """Tokens of the row, padding included."""

    activations: int
    """Bytes that the layers keep for the backward pass, or with the row."""

    peak: int
    """Most bytes that live at a time in the forward and backward pass, activations among them."""


@dataclass(frozen=True)
class GroupShape:
    """The lengths of a group, in tokens."""

    prompt: int
    completions: tuple[int, ...]

    def scaled(self, share: float) -> "GroupShape":
        """The same proportions, smaller; no piece is empty."""
        return GroupShape(
            max(1, round(self.prompt * share)),
            tuple(max(1, round(length * share)) for length in self.completions),
        )


class Skeleton:
    """A model without weights, to rehearse rows on.

    Args:
        config: The model's config.
        adapter: Adapters that are trained in place of the weights.
        dropout: Leave the config's dropout rates on.
        device_type: Where the model would train, "cpu" or "cuda".
    """

    def __init__(
        self,
        config: Any,
        *,
        adapter: AdapterConfig | None = None,
        dropout: bool = False,
        device_type: str = "cpu",
    ) -> None:
        self._device_type = device_type
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        with _quiet():
            self._hf = empty_hf_model(config, dropout=dropout)
            if adapter is not None:
                attach_adapter(self._hf, adapter, seed=0)
        with self._fake:
            _replace_tensors(self._hf)
        self._hf.train()
        self._known: dict[object, RowMemory] = {}

    def with_adapter(self, config: Any, adapter: AdapterConfig) -> "Skeleton":
        """The skeleton of the same model with adapters; `config` is the model's."""
        return Skeleton(config, adapter=adapter, device_type=self._device_type)

    @property
    def weight_bytes(self) -> int:
        """Parameters and buffers, adapters included."""
        tensors = [*self._hf.parameters(), *self._hf.buffers()]
        return sum(t.numel() * t.element_size() for t in tensors)

    @property
    def num_trained(self) -> int:
        """Parameters that are updated."""
        return sum(p.numel() for p in self._hf.parameters() if p.requires_grad)

    def row(
        self,
        shape: GroupShape,
        num_tokens: int,
        *,
        precision: Precision = "fp32",
        sharing: Sharing = "shared",
        checkpoint_every: int | None = None,
        backward: bool = True,
    ) -> RowMemory:
        """What a row of groups of one shape takes.

        Args:
            shape: The lengths of a group.
            num_tokens: About how many tokens the row holds; at least one group is in it.
            precision: As in a run.
            sharing: As in a run.
            checkpoint_every: Compute the activations of each n-th layer again; None keeps all.
            backward: With gradients; False is a row that is scored only.

        Raises:
            NotRehearsedError: The model's layers cannot be followed without content.
        """
        name = (shape, num_tokens, precision, sharing, checkpoint_every, backward)
        if name not in self._known:
            model = CausalModel(
                self._hf, precision=precision, sharing=sharing, device_type=self._device_type
            )
            groups = made_up_groups(shape, num_tokens, model)
            row = Row.of(model, groups).outlined()
            try:
                with _quiet(), _outlined(self._device_type), self._fake:
                    _set_checkpointing(self._hf, checkpoint_every)
                    for parameter in self._hf.parameters():
                        parameter.grad = (
                            torch.zeros_like(parameter) if parameter.requires_grad else None
                        )
                    self._known[name] = rehearse(model, row, backward=backward)
            # Whatever a model's code does with content that is not there.
            except Exception as error:
                raise NotRehearsedError(f"{type(error).__name__}: {error}") from error
        return self._known[name]


class NotRehearsedError(Exception):
    """The model's layers depend on the content of tensors, so a skeleton cannot run."""


@dataclass(frozen=True)
class Row:
    """A row, and how many of its targets the head sees at a time."""

    batch: Batch
    at_once: int | None
    """None is all of them."""

    is_outline: bool = False
    """Whether the head sees so many only once, which is all that its memory depends on."""

    def outlined(self) -> "Row":
        """The same row for a skeleton."""
        most = _OUTLINED_TARGETS if self.at_once is None else self.at_once
        return replace(self, at_once=min(most, _OUTLINED_TARGETS), is_outline=True)

    @staticmethod
    def of(model: CausalModel, groups: Sequence[TokenizedRecord]) -> "Row":
        """Groups as a step of training lays them out: the head takes whole groups, one at least."""
        most = model.targets_at_once
        largest = max(sum(int(c.bears_loss.sum()) for c in g.completions) for g in groups)
        at_once = None if most is None else max(most, largest)
        return Row(model.batch(groups, range(len(groups))), at_once)


def carry(model: CausalModel, row: Row, *, backward: bool = True) -> None:
    """The passes of a step over one row, for the sum of its log-probabilities.

    Args:
        model: The model; gradients are added to those of its parameters.
        row: The row.
        backward: Also the backward pass; False is a row that is scored only.
    """
    states = model.predicting_states(row.batch)
    targets = row.batch.targets
    at_once = row.at_once or len(targets)
    if not (backward and states.requires_grad):
        seen = slice(at_once if row.is_outline else None)
        model.target_logprobs(states[seen], targets[seen])
        return
    gradient = torch.empty_like(states)
    for first in range(0, at_once if row.is_outline else len(targets), at_once):
        part = slice(first, first + at_once)
        leaf = states[part].detach().requires_grad_()
        model.target_logprobs(leaf, targets[part]).sum().backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None, "the log-probabilities depend on the states"
        gradient[part] = leaf.grad
    states.backward(gradient)  # type: ignore[no-untyped-call]


def rehearse(model: CausalModel, row: Row, *, backward: bool = True) -> RowMemory:
    """Carry a row through a model and count what lives; its gradients are added to.

    Args:
        model: A skeleton or a real model; parameters that are trained have gradients already.
        row: The row.
        backward: With gradients; False is a row that is scored only.
    """
    live = LiveBytes()
    held = [*model.hf.parameters(), *model.hf.buffers()]
    live.ignore([*held, *(p.grad for p in model.hf.parameters() if p.grad is not None)])
    kept = 0

    def note(*_: Any) -> None:
        nonlocal kept
        kept = live.now

    hook = model.backbone.register_forward_hook(note)
    try:
        with live, torch.set_grad_enabled(backward):
            carry(model, row, backward=backward)
    finally:
        hook.remove()
    return RowMemory(row.batch.num_tokens, kept, live.peak)


class _OutlinedAttention(torch.autograd.Function):
    """What attention over segments keeps and makes, without its many small calls."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        plan: SegmentPlan,
        window: int | None,
        is_by_blocks: bool,
    ) -> Tensor:
        _, heads, tokens, size = query.shape
        rows = query.new_empty(heads, tokens, size)
        out = query.new_empty(1, tokens, heads, value.shape[-1])
        if is_by_blocks:
            num_key_heads = key.shape[1]
            laid = lay_blocks(plan, num_key_heads, heads // num_key_heads, window, query.dtype)
            ctx.num_scores = heads * most_scores(laid)
            # Keys and values behind each other, and again where a prefix stands elsewhere.
            ctx.copies = [t.shape for t in (key[0], value[0])]
            if any(block.prefix_length for block, _ in laid):
                ctx.copies += [(t.shape[1], plan.max_keys, t.shape[3]) for t in (key, value)]
            made = [rows.new_empty(ctx.num_scores), *map(rows.new_empty, ctx.copies)]
            del made
            normalizer = query.new_empty(heads, tokens)
            ctx.save_for_backward(rows, key, value, normalizer)
        else:
            # Kernels for GPUs read the keys of each segment next to each other.
            num_keys = sum(s.prefix_length + s.length for s in plan.segments)
            key, value = (t.new_empty(1, t.shape[1], num_keys, t.shape[3]) for t in (key, value))
            normalizer = query.new_empty(heads, tokens, dtype=torch.float32)
            ctx.num_scores = heads * min(plan.max_queries, _BLOCK_ROWS) * plan.max_keys
            ctx.save_for_backward(rows, key, value, out, normalizer)
            ctx.copies = []
        ctx.num_tokens = tokens
        return out

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        rows, key, value = ctx.saved_tensors[:3]
        # The upstream gradient by heads, that of the rows, and scores with theirs.
        made = [torch.empty_like(upstream), rows.new_empty(2, ctx.num_scores)]
        made.extend(map(rows.new_empty, ctx.copies))
        gradients = [torch.empty_like(key), torch.empty_like(value)]
        d_key, d_value = (t[:, :, : ctx.num_tokens] for t in gradients)
        d_query = torch.empty_like(rows)[None]
        del made
        return d_query, d_key, d_value, None, None, None


@contextmanager
def _outlined(device_type: str) -> Iterator[None]:
    """In place of kernels that go through a row or the logits in blocks, or that a GPU has."""

    def outline(
        query: Tensor, key: Tensor, value: Tensor, plan: SegmentPlan, rule: ScoreRule
    ) -> Tensor:
        out: Tensor = _OutlinedAttention.apply(  # type: ignore[no-untyped-call]
            query, key, value, plan, rule.window, device_type == "cpu"
        )
        return out

    kernels, limits = attention.KERNELS, head_tiles.LIMITS
    before, limits_before = dict(kernels), dict(limits)
    limits["cpu"] = limits["cuda"]._replace(columns=2**30, tile_bytes=_TILE_BYTES, block=2**62)
    kernels["blocks"] = outline
    if device_type != "cpu":
        kernels["loop"] = outline
    try:
        yield
    finally:
        kernels.update(before)
        limits.update(limits_before)


def made_up_groups(shape: GroupShape, num_tokens: int, model: CausalModel) -> list[TokenizedRecord]:
    """Groups of one shape, and a smaller one behind them, that fill a row of so many tokens."""
    whole = _made_up(shape)
    size = max(1, model.row_tokens(whole))
    groups = [whole] * max(1, num_tokens // size)
    rest = num_tokens - size * len(groups)
    if rest > len(shape.completions):
        groups.append(_made_up(shape.scaled(rest / size)))
    return groups


def _made_up(shape: GroupShape) -> TokenizedRecord:
    completions = tuple(
        TokenizedCompletion(np.zeros(length, np.int32), np.ones(length, np.bool_))
        for length in shape.completions
    )
    return TokenizedRecord(np.zeros(shape.prompt, np.int32), completions, Origin("made up", 1))


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is active, counts the bytes of tensors that were made in it and still live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._counted: dict[int, int] = {}

    def ignore(self, tensors: Sequence[Tensor]) -> None:
        """Do not count these."""
        for tensor in tensors:
            self._counted[tensor.untyped_storage()._cdata] = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Carry out an operation and count what it made."""
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if given and not any(isinstance(tensor, FakeTensor) for tensor in given):
            # Targets and places in a row have content, and code may look at it.
            with unset_fake_temporarily():
                result = func(*args, **(kwargs or {}))
        else:
            result = _without_content(func, args, kwargs or {})
            if result is None:
                result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        name = storage._cdata
        if name in self._counted:
            return
        self._counted[name] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, name)

    def _forget(self, name: int) -> None:
        self.now -= self._counted.pop(name)


def _without_content(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The result of an operation that torch does not follow without content; None for others."""
    if not (args and isinstance(args[0], FakeTensor)):
        return None
    if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.bool:
        # Transformers asks of padded rows whether they have no padding at all.
        return False
    if func is not torch.ops.aten._grouped_mm.default:
        return None
    # The products of experts; torch knows their shape in bfloat16 only.
    left, right = args[:2]
    ends = kwargs.get("offs", args[2] if len(args) > 2 else None)
    groups: tuple[int, ...] = ()
    if left.dim() == right.dim():
        groups = (len(left),) if ends is None or left.dim() == 3 else (len(ends),)
    return left.new_empty((*groups, left.shape[-2], right.shape[-1]))


def _replace_tensors(module: nn.Module) -> None:
    """Put tensors without content on the CPU in the place of those on no device; ties stay."""
    made: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                    made[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
                part._parameters[name] = made[id(parameter)]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")


def _set_checkpointing(hf_model: Any, every: int | None) -> None:
    if hf_model.is_gradient_checkpointing:
        hf_model.gradient_checkpointing_disable()
    if every is not None:
        checkpoint_activations(hf_model, every=every)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what libraries say of tensors without content."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before = log.disabled
    log.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = before
