"""Batch to log-probabilities: backbone, gather, head.

1. The backbone of the unmodified model turns a packed row into hidden states.
2. The states that predict a loss-bearing token are gathered.
3. The head turns them into float32 log-probabilities (`head.py`).
4. Sums per completion are formed in float64.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from veritune.batches.batch import Batch
from veritune.batches.pack import pack, row_tokens
from veritune.batches.pad import pad
from veritune.models.attention import SEGMENTS
from veritune.models.head import BUDGET_BYTES, PART_BYTES, LogitTransform, linear_logprobs
from veritune.tokens.encode import TokenizedRecord

Sharing = Literal["shared", "packed", "padded"]
"""How groups are laid out: prompts shared in packed rows; packed without sharing; padded rows."""

Precision = Literal["fp32", "bf16"]

_ROW_MULTIPLE = {"cpu": 1, "cuda": 128}
"""Packed rows are filled up to a multiple of so many tokens, in which a device's kernels work."""


class CausalModel:
    """A causal language model with the one way in which its log-probabilities are computed.

    Args:
        hf_model: A model of transformers with an output head; adapters may have been put into it.
        sharing: How groups are laid out; `legality.py` finds out what the model bears.
        precision: bf16 computes layers in bfloat16 from float32 weights, but for the experts of a
            mixture in one product, which autocast does not reach; log-probabilities are float32 in
            either case.
        temperature: Logits are divided by it before the softmax.
        device_type: The kind of device that rows and parts of the head are cut for; None is the one
            that the model is on.
    """

    def __init__(
        self,
        hf_model: Any,
        *,
        sharing: Sharing = "shared",
        precision: Precision = "fp32",
        temperature: float = 1.0,
        device_type: str | None = None,
    ) -> None:
        self.hf = hf_model
        self._device_type = device_type or self.device.type
        self.precision: Precision = precision
        self.transform = _logit_transform(hf_model.config, temperature)
        self._stock_attention = _stock_attention(hf_model)
        self.sharing: Sharing = sharing
        self.use_sharing(sharing)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        device: torch.device = next(iter(self.hf.parameters())).device
        return device

    @property
    def backbone(self) -> nn.Module:
        """The layers up to the last hidden state."""
        backbone: nn.Module = self.hf.base_model
        # Text models cut out of a larger one (Llama 4) give themselves as their base.
        if backbone is self.hf:
            backbone = getattr(self.hf, "model", self.hf)
        assert backbone is not self.hf, "the model has a backbone and a head"
        return backbone

    @property
    def head(self) -> nn.Module:
        """The module that turns hidden states into logits."""
        head: nn.Module = self.hf.get_output_embeddings()
        return head

    @property
    def temperature(self) -> float:
        """What logits are divided by."""
        return self.transform.temperature

    def use_sharing(self, sharing: Sharing) -> None:
        """Lay groups out in this way from now on."""
        self.sharing = sharing
        self.hf.set_attn_implementation(self._stock_attention if sharing == "padded" else SEGMENTS)

    def use_stock_attention(self) -> None:
        """Let the model attend as it does without this package, until `use_sharing`."""
        self.hf.set_attn_implementation(self._stock_attention)

    def row_tokens(self, group: TokenizedRecord) -> int:
        """Tokens that a group costs in a row (padding not counted)."""
        return row_tokens(group, shares_prefix=self.sharing == "shared")

    def batch(self, groups: Sequence[TokenizedRecord], indices: Sequence[int]) -> Batch:
        """Groups as one batch, in the layout that the model bears."""
        if self.sharing == "padded":
            return pad(groups, indices)
        shares_prefix = self.sharing == "shared"
        multiple = _ROW_MULTIPLE.get(self._device_type, 1)
        return pack(groups, indices, shares_prefix=shares_prefix, multiple_of=multiple)

    def predicting_states(self, batch: Batch) -> Float[Tensor, "R D"]:
        """The last hidden states that predict the targets of a batch."""
        batch = batch.to(self.device)
        arguments: dict[str, Any] = {"plan": batch.plan} if batch.plan is not None else {}
        with self._autocast():
            hidden: Tensor = self.backbone(
                input_ids=batch.input_ids,
                position_ids=batch.positions,
                attention_mask=batch.attention_mask,
                use_cache=False,
                **arguments,
            ).last_hidden_state
        return hidden.flatten(0, 1).index_select(0, batch.source)

    def target_logprobs(
        self, states: Float[Tensor, "R D"], targets: Int[Tensor, " R"]
    ) -> Float[Tensor, " R"]:
        """Log-probability of each target by the state that predicts it, float32, in nats."""
        targets = targets.to(states.device)
        head: Any = self.head
        if not self._head_is_linear:
            return self._logprobs_by_module(head, states, targets)
        # Says what products are computed in where a device computes them in low precision.
        with self._autocast():
            return linear_logprobs(
                states,
                head.weight,
                targets,
                bias=head.bias,
                transform=self.transform,
                budget_bytes=BUDGET_BYTES.get(self._device_type),
            )

    @property
    def targets_at_once(self) -> int | None:
        """Targets whose logits a backward pass may keep; None where it keeps none of them."""
        head: Any = self.head
        if not self._head_is_linear or not head.weight.requires_grad:
            return None
        is_low = self.precision == "bf16" or head.weight.dtype is torch.bfloat16
        # On a CPU the head multiplies in float32 whatever the layers do.
        bytes_each = 2 if is_low and self.device.type != "cpu" else 4
        return max(1, self._part_bytes // (bytes_each * int(head.weight.shape[0])))

    @property
    def _part_bytes(self) -> int:
        return PART_BYTES.get(self._device_type, PART_BYTES["cpu"])

    @property
    def _head_is_linear(self) -> bool:
        # A subclass (an adapter on the head, say) computes something else than weight and bias.
        return type(self.head) is nn.Linear

    def token_logprobs(self, batch: Batch) -> Float[Tensor, " R"]:
        """Log-probability of every target of the batch, float32, in nats."""
        return self.target_logprobs(self.predicting_states(batch), batch.targets)

    def completion_logprobs(
        self, batch: Batch
    ) -> tuple[Float[Tensor, " S"], Int[Tensor, " S"], Float[Tensor, " R"]]:
        """Sequence log-probabilities, loss-bearing tokens per completion, and the tokens' own."""
        tokens = self.token_logprobs(batch)
        owner = batch.completion.to(tokens.device)
        lengths = torch.bincount(owner, minlength=batch.num_completions)
        return sum_by_completion(tokens, owner, batch.num_completions), lengths, tokens

    def _logprobs_by_module(self, head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
        """The general way: call the head on chunks of rows, and again in the backward pass."""
        rows = max(128, self._part_bytes // (4 * self.hf.config.get_text_config().vocab_size))

        def chunk(states: Tensor, wanted: Tensor) -> Tensor:
            with self._autocast():
                product = head(states)
            logits = self.transform.apply(product.float() + 0)
            return logits.log_softmax(-1).gather(1, wanted[:, None])[:, 0]

        parts = [
            checkpoint(
                chunk,
                hidden[start : start + rows],
                targets[start : start + rows],
                use_reentrant=False,
            )
            for start in range(0, len(targets), rows)
        ]
        return torch.cat(parts)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def sum_by_completion(
    tokens: Float[Tensor, " R"], owner: Int[Tensor, " R"], num_completions: int
) -> Float[Tensor, " S"]:
    """Sums of token values per completion, float64.

    A log-ratio is the small difference of two sums that may reach thousands of nats, where float32
    resolves 1e-4; the sums are few, so the wider type costs nothing.
    """
    wide = tokens.double()
    return wide.new_zeros(num_completions).index_add(0, owner, wide)


def common_length_mask(lengths: Int[Tensor, " S"]) -> Bool[Tensor, " R"]:
    """Which tokens lie within the length of the shorter completion of their pair.

    Args:
        lengths: Loss-bearing tokens of each completion, those of a pair next to each other.

    Returns:
        True or False for each of the `sum(lengths)` tokens, completion after completion.
    """
    common = lengths.view(-1, 2).amin(dim=1).repeat_interleave(2)
    starts = lengths.cumsum(0) - lengths
    place = torch.arange(int(lengths.sum()), device=lengths.device)
    return place - starts.repeat_interleave(lengths) < common.repeat_interleave(lengths)


def _stock_attention(hf_model: Any) -> str:
    """The attention that transformers would use, or the written-out one for a model without."""
    name = getattr(hf_model.config, "_attn_implementation", None)
    return name if isinstance(name, str) and name != SEGMENTS else "eager"


def _logit_transform(config: Any, temperature: float) -> LogitTransform:
    text = config.get_text_config()
    scale = float(getattr(text, "logit_scale", None) or 1.0)
    divisor = float(getattr(text, "logits_scaling", None) or 1.0)
    return LogitTransform(
        scale=scale / divisor,
        softcap=getattr(text, "final_logit_softcapping", None),
        temperature=temperature,
    )
