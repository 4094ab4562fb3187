"""One optimizer step: the update, and the cases in which there must be none."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import batch_of, gradients, lively_model, make_pass, perturbed, random_dataset

from veritune.batches.loader import GlobalBatch
from veritune.errors import NonFiniteLossError
from veritune.training import step as step_module
from veritune.training.objective_pass import ObjectivePass
from veritune.training.optimizer import OptimizerConfig, build_optimizer
from veritune.training.step import TrainingStep

POLICY = lively_model(seed=1)
CONFIG = OptimizerConfig(
    learning_rate=0.01, schedule="constant", warmup_fraction=0, max_gradient_norm=0.3
)


def step_of(objective_pass: ObjectivePass, config: OptimizerConfig = CONFIG) -> TrainingStep:
    optimizer = build_optimizer(objective_pass.model.hf.parameters(), config)
    return TrainingStep(objective_pass, optimizer, config, total_steps=10, seed=0)


def world(
    name: str, folder: Path, kind: str = "paired", size: float = 0.05
) -> tuple[ObjectivePass, GlobalBatch]:
    dataset = random_dataset(kind, 9, seed=2)
    batch = batch_of(dataset, 7)
    reference = perturbed(POLICY, size, seed=2)
    return make_pass(name, POLICY, reference, dataset, batch, folder), batch


def weights(objective_pass: ObjectivePass) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in objective_pass.model.hf.named_parameters()}


def test_a_step_makes_the_update_that_adamw_is_defined_by(tmp_path: Path) -> None:
    """Loshchilov and Hutter 2019, algorithm 2, behind a clipped gradient; two steps."""
    config = OptimizerConfig(
        learning_rate=0.02,
        schedule="linear",
        warmup_fraction=0.2,
        max_gradient_norm=0.3,
        beta1=0.8,
        beta2=0.95,
        weight_decay=0.1,
    )
    ours, batch = world("dpo", tmp_path)
    mirror, _ = world("dpo", tmp_path)
    training = step_of(ours, config)
    theta = {n: p.detach().double().clone() for n, p in mirror.model.hf.named_parameters()}
    first = {n: torch.zeros_like(p) for n, p in theta.items()}
    second = {n: torch.zeros_like(p) for n, p in theta.items()}
    for number, rate in ((1, 0.01), (2, 0.02)):
        mirror.model.hf.zero_grad(set_to_none=True)
        mirror.run(batch, backward=True)
        gradient = gradients(mirror)
        norm = sum(float((g**2).sum()) for g in gradient.values()) ** 0.5
        assert norm > 0.3, "clipping is at work"
        for name in theta:
            g = gradient[name] * 0.3 / norm
            first[name] = 0.8 * first[name] + 0.2 * g
            second[name] = 0.95 * second[name] + 0.05 * g**2
            corrected = first[name] / (1 - 0.8**number)
            scale = (second[name] / (1 - 0.95**number)).sqrt() + 1e-8
            theta[name] = theta[name] - rate * (0.1 * theta[name] + corrected / scale)
        with torch.no_grad():
            for name, parameter in mirror.model.hf.named_parameters():
                parameter.copy_(theta[name])
        line = training.run(number, batch)
        assert line["learning_rate"] == pytest.approx(rate)
        assert line["gradient_norm"] == pytest.approx(norm, rel=1e-5)
        for name, got in weights(ours).items():
            torch.testing.assert_close(got.double(), theta[name], rtol=0, atol=2e-5)


def test_fused_adamw_equals_the_plain_one_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    config = OptimizerConfig(learning_rate=0.01, weight_decay=0.1)
    ours = torch.nn.Parameter(torch.randn(50, generator=generator))
    theirs = torch.nn.Parameter(ours.detach().clone())
    fused = build_optimizer([ours], config)
    plain = torch.optim.AdamW(
        [theirs], lr=0.01, betas=(0.9, 0.999), weight_decay=0.1, foreach=False, fused=False
    )
    for _ in range(5):
        gradient = torch.randn(50, generator=generator)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        fused.step()
        plain.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_the_line_of_a_step_holds_what_the_contract_promises(tmp_path: Path) -> None:
    ours, batch = world("dpo", tmp_path)
    line = step_of(ours).run(3, batch)
    assert {"step", "loss", "learning_rate", "gradient_norm", "tokens"} <= line.keys()
    assert line["step"] == 3
    # Prompts once, completions without their last token, which predicts nothing.
    groups = [ours.dataset[i] for i in batch.indices]
    inputs = sum(len(g.prompt) + sum(len(c.ids) - 1 for c in g.completions) for g in groups)
    assert line["tokens"] == inputs


def test_the_gradient_norm_is_logged_before_clipping(tmp_path: Path) -> None:
    ours, batch = world("dpo", tmp_path)
    twin, _ = world("dpo", tmp_path)
    twin.run(batch, backward=True)
    norm = torch.cat([g.flatten() for g in gradients(twin).values()]).norm()
    assert norm > CONFIG.max_gradient_norm
    assert step_of(ours).run(1, batch)["gradient_norm"] == pytest.approx(float(norm), rel=1e-5)


def test_the_gradients_of_the_step_before_are_forgotten(tmp_path: Path) -> None:
    ours, batch = world("dpo", tmp_path)
    still = OptimizerConfig(learning_rate=1e-30, schedule="constant", warmup_fraction=0)
    training = step_of(ours, still)
    norms = [training.run(number, batch)["gradient_norm"] for number in (1, 2, 3)]
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-6)


def test_an_infinite_ddro_loss_stops_before_the_update_and_names_the_records(
    tmp_path: Path,
) -> None:
    ours, batch = world("ddro", tmp_path, "unpaired", size=0.2)
    losses = ours.run(batch).losses
    bad = [i for i, loss in zip(batch.indices, losses, strict=True) if not torch.isfinite(loss)]
    good = [i for i in batch.indices if i not in bad]
    assert bad, "some undesirable completion is beyond log(1 / t)"
    assert good
    before = weights(ours)
    with pytest.raises(NonFiniteLossError) as caught:
        step_of(ours).run(5, batch)
    message = str(caught.value)
    assert "step 5" in message
    named = {number for number in range(1, 10) if f"made-up.jsonl, line {number}" in message}
    assert named == {i + 1 for i in bad}
    assert all(torch.equal(before[n], w) for n, w in weights(ours).items())


def test_ddro_makes_a_step_where_every_ratio_is_inside(tmp_path: Path) -> None:
    ours, batch = world("ddro", tmp_path, "unpaired", size=0.004)
    before = weights(ours)
    step_of(ours).run(5, batch)
    assert not all(torch.equal(before[n], w) for n, w in weights(ours).items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_stops_before_the_update(tmp_path: Path, value: float) -> None:
    ours, batch = world("dpo", tmp_path)
    with torch.no_grad():
        ours.model.hf.model.norm.weight[0] = value
    before = weights(ours)
    with pytest.raises(NonFiniteLossError, match="no update was made"):
        step_of(ours).run(1, batch)
    after = weights(ours)
    assert all(torch.equal(before[n].nan_to_num(7), after[n].nan_to_num(7)) for n in before)


def test_a_gradient_that_is_not_finite_stops_although_the_loss_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, batch = world("dpo", tmp_path)

    def poison(parameters: list[torch.nn.Parameter]) -> None:
        assert parameters[3].grad is not None
        parameters[3].grad[0] = float("inf")

    monkeypatch.setattr(step_module.distributed, "sum_gradients", poison)
    before = weights(ours)
    with pytest.raises(NonFiniteLossError, match="the gradient is not finite"):
        step_of(ours).run(1, batch)
    assert all(torch.equal(before[n], w) for n, w in weights(ours).items())


def test_dropout_is_that_of_the_step_and_not_of_the_history(tmp_path: Path) -> None:
    def lines(numbers: list[int], *, rate: float) -> list[float]:
        ours, batch = world("dpo", tmp_path)
        for layer in ours.model.hf.model.layers:
            layer.self_attn.attention_dropout = rate
        still = OptimizerConfig(learning_rate=1e-30, schedule="constant", warmup_fraction=0)
        training = step_of(ours, still)
        return [training.run(number, batch)["loss"] for number in numbers]

    whole = lines([1, 2, 3], rate=0.3)
    assert lines([3], rate=0.3) == whole[2:]
    # Control: steps differ from each other, because dropout is on.
    assert len(set(whole)) == 3
    assert len(set(lines([1, 2, 3], rate=0.0))) == 1


def test_parameters_without_gradient_are_left_alone(tmp_path: Path) -> None:
    ours, batch = world("dpo", tmp_path)
    frozen = ours.model.hf.model.embed_tokens.weight
    frozen.requires_grad_(False)
    before = copy.deepcopy(frozen)
    training: Any = step_of(ours)
    assert all(p is not frozen for p in training.parameters)
    training.run(1, batch)
    assert torch.equal(before, frozen)
