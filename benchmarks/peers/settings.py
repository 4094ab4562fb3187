"""Settings that a trainer takes, and what they change: claims of documentation, run.

Each case says what a user may expect, does the smallest thing that shows it, and reports whether
the expectation holds.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch

from peers import published
from peers.batches import Batch, Rows, random_batch
from peers.checks import loss_and_gradient
from peers.hyperparameters import BETA
from peers.table_policy import IGNORED, TablePolicy
from peers.trl_pairs import (
    PAIRS,
    build,
    dpo_loss,
    inputs_of,
    model,
    quietly,
    reference_free_trainer,
)
from peers.trl_samples import step_losses

_NUM_PAIRS = 2500
_BATCH_SIZE = 16


def label_smoothing_changes_the_sigmoid_loss() -> tuple[bool, str]:
    """`label_smoothing=0.3` makes `loss_type="sigmoid"` the conservative DPO loss."""
    batch = random_batch("pairs")
    plain, smoothed = (
        float(dpo_loss(batch, loss_type="sigmoid", beta=BETA, label_smoothing=rate))
        for rate in (0.0, 0.3)
    )
    return plain != smoothed, f"loss {plain:.9g} at 0, {smoothed:.9g} at 0.3"


def exo_without_smoothing_is_refused() -> tuple[bool, str]:
    """`exo_pair` at the default `label_smoothing=0`, where its formula is infinite, is refused."""
    try:
        dpo_loss(random_batch("pairs"), loss_type="exo_pair", beta=BETA)
    except ValueError as error:
        return True, f"ValueError: {error}"
    return False, "it is accepted"


def zero_beta_is_refused() -> tuple[bool, str]:
    """`beta=0`, at which the DPO loss is a constant, is refused."""
    try:
        found, slope = loss_and_gradient(
            lambda batch: dpo_loss(batch, loss_type="sigmoid", beta=0.0), random_batch("pairs")
        )
    except ValueError as error:
        return True, f"ValueError: {error}"
    return False, f"it is accepted: loss {found:.6g}, gradient of length {float(slope.norm()):g}"


def dpo_starts_at_log_2_with_a_precomputed_reference_in_bf16() -> tuple[bool, str]:
    """At step 0 policy and reference are the same weights, and the loss is log 2, in bfloat16
    too."""
    from trl import DPOConfig, DPOTrainer

    long = [
        {"prompt": str(index), "chosen": "yes, it is so. " * 8, "rejected": "no; never. " * 6}
        for index in range(8)
    ]
    scored: dict[bool, torch.Tensor] = {}
    for in_bf16 in (False, True):
        trainer = build(
            DPOTrainer,
            DPOConfig,
            long,
            bf16=in_bf16,
            precompute_ref_log_probs=True,
            learning_rate=0.0,
            logging_steps=1,
            max_steps=4,
        )
        scored[in_bf16] = torch.tensor(trainer.train_dataset["ref_chosen_logps"])
    # A reference that was scored in float32 is what the check must be able to see.
    apart = float((scored[True] - scored[False]).abs().max())
    with quietly():
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    off = max(abs(loss - math.log(2)) for loss in losses)
    return off < 1e-6, (
        f"largest distance from log 2 in four batches {off:.1e}; a reference scored in float32 "
        f"would be up to {apart:.1e} nats away"
    )


def a_real_model_gives_the_formula_of_its_logits() -> tuple[bool, str]:
    """With a real model and collator, the DPO loss is the formula of the model's own logits."""
    from trl import DPOConfig, DPOTrainer

    reference = model(seed=1)
    trainer = build(DPOTrainer, DPOConfig, PAIRS, ref_model=reference, beta=BETA)
    given = next(iter(trainer.get_train_dataloader()))
    with quietly():
        found = float(trainer.compute_loss(trainer.model, given))
    wanted, swapped = (
        float(published.dpo(BETA).mean_loss(_batch_of(*models, given)))
        for models in ((trainer.model, reference), (reference, trainer.model))
    )
    return abs(found - wanted) < 1e-6 < abs(found - swapped), (
        f"loss {found:.7g}, formula {wanted:.7g}, and {swapped:.7g} with the models exchanged"
    )


@torch.no_grad()
def _batch_of(policy: Any, reference: Any, given: dict[str, Any]) -> Batch:
    """The completions of a collated batch as rows, under two models in float64."""
    ids, counts = given["input_ids"], given["completion_mask"].bool()
    logits = [
        copy.deepcopy(each).double()(input_ids=ids, attention_mask=given["attention_mask"]).logits
        for each in (policy, reference)
    ]
    lengths = counts.sum(dim=1)
    size = (len(ids), int(lengths.max()), logits[0].shape[-1])
    tables = [torch.zeros(size, dtype=torch.float64) for _ in logits]
    tokens = torch.zeros(size[:2], dtype=torch.long)
    for row, length in enumerate(lengths.tolist()):
        at = counts[row].nonzero()[:, 0]
        tokens[row, :length] = ids[row, at]
        for table, of_model in zip(tables, logits, strict=True):
            table[row, :length] = of_model[row, at - 1]
    return Batch(Rows(tables[0], tables[1], tokens, lengths))


