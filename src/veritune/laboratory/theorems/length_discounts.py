"""LD-DPO, token by token: the discount of what one completion of a pair has beyond the other."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from veritune.laboratory.extremes import largest_residual, smallest_control
from veritune.laboratory.theorem import Evidence, Theorem
from veritune.logprobs import CompletionLogProbs, PairedLogProbs
from veritune.objectives.paired.dpo import dpo_loss
from veritune.objectives.paired.ld_dpo import ld_dpo_loss
from veritune.objectives.paired.ld_dpo_policy import ld_dpo_policy_loss
from veritune.seeds import stream

_NUM_PAIRS = 500
_NUM_TOKENS = 12
_BETA = 0.3
_ALPHAS = (0.0, 0.4, 0.9)
_FORMS = (ld_dpo_loss, ld_dpo_policy_loss)


class _Pairs(NamedTuple):
    """Pairs as rows of tokens: chosen completions first, rejected second."""

    policy: Float[Tensor, "2 B T"]
    reference: Float[Tensor, "2 B T"]
    length: Int[Tensor, "2 B"]

    @property
    def common(self) -> Int[Tensor, " B"]:
        """Length of the shorter completion of each pair."""
        return self.length.amin(dim=0)

    def logprobs(self, policy: Float[Tensor, "2 B T"]) -> PairedLogProbs:
        """What a loss sees under these log-probabilities of the policy."""
        return PairedLogProbs(self._side(0, policy[0]), self._side(1, policy[1]))

    def _side(self, side: int, policy: Float[Tensor, "B T"]) -> CompletionLogProbs:
        length, reference = self.length[side], self.reference[side]
        return CompletionLogProbs(
            policy=_sums(policy, length),
            length=length,
            reference=_sums(reference, length),
            policy_common=_sums(policy, self.common),
            reference_common=_sums(reference, self.common),
        )


def _sums(tokens: Float[Tensor, "B T"], length: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    return torch.where(torch.arange(_NUM_TOKENS) < length[:, None], tokens, 0).sum(dim=1)


def _pairs(*, differ: bool) -> _Pairs:
    """Random log-probabilities of pairs whose lengths differ, or are equal, in every pair."""
    generator = stream(0, "laboratory", "length discounts", str(differ))
    shape = (2, _NUM_PAIRS, _NUM_TOKENS)
    policy, reference = (
        -3 * torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    shorter = torch.randint(1, _NUM_TOKENS, (_NUM_PAIRS,), generator=generator)
    longer = torch.full_like(shorter, _NUM_TOKENS) if differ else shorter
    # Every second pair has the longer completion for its chosen one.
    is_chosen_longer = torch.arange(_NUM_PAIRS) % 2 == 0
    return _Pairs(
        policy,
        reference,
        torch.stack(
            [
                torch.where(is_chosen_longer, longer, shorter),
                torch.where(is_chosen_longer, shorter, longer),
            ]
        ),
    )


def is_dpo_at_equal_length() -> Evidence:
    """Losses and gradients on tokens of LD-DPO and of DPO, where lengths are equal and differ."""
    residuals: list[float] = []
    controls: list[float] = []
    for differ, values in ((False, residuals), (True, controls)):
        pairs = _pairs(differ=differ)
        plain = _loss_and_gradient(pairs, dpo_loss, beta=_BETA)
        for form in _FORMS:
            for alpha in _ALPHAS:
                discounted = _loss_and_gradient(pairs, form, beta=_BETA, alpha=alpha)
                values.append(
                    largest_residual(
                        float((one - other).abs().max())
                        for one, other in zip(discounted, plain, strict=True)
                    )
                )
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"{_NUM_PAIRS} pairs of up to {_NUM_TOKENS} tokens, beta = {_BETA}, alpha = 0, 0.4 and "
        f"0.9, both forms: losses and gradients on tokens differ by at most {max(residuals):.0e}; "
        f"where lengths differ by up to {min(controls):.2g} or more",
    )


def _loss_and_gradient(
    pairs: _Pairs, loss: Callable[..., Tensor], **hyperparameters: float
) -> tuple[Float[Tensor, " B"], Float[Tensor, "2 B T"]]:
    """Losses of the pairs, and their derivatives by the policy's log-probability of each token."""
    tokens = pairs.policy.clone().requires_grad_()
    losses = loss(pairs.logprobs(tokens), **hyperparameters)
    (gradient,) = torch.autograd.grad(losses.sum(), tokens)
    return losses.detach(), gradient


def _beyond(pairs: _Pairs) -> Bool[Tensor, "2 B T"]:
    """True at the tokens that one completion of a pair has beyond the length of the other."""
    place = torch.arange(_NUM_TOKENS)
    return (place >= pairs.common[:, None]) & (place < pairs.length[..., None])


