"""Liger-Kernel's chunked losses: plain torch, so they run on the CPU, too.

They take hidden states and the weight of the output layer. Here the weight is the identity and the
hidden states are the logits, so the whole of the fused function runs. `compiled=False` is the same
arithmetic without torch.compile.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from peers import published, published_samples
from peers.batches import Batch, mismatched_log_ratio
from peers.hyperparameters import BETA, CLIP, EPSILON, FLIPS, KL_WEIGHT, LARGEST, LONGEST
from peers.implementation import Formula, Implementation


def pair_loss(batch: Batch, *, loss: str, **settings: Any) -> Tensor:
    """The scalar of a fused loss on pairs."""
    from liger_kernel import chunked_loss

    rows = batch.rows
    identity = torch.eye(rows.policy.shape[-1], dtype=rows.policy.dtype)
    fused = getattr(chunked_loss, loss)(compiled=False, **settings)
    reference = () if loss != "LigerFusedLinearDPOLoss" else (rows.reference.detach(), identity)
    found: Tensor = fused(identity, rows.policy, rows.labels, None, *reference)[0]
    return found


def kto_losses(batches: list[Batch], **settings: Any) -> list[Tensor]:
    """The scalars of the fused KTO loss for the micro-batches of a step.

    z0 is the caller's affair; here it is taken over the whole step.
    """
    z0 = mismatched_log_ratio(batches).clamp(min=0)
    return [_kto_loss(batch, z0, **settings) / len(batches) for batch in batches]


def _kto_loss(batch: Batch, z0: Tensor, **settings: Any) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearKTOLoss

    rows = batch.rows
    identity = torch.eye(rows.policy.shape[-1], dtype=rows.policy.dtype)
    fused = LigerFusedLinearKTOLoss(compiled=False, use_ref_model=True, **settings)
    found: Tensor = fused(
        rows.policy,
        identity,
        rows.labels,
        preference_labels=batch.desirable,
        ref_input=rows.reference.detach(),
        ref_weight=identity,
        kl=z0,
    )[0]
    return found


def sample_loss(batch: Batch, **settings: Any) -> Tensor:
    """The scalar of the fused GRPO loss."""
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    rows = batch.rows
    identity = torch.eye(rows.policy.shape[-1], dtype=rows.policy.dtype)
    fused = LigerFusedLinearGRPOLoss(compiled=False, use_ref_model=True, **settings)
    found: Tensor = fused(
        rows.policy,
        identity,
        rows.tokens,
        rows.bears_loss.to(rows.policy.dtype),
        batch.advantages,
        ref_per_token_logps=rows.token_logprobs(rows.reference).detach(),
        old_per_token_logps=batch.behavior,
        **({"num_items_in_batch": batch.num_tokens} if _spans_the_step(settings) else {}),
    )[0]
    return found


def _spans_the_step(settings: dict[str, Any]) -> bool:
    return settings["loss_type"] in ("dapo", "cispo")


def _pairs(loss: str, option: str, formula: Formula, **settings: Any) -> Implementation:
    return Implementation(
        library="Liger",
        where=loss.removeprefix("LigerFusedLinear"),
        option=option,
        kind="pairs",
        mean_loss=functools.partial(pair_loss, loss=loss, **settings),
        formula=formula,
        settings=settings,
        in_single_precision=True,
    )


def _dpo(option: str, formula: Formula, **settings: Any) -> Implementation:
    options = {"loss_type": option, "beta": BETA, **settings}
    return _pairs("LigerFusedLinearDPOLoss", option, formula, **options)


def _grpo(option: str, formula: Formula, **settings: Any) -> Implementation:
    options = {"loss_type": option.split()[0], "beta": 0.0, **settings}

    def single(batch: Batch) -> Tensor:
        return sample_loss(batch, **options)

    return Implementation(
        library="Liger",
        where="GRPOLoss",
        option=option,
        kind="samples",
        mean_loss=single,
        formula=formula,
        settings=options,
        in_single_precision=True,
        # A loss over the tokens of the step is a sum over its micro-batches.
        parts=(lambda batches: [single(batch) for batch in batches])
        if _spans_the_step(options)
        else None,
    )


def implementations() -> list[Implementation]:
    """Every chunked loss of alignment."""
    tokens = published_samples.per_token_of_the_batch
    sequence = {"importance_sampling_level": "sequence"}
    return [
        _dpo("sigmoid", published.dpo(BETA)),
        _dpo("hinge", published.hinge(BETA)),
        _dpo("exo_pair", published.exo_pref(BETA, EPSILON), label_smoothing=EPSILON),
        _dpo("nca_pair", published.nca(BETA)),
        _dpo("robust", published.rdpo(BETA, FLIPS), label_smoothing=FLIPS),
        _dpo("bco_pair", published.bco(BETA)),
        _dpo("sppo_hard", published.sppo(BETA)),
        _dpo("apo_zero", published.apo_zero(BETA)),
        _dpo("apo_down", published.apo_down(BETA)),
        _dpo("discopop", published.discopop(BETA, 0.05)),
        _pairs("LigerFusedLinearCPOLoss", "", published.cpo(BETA), beta=BETA),
        _pairs("LigerFusedLinearSimPOLoss", "", published.simpo(2.0, 1.0), beta=2.0, gamma=1.0),
        _pairs(
            "LigerFusedLinearSimPOLoss",
            "compute_nll_loss=False",
            published.simpo(2.0, 1.0),
            beta=2.0,
            gamma=1.0,
            compute_nll_loss=False,
        ),
        _pairs("LigerFusedLinearORPOLoss", "", published.orpo(0.1), beta=0.1),
        Implementation(
            library="Liger",
            where="KTOLoss",
            option="",
            kind="labels",
            mean_loss=lambda batch: kto_losses([batch], beta=BETA)[0],
            formula=published.kto(BETA),
            settings={"beta": BETA},
            in_single_precision=True,
            parts=functools.partial(kto_losses, beta=BETA),
        ),
        _grpo("grpo", published_samples.grpo(CLIP, 0.0)),
        _grpo("grpo with KL", published_samples.grpo(CLIP, KL_WEIGHT), beta=KL_WEIGHT),
        _grpo("grpo sequence", published_samples.gspo(CLIP), **sequence),
        _grpo("dr_grpo", published_samples.dr_grpo(CLIP, LONGEST), max_completion_length=LONGEST),
        _grpo("dapo", tokens(CLIP, "Yu et al. 2025, arXiv:2503.14476, advantages given")),
        _grpo("bnpo", tokens(CLIP, "GRPO per token of the batch, TRL's documentation")),
        _grpo("cispo", published_samples.cispo(LARGEST), epsilon_high=LARGEST),
        _grpo("sapo", published_samples.sapo(1.0, 1.05)),
        _grpo("luspo", published_samples.luspo(CLIP), **sequence),
    ]
