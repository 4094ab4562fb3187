"""Hidden states to float32 log-probabilities of the targets; the logits of a row never exist.

The output head runs on the positions that predict a loss-bearing token, chunk by chunk, and its
backward pass computes each chunk's logits again. Memory is one chunk, whatever the row holds.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK_BYTES = 64 * 2**20
"""Size of the largest block of logits that exists at a time."""

_MIN_CHUNK = 128


@dataclass(frozen=True)
class LogitTransform:
    """What a model does to the product of hidden state and head before the softmax.

    logits = softcap * tanh(scale * product / softcap) / temperature
    """

    scale: float = 1.0
    """Cohere's `logit_scale`, or one over Granite's `logits_scaling`."""

    softcap: float | None = None
    """Gemma's `final_logit_softcapping`."""

    temperature: float = 1.0
    """Sampling temperature that log-probabilities are taken at."""

    def apply(self, product: Tensor) -> Tensor:
        """Logits from products; the argument may be overwritten."""
        if self.scale != 1.0:
            product = product.mul_(self.scale)
        if self.softcap is not None:
            # The last factor not in place: autograd keeps the result of tanh for its gradient.
            product = product.div_(self.softcap).tanh_().mul(self.softcap)
        if self.temperature != 1.0:
            product = product.div_(self.temperature)
        return product

    def chain(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """Gradient with respect to the product, given that with respect to the logits."""
        if self.softcap is not None:
            # d/dz of c tanh(z/c) is 1 - tanh^2, and tanh is logits * temperature / c.
            bent = logits.mul(self.temperature / self.softcap).square_().neg_().add_(1)
            gradient = gradient.mul_(bent)
        factor = self.scale / self.temperature
        return gradient if factor == 1.0 else gradient.mul_(factor)


def linear_logprobs(
    hidden: Float[Tensor, "R D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, " R"],
    *,
    bias: Float[Tensor, " V"] | None = None,
    transform: LogitTransform = LogitTransform(),
    chunk_bytes: int = CHUNK_BYTES,
) -> Float[Tensor, " R"]:
    """Log-probability of each target under `softmax(transform(hidden @ weight.T + bias))`.

    Args:
        hidden: States that predict the targets; any float dtype.
        weight: The head's weight, in its own dtype; gradient if it requires one.
        targets: Token ids.
        bias: The head's bias, if it has one.
        transform: What the model does to the logits.
        chunk_bytes: Size of the largest block of float32 logits.

    Returns:
        Float32, in nats, with gradient to `hidden`, `weight` and `bias`.
    """
    rows = max(_MIN_CHUNK, chunk_bytes // (4 * weight.shape[0]))
    result: Tensor = _LinearLogProbs.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, transform, rows
    )
    return result


class _LinearLogProbs(torch.autograd.Function):
    """Forward keeps the log-normalizers; backward computes each chunk's logits again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        transform: LogitTransform,
        rows: int,
    ) -> Tensor:
        logprobs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        normalizers = torch.empty_like(logprobs)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(targets), rows):
                part = slice(start, start + rows)
                logits = transform.apply(_product(hidden[part], weight, bias))
                normalizers[part] = logits.logsumexp(-1)
                logprobs[part] = logits.gather(1, targets[part, None])[:, 0] - normalizers[part]
        ctx.save_for_backward(hidden, weight, bias, targets, normalizers)
        ctx.transform, ctx.rows = transform, rows
        return logprobs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        hidden, weight, bias, targets, normalizers = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden) if needs_hidden else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(targets), ctx.rows):
                part = slice(start, start + ctx.rows)
                logits = ctx.transform.apply(_product(hidden[part], weight, bias))
                scale = gradient[part, None]
                # d log p(target) / d logits = onehot(target) - softmax
                d_logits = (logits - normalizers[part, None]).exp_().mul_(-scale)
                d_logits.scatter_add_(1, targets[part, None], scale)
                d_product = ctx.transform.chain(d_logits, logits)
                if d_hidden is not None:
                    d_hidden[part] = (d_product @ weight.float()).to(hidden.dtype)
                if d_weight is not None:
                    d_weight.addmm_(d_product.T, hidden[part].float())
                if d_bias is not None:
                    d_bias += d_product.sum(0)
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            None,
            None,
            None,
        )


def _product(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product = hidden.float() @ weight.float().T
    return product if bias is None else product.add_(bias.float())