def tokens_beyond_count_alpha() -> Evidence:
    """Gradient on tokens beyond the common length, over that on a common token, less alpha."""
    pairs = _pairs(differ=True)
    is_beyond = _beyond(pairs)
    residuals: list[float] = []
    controls: list[float] = []
    for alpha in _ALPHAS:
        runs = [(form, {"alpha": alpha}, residuals) for form in _FORMS]
        for loss, given, values in (*runs, (dpo_loss, {}, controls)):
            _, gradient = _loss_and_gradient(pairs, loss, beta=_BETA, **given)
            # The first token is common to both.
            share = gradient / gradient[..., :1]
            values.append(float((share[is_beyond] - alpha).abs().max()))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"{_NUM_PAIRS} pairs of up to {_NUM_TOKENS} tokens, {int(is_beyond.sum())} of them beyond "
        f"the common length, beta = {_BETA}, alpha = 0, 0.4 and 0.9, both forms: at most "
        f"{max(residuals):.0e}; under DPO {min(controls):.2g} or more",
    )


def starts_at_log_two() -> Evidence:
    """Losses at the reference, where lengths differ, less log 2."""
    pairs = _pairs(differ=True)
    at_reference = pairs._replace(policy=pairs.reference)
    residuals: list[float] = []
    controls: list[float] = []
    seen: list[str] = []
    for alpha in _ALPHAS:
        for loss, values in ((ld_dpo_loss, residuals), (ld_dpo_policy_loss, controls)):
            losses, _ = _loss_and_gradient(at_reference, loss, beta=_BETA, alpha=alpha)
            values.append(float((losses - math.log(2)).abs().max()))
        longer_chosen = losses[pairs.length[0] > pairs.length[1]].mean()
        longer_rejected = losses[pairs.length[0] < pairs.length[1]].mean()
        seen.append(f"{float(longer_chosen):.2f} and {float(longer_rejected):.2f} at {alpha:g}")
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"{_NUM_PAIRS} pairs of up to {_NUM_TOKENS} tokens, beta = {_BETA}: at most "
        f"{max(residuals):.0e} from log 2; with the policy alone discounted, the mean of pairs "
        f"whose chosen and whose rejected completion is longer is, by alpha, {', '.join(seen)}",
    )


def policy_form_favors_the_longer() -> Evidence:
    """Differences of the two forms' margins against what the reference says of tokens beyond."""
    pairs = _pairs(differ=True)
    is_beyond = _beyond(pairs)
    residuals: list[float] = []
    controls: list[float] = []
    for alpha in _ALPHAS:
        margins = []
        for form in _FORMS:
            losses, _ = _loss_and_gradient(pairs, form, beta=_BETA, alpha=alpha)
            # The loss is -log sigmoid(margin).
            margins.append(-torch.expm1(losses).log())
        for tokens, values in ((pairs.reference, residuals), (pairs.policy, controls)):
            beyond = torch.where(is_beyond, tokens, 0).sum(dim=2)
            head_start = -_BETA * (1 - alpha) * (beyond[0] - beyond[1])
            values.append(float((margins[1] - margins[0] - head_start).abs().max()))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"{_NUM_PAIRS} pairs of up to {_NUM_TOKENS} tokens, beta = {_BETA}, alpha = 0, 0.4 and "
        f"0.9: margins differ as stated to {max(residuals):.0e}; with the policy's "
        f"log-probabilities they are off by up to {min(controls):.2g} or more",
    )


_SOURCE = "Liu et al. 2024, arXiv:2409.06411"

THEOREMS: tuple[Theorem, ...] = (
    Theorem(
        name="ld_dpo_is_dpo_at_equal_length",
        claim="Where the two completions of a pair are equally long, LD-DPO is DPO, in its loss "
        "and in the gradient on every token, whether the reference is discounted or not.",
        control="It is so where their lengths differ.",
        source=_SOURCE,
        methods=("ld_dpo", "ld_dpo_policy", "dpo"),
        tolerance=1e-12,
        check=is_dpo_at_equal_length,
    ),
    Theorem(
        name="ld_dpo_discounts_tokens_beyond",
        claim="The gradient of LD-DPO on a token beyond the common length is alpha times that on a "
        "common token of the same completion; at alpha = 0 such tokens carry none.",
        control="So it is under DPO.",
        source=_SOURCE,
        methods=("ld_dpo", "ld_dpo_policy"),
        contrasts=("dpo",),
        tolerance=1e-12,
        check=tokens_beyond_count_alpha,
    ),
    Theorem(
        name="ld_dpo_starts_at_log_two",
        claim="While the policy is the reference, the loss of LD-DPO is log 2 for pairs of any "
        "lengths.",
        control="So it is if the policy alone is discounted.",
        source=f"derived here; {_SOURCE}",
        methods=("ld_dpo",),
        contrasts=("ld_dpo_policy",),
        tolerance=1e-12,
        check=starts_at_log_two,
    ),
    Theorem(
        name="ld_dpo_policy_favors_the_longer",
        claim="LD-DPO with the policy alone discounted is LD-DPO with a head start for the longer "
        "completion: -beta (1 - alpha) times the reference's log-probability of the tokens that it "
        "has beyond the other.",
        control="The head start is that of the policy's log-probability.",
        source=f"derived here; {_SOURCE}, as in LLaMA-Factory and ms-swift",
        methods=("ld_dpo_policy", "ld_dpo"),
        tolerance=1e-10,
        check=policy_form_favors_the_longer,
    ),
)