def kto_on_paired_data_mixes_classes() -> tuple[bool, str]:
    """On pairs that KTOTrainer takes apart itself, batches hold both classes."""
    from trl import KTOConfig, KTOTrainer

    pairs = [
        {"prompt": f"{index}:", "chosen": "yes", "rejected": "no"} for index in range(_NUM_PAIRS)
    ]
    trainer = build(
        KTOTrainer,
        KTOConfig,
        pairs,
        ref_model=model(seed=1),
        per_device_train_batch_size=_BATCH_SIZE,
    )
    labels = [batch["label"].float().mean().item() for batch in trainer.get_train_dataloader()]
    single = sum(share in (0.0, 1.0) for share in labels)
    return single < len(labels) / 10, f"{single} of {len(labels)} batches hold a single class"


def orpo_takes_the_likelihood_of_the_completion() -> tuple[bool, str]:
    """ORPO's likelihood term is over the chosen completion, not over the prompt."""
    losses = []
    for prompt_logit in (0.0, 3.0):
        batch = random_batch("pairs")
        half = batch.num_examples
        inputs = inputs_of(batch.rows)
        # The first completion token becomes a second prompt token.
        tables = batch.rows.policy.clone()
        tables[:, 0, 0] += prompt_logit
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, IGNORED)
        labels[:, 1] = IGNORED
        kept = [
            index for index in range(half) if min(batch.rows.lengths[[index, index + half]]) > 1
        ]
        given = {
            f"{side}_{what}": value[[index + shift for index in kept]]
            for side, shift in (("chosen", 0), ("rejected", half))
            for what, value in (
                ("input_ids", inputs["input_ids"]),
                ("attention_mask", inputs["attention_mask"]),
                ("labels", labels),
            )
        }
        given["prompt_input_ids"] = inputs["input_ids"][kept, :2]
        trainer = reference_free_trainer("ORPOTrainer", (("beta", 0.1),))
        with quietly():
            losses.append(float(trainer.compute_loss(TablePolicy(tables), given)))
    return losses[0] == losses[1], (
        f"loss {losses[0]:.6g}, and {losses[1]:.6g} when only the prompt is predicted otherwise"
    )


def cispo_leaves_on_policy_gradients_alone() -> tuple[bool, str]:
    """With the default `epsilon_high`, CISPO on its own samples is the policy gradient."""
    batch = random_batch("samples")
    rows = batch.rows
    fresh = type(batch)(
        rows,
        behavior=rows.token_logprobs(rows.policy).detach(),
        advantages=batch.advantages,
        num_tokens=batch.num_tokens,
    )

    def slope(**settings: Any) -> torch.Tensor:
        return loss_and_gradient(
            lambda given: step_losses([given], trainer="GRPOTrainer", beta=0.0, **settings)[0],
            fresh,
        )[1]

    plain, found = slope(loss_type="dapo"), slope(loss_type="cispo")
    share = float((found * plain).sum() / plain.norm() ** 2)
    return abs(share - 1) < 1e-6, f"the gradient is {share:.3g} times that of `dapo`"


def grpo_advantages_are_standard_scores() -> tuple[bool, str]:
    """Advantages are (reward - mean) / standard deviation of the group, as in the paper's text."""
    found = _advantages("GRPOTrainer", scale_rewards="group")
    rewards = torch.tensor(_REWARDS)
    wanted = (rewards - rewards.mean()) / rewards.std(unbiased=False)
    sample = (rewards - rewards.mean()) / rewards.std(unbiased=True)
    off, off_sample = (float((found - given).abs().max()) for given in (wanted, sample))
    return min(off, off_sample) < 1e-3, (
        f"off by {off:.1e} with the deviation over K, {off_sample:.1e} with that over K - 1"
    )


def rloo_advantages_leave_one_out() -> tuple[bool, str]:
    """Advantages are the reward less the mean reward of the others of the group."""
    found = _advantages("RLOOTrainer", beta=0.0)
    rewards = torch.tensor(_REWARDS)
    others = (rewards.sum() - rewards) / (len(rewards) - 1)
    off = float((found - (rewards - others)).abs().max())
    return off < 1e-5, f"off by {off:.1e}"


_REWARDS = [1.0, 0.0, 0.25, 3.0]


def _advantages(name: str, **settings: Any) -> torch.Tensor:
    """What the trainer makes of four rewards, from one real step on samples of a tiny model."""
    import trl

    trainer = build(
        getattr(trl, name),
        getattr(trl, name.replace("Trainer", "Config")),
        [{"prompt": "1"}] * 4,
        reward_funcs=lambda completions, **_: _REWARDS[: len(completions)],
        num_generations=4,
        per_device_train_batch_size=4,
        max_completion_length=4,
        logging_strategy="no",
        **settings,
    )
    with quietly():
        trainer.train()
    return torch.tensor(list(trainer._logs["advantages"])[:4])


CASES: tuple[Callable[[], tuple[bool, str]], ...] = (
    label_smoothing_changes_the_sigmoid_loss,
    exo_without_smoothing_is_refused,
    zero_beta_is_refused,
    dpo_starts_at_log_2_with_a_precomputed_reference_in_bf16,
    a_real_model_gives_the_formula_of_its_logits,
    kto_on_paired_data_mixes_classes,
    orpo_takes_the_likelihood_of_the_completion,
    cispo_leaves_on_policy_gradients_alone,
    grpo_advantages_are_standard_scores,
    rloo_advantages_leave_one_out,
)
"""Every case, the name of which is its claim."""


def run(case: Callable[[], tuple[bool, str]]) -> dict[str, Any]:
    """Name, claim, whether it holds and what was seen."""
    holds, measured = case()
    return {
        "library": "TRL",
        "name": case.__name__,
        "claim": " ".join((case.__doc__ or "").split()),
        "holds": holds,
        "measured": measured,
    }
