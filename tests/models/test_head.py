"""The fused head against a plain log-softmax in float64."""

from typing import NamedTuple

import pytest
import torch
from living_tensors import LivingTensors
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from veritune.models import head, head_tiles
from veritune.models.head import LogitTransform, head_mode, linear_logprobs

# Three parts of rows, six of the vocabulary; none of them even.
ROWS, HIDDEN, VOCAB = 2100, 12, 1501
TRANSFORMS = {
    "plain": LogitTransform(),
    "scale": LogitTransform(scale=0.3),
    "softcap": LogitTransform(softcap=4.0),
    "temperature": LogitTransform(temperature=0.6),
    "all": LogitTransform(scale=1.7, softcap=5.0, temperature=1.4),
}
KEPT, RECOMPUTED = 2**30, 1
"""Budgets that choose the mode for the inputs below."""


class Inputs(NamedTuple):
    hidden: Tensor
    weight: Tensor
    bias: Tensor
    targets: Tensor


def inputs(
    dtype: torch.dtype = torch.float32, *, rows: int = ROWS, vocabulary: int = VOCAB
) -> Inputs:
    draw = torch.Generator().manual_seed(0)
    return Inputs(
        torch.randn(rows, HIDDEN, generator=draw).to(dtype),
        torch.randn(vocabulary, HIDDEN, generator=draw).to(dtype),
        torch.randn(vocabulary, generator=draw).to(dtype),
        torch.randint(0, vocabulary, (rows,), generator=draw),
    )


def plain(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, how: LogitTransform
) -> Tensor:
    """Longhand, in float64: softcap * tanh(scale * (h W + b) / softcap) / temperature."""
    logits = hidden.double() @ weight.double().T
    if bias is not None:
        logits = logits + bias.double()
    logits = logits * how.scale
    if how.softcap is not None:
        logits = how.softcap * torch.tanh(logits / how.softcap)
    logits = logits / how.temperature
    return (logits - logits.logsumexp(-1, keepdim=True))[torch.arange(len(targets)), targets]


def assert_equals_plain(
    given: Inputs,
    transform: LogitTransform = TRANSFORMS["plain"],
    *,
    has_bias: bool = True,
    trains_head: bool = True,
    budget: int | None = None,
    tolerance: float = 1e-5,
) -> None:
    """Values, and gradients under an uneven gradient of the values."""
    bias = given.bias if has_bias else None
    given.hidden.requires_grad_()
    leaves = [given.hidden]
    if trains_head:
        leaves += [given.weight] + ([given.bias] if has_bias else [])
    for leaf in leaves:
        leaf.requires_grad_()
    upstream = torch.linspace(-2, 3, len(given.targets))

    expected = plain(given.hidden, given.weight, bias, given.targets, transform)
    wanted = torch.autograd.grad((expected * upstream.double()).sum(), leaves)
    found = linear_logprobs(
        given.hidden,
        given.weight,
        given.targets,
        bias=bias,
        transform=transform,
        budget_bytes=budget,
    )
    gradients = torch.autograd.grad((found * upstream).sum(), leaves)

    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-5)
    for leaf, gradient, correct in zip(leaves, gradients, wanted, strict=True):
        assert gradient.dtype == leaf.dtype
        assert (gradient.double() - correct.double()).norm() <= tolerance * correct.norm()


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("budget", [RECOMPUTED, KEPT])
def test_values_and_gradients_are_those_of_a_plain_log_softmax(
    name: str, has_bias: bool, budget: int
):
    assert_equals_plain(inputs(), TRANSFORMS[name], has_bias=has_bias, budget=budget)


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("has_bias", [False, True])
def test_hidden_states_under_a_frozen_head_get_the_gradient_of_a_plain_log_softmax(
    name: str, has_bias: bool
):
    assert_equals_plain(
        inputs(), TRANSFORMS[name], has_bias=has_bias, trains_head=False, budget=RECOMPUTED
    )


@pytest.mark.parametrize("operand", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trains_head", [False, True])
@pytest.mark.parametrize("budget", [RECOMPUTED, KEPT])
@pytest.mark.parametrize("name", ["plain", "all"])
def test_low_precision_inputs_give_exact_values_and_gradients_to_a_hundredth(
    monkeypatch: pytest.MonkeyPatch,
    operand: torch.dtype,
    trains_head: bool,
    budget: int,
    name: str,
):
    """With operands in bfloat16: what is computed on CUDA, where products are summed in float32."""
    monkeypatch.setattr(head, "_operand", lambda hidden, weight: operand)
    assert_equals_plain(
        inputs(torch.bfloat16),
        TRANSFORMS[name],
        trains_head=trains_head,
        budget=budget,
        tolerance=1e-2,
    )


def test_gradients_in_low_precision_stay_right_where_the_target_is_almost_certain(
    monkeypatch: pytest.MonkeyPatch,
):
    """1 - p is known and not formed from a rounded p: each row's own gradient is right."""
    monkeypatch.setattr(head, "_operand", lambda hidden, weight: torch.bfloat16)
    given = inputs(torch.bfloat16, rows=50, vocabulary=300)
    weight = given.weight.clone()
    hidden = (weight[given.targets] * 1.1).requires_grad_()

    expected = plain(hidden, weight, None, given.targets, LogitTransform())
    (wanted,) = torch.autograd.grad(expected.sum(), hidden)
    for trains in (False, True):
        found = linear_logprobs(hidden, weight.requires_grad_(trains), given.targets)
        (gradient,) = torch.autograd.grad(found.sum(), hidden)
        error = (gradient - wanted).norm(dim=1) / wanted.norm(dim=1)
        assert expected.max() > -1e-3
        assert error.max() < 1e-2


@pytest.mark.parametrize("name", ["scale", "softcap", "temperature"])
def test_what_the_model_does_to_its_logits_matters(name: str):
    """The control: leaving it out is far from right."""
    hidden, weight, bias, targets = inputs()

    without = linear_logprobs(hidden, weight, targets, bias=bias)

    assert (without - plain(hidden, weight, bias, targets, TRANSFORMS[name])).abs().max() > 0.5
    assert (without - plain(hidden, weight, None, targets, LogitTransform())).abs().max() > 0.5


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_applied_to_products_is_the_one_of_the_head(name: str):
    hidden, weight, bias, targets = inputs(rows=20)

    logits = TRANSFORMS[name].apply(hidden @ weight.T + bias)

    expected = plain(hidden, weight, bias, targets, TRANSFORMS[name])
    found = logits.log_softmax(-1)[torch.arange(20), targets]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("budget", [RECOMPUTED, KEPT])
def test_gradients_are_finite_differences(budget: int):
    hidden, weight, bias, targets = inputs(rows=40, vocabulary=23)
    transform = TRANSFORMS["all"]
    leaves = [hidden, weight, bias]
    for leaf in leaves:
        leaf.requires_grad_()
    given = torch.autograd.grad(
        linear_logprobs(
            hidden, weight, targets, bias=bias, transform=transform, budget_bytes=budget
        ).sum(),
        leaves,
    )
    step = 1e-6
    for place, gradient in enumerate(given):
        direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(place))
        values = []
        for sign in (1, -1):
            moved = [leaf.detach().double() for leaf in leaves]
            moved[place] = moved[place] + sign * step * direction.double()
            values.append(plain(moved[0], moved[1], moved[2], targets, transform).sum())
        slope = (values[0] - values[1]) / (2 * step)
        assert abs((gradient * direction).sum() - slope) < 1e-4 * (1 + abs(slope))


@pytest.mark.parametrize("budget", [RECOMPUTED, KEPT])
def test_a_weight_that_is_used_twice_gets_both_gradients(budget: int):
    """Tied weights: embedding and head are one parameter."""
    _, weight, _, targets = inputs()
    weight.requires_grad_()
    ids = targets.roll(1)

    expected = plain(weight[ids], weight, None, targets, LogitTransform())
    (wanted,) = torch.autograd.grad(expected.sum(), weight)
    found = linear_logprobs(weight[ids], weight, targets, budget_bytes=budget)
    (given,) = torch.autograd.grad(found.sum(), weight)

    assert (given - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("budget", [RECOMPUTED, KEPT])
def test_two_uses_of_the_head_in_one_graph_do_not_disturb_each_other(budget: int):
    hidden, weight, _, targets = inputs()
    weight.requires_grad_()
    hidden.requires_grad_()

    expected = sum(
        plain(hidden * k, weight, None, targets.roll(k), LogitTransform()).sum() for k in (1, 2)
    )
    wanted = torch.autograd.grad(expected, [hidden, weight])
    found = [
        linear_logprobs(hidden * k, weight, targets.roll(k), budget_bytes=budget) for k in (1, 2)
    ]
    given = torch.autograd.grad(found[0].sum() + found[1].sum(), [hidden, weight])

    for gradient, correct in zip(given, wanted, strict=True):
        assert (gradient - correct).norm() < 1e-5 * correct.norm()


@pytest.mark.parametrize("budget", [RECOMPUTED, KEPT])
def test_a_second_backward_pass_gives_the_same_gradient_again(budget: int):
    """What was kept is overwritten by the first."""
    hidden, weight, _, targets = inputs(rows=300)
    weight.requires_grad_()

    found = linear_logprobs(hidden, weight, targets, budget_bytes=budget).sum()
    (first,) = torch.autograd.grad(found, weight, retain_graph=True)
    (second,) = torch.autograd.grad(found, weight)

    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("budget", [RECOMPUTED, KEPT])
def test_gradients_of_two_parts_accumulate_to_that_of_the_whole(budget: int):
    hidden, weight, bias, targets = inputs()
    weight.requires_grad_()
    whole = plain(hidden, weight, bias, targets, LogitTransform()).sum()
    (wanted,) = torch.autograd.grad(whole, weight)

    for part in (slice(0, 700), slice(700, None)):
        linear_logprobs(
            hidden[part], weight, targets[part], bias=bias, budget_bytes=budget
        ).sum().backward()

    assert weight.grad is not None
    assert (weight.grad - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("trained", ["hidden", "weight", "bias"])
@pytest.mark.parametrize("budget", [RECOMPUTED, KEPT])
def test_what_is_frozen_gets_no_gradient_and_the_rest_is_right(trained: str, budget: int):
    hidden, weight, bias, targets = inputs()
    leaves = {"hidden": hidden, "weight": weight, "bias": bias}
    leaf = leaves[trained].requires_grad_()

    (wanted,) = torch.autograd.grad(
        plain(hidden, weight, bias, targets, LogitTransform()).sum(), leaf
    )
    linear_logprobs(hidden, weight, targets, bias=bias, budget_bytes=budget).sum().backward()

    assert leaf.grad is not None
    assert (leaf.grad - wanted).norm() < 1e-5 * wanted.norm()
    assert all(other.grad is None for name, other in leaves.items() if name != trained)


def test_autocast_does_not_round_the_logits():
    """Rounding them to bfloat16 would cost 0.1 nats and more."""
    hidden, weight, bias, targets = inputs(torch.bfloat16)
    weight.requires_grad_()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = linear_logprobs(hidden, weight, targets, bias=bias)
        rounded = torch.nn.functional.linear(hidden, weight, bias).float().log_softmax(-1)

    expected = plain(hidden, weight, bias, targets, LogitTransform())
    assert (found - expected).abs().max() < 1e-5
    assert (rounded[torch.arange(ROWS), targets] - expected).abs().max() > 1e-2


@pytest.mark.parametrize("trains_head", [False, True])
@pytest.mark.parametrize("budget", [RECOMPUTED, KEPT])
def test_extreme_logits_give_finite_values_and_gradients(trains_head: bool, budget: int):
    hidden, weight, _, targets = inputs()
    hidden = (hidden * 1e4).requires_grad_()
    weight.requires_grad_(trains_head)

    found = linear_logprobs(hidden, weight, targets, budget_bytes=budget)
    found.sum().backward()

    assert torch.isfinite(found).all()
    assert (found <= 0).all()
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()


@pytest.mark.parametrize("place", [0, 700, VOCAB - 1])
@pytest.mark.parametrize("trains_head", [False, True])
@pytest.mark.parametrize("budget", [RECOMPUTED, KEPT])
def test_one_huge_logit_is_the_whole_softmax_wherever_it_is(
    place: int, trains_head: bool, budget: int
):
    given = inputs(rows=30)
    given.bias[place] = 1e4
    given.targets[:10] = place
    assert_equals_plain(given, trains_head=trains_head, budget=budget)


@pytest.mark.parametrize("trains_head", [False, True])
@pytest.mark.parametrize("budget", [RECOMPUTED, KEPT])
@pytest.mark.parametrize("rows", [0, 1])
def test_few_targets_or_none_are_no_special_case(trains_head: bool, budget: int, rows: int):
    assert_equals_plain(inputs(rows=rows), trains_head=trains_head, budget=budget)


def test_a_target_outside_of_the_vocabulary_gives_no_number():
    hidden, weight, _, targets = inputs(rows=4)
    targets[1], targets[2] = VOCAB, -100

    found = linear_logprobs(hidden, weight, targets)

    assert torch.isfinite(found).tolist() == [True, False, False, True]


@pytest.mark.parametrize(
    ("trains_hidden", "trains_head", "budget", "mode"),
    [
        (False, False, 0, "values"),
        (True, False, 0, "frozen"),
        (True, False, 10**9, "frozen"),
        (True, True, 4 * 100 * 1000, "kept"),
        (False, True, 4 * 100 * 1000, "kept"),
        (True, True, 4 * 100 * 1000 - 1, "recomputed"),
    ],
)
def test_the_mode_follows_from_what_trains_and_from_the_budget(
    trains_hidden: bool, trains_head: bool, budget: int, mode: str
):
    found = head_mode(
        100, 1000, trains_hidden=trains_hidden, trains_head=trains_head, budget_bytes=budget
    )
    assert found == mode


def test_half_the_budget_is_enough_where_operands_have_half_the_size():
    def mode(operand: torch.dtype) -> str:
        return head_mode(
            100, 1000, trains_hidden=True, trains_head=True, budget_bytes=200_000, operand=operand
        )

    assert mode(torch.float32) == "recomputed"
    assert mode(torch.bfloat16) == "kept"


@pytest.mark.parametrize(
    ("trains_hidden", "trains_head", "budget", "products"),
    [
        (False, False, KEPT, 1),
        (True, False, KEPT, 2),
        (True, True, KEPT, 3),
        (True, True, RECOMPUTED, 4),
    ],
)
def test_each_mode_takes_its_number_of_matrix_products(
    trains_hidden: bool, trains_head: bool, budget: int, products: int
):
    hidden, weight, _, targets = inputs()
    hidden.requires_grad_(trains_hidden)
    weight.requires_grad_(trains_head)

    with FlopCounterMode(display=False) as counter:
        found = linear_logprobs(hidden, weight, targets, budget_bytes=budget)
        if found.requires_grad:
            found.sum().backward()

    assert counter.get_total_flops() == products * 2 * ROWS * HIDDEN * VOCAB


@pytest.mark.parametrize("trains_head", [False, True])
@pytest.mark.parametrize("name", ["plain", "all"])
def test_the_logits_of_all_rows_never_exist(trains_head: bool, name: str):
    hidden, weight, _, targets = inputs()
    hidden.requires_grad_()
    weight.requires_grad_(trains_head)

    with LivingTensors() as fused:
        linear_logprobs(
            hidden, weight, targets, transform=TRANSFORMS[name], budget_bytes=1
        ).sum().backward()
    with LivingTensors() as usual:
        logits = hidden @ weight.T
        logits.log_softmax(-1).gather(1, targets[:, None]).sum().backward()

    assert fused.largest <= 1024 * head_tiles.MIN_COLUMNS
    assert usual.largest == ROWS * VOCAB


def test_kept_exponentials_are_the_only_memory_of_the_size_of_all_logits():
    """Allocations of both passes together: one copy of the logits, gradients and small change."""
    rows, vocabulary = 1000, 20_000
    hidden, weight, _, targets = inputs(rows=rows, vocabulary=vocabulary)
    hidden.requires_grad_()
    weight.requires_grad_()

    with LivingTensors() as mode:
        linear_logprobs(hidden, weight, targets, budget_bytes=KEPT).sum().backward()

    logits = 4 * rows * vocabulary
    assert logits < mode.allocated < 1.1 * logits


@pytest.mark.parametrize("trains_head", [False, True])
def test_nothing_is_computed_or_kept_for_gradients_that_nobody_asks_for(trains_head: bool):
    rows, vocabulary = 1000, 20_000
    hidden, weight, _, targets = inputs(rows=rows, vocabulary=vocabulary)
    hidden.requires_grad_()
    weight.requires_grad_(trains_head)

    with torch.no_grad(), FlopCounterMode(display=False) as counter, LivingTensors() as mode:
        found = linear_logprobs(hidden, weight, targets, budget_bytes=KEPT)

    assert found.grad_fn is None
    assert counter.get_total_flops() == 2 * rows * HIDDEN * vocabulary
    assert mode.allocated < 0.1 * 4 * rows * vocabulary


def test_rows_and_vocabulary_are_cut_into_parts_that_cover_them():
    hidden, weight, _, targets = inputs()
    logits = head_tiles.TiledLogits(
        hidden, weight, None, targets, LogitTransform(), torch.float32, tile_bytes=1
    )

    seen = torch.zeros(ROWS, VOCAB)
    for tile in logits:
        seen[tile.rows, tile.columns] += 1

    assert (seen == 1).all()
    assert len(logits.rows) == 3
    assert len(logits.columns) == 6
