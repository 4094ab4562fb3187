"""What every objective of the catalog must satisfy."""

import inspect
import itertools
import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from veritune.errors import SettingsError
from veritune.objectives.catalog import hyperparameters, settings_of
from veritune.objectives.parameters import equation, source

NUM_EXAMPLES = 6
EXTREMES = (-1e4, -90.0, -1.0, 0.0, 1.0, 90.0, 1e4)


@pytest.fixture
def reference(num_columns):
    generator = torch.Generator().manual_seed(0)
    shape = (NUM_EXAMPLES, num_columns)
    return -10 + torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def policy(reference):
    """Within half a nat of the reference, where every objective is defined."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(reference.shape, generator=generator, dtype=torch.float64)
    return reference + noise - 0.5


def test_gradient_equals_finite_differences(card, settings, data_of, policy, reference):
    def loss(given):
        return card.loss(data_of(given, reference), **settings)

    assert torch.autograd.gradcheck(loss, policy.requires_grad_(), eps=1e-6, atol=1e-7)


def test_gradient_equals_finite_differences_far_from_the_reference(
    card, settings, data_of, policy, reference
):
    if not card.finite_everywhere:
        pytest.skip("not defined there")

    def loss(given):
        return card.loss(data_of(given, reference), **settings)

    # Both tangents of the catalog begin below 4.4 nats.
    steps = torch.linspace(-6, 6, policy.numel(), dtype=torch.float64).view_as(policy)
    assert torch.autograd.gradcheck(loss, (reference + steps).requires_grad_(), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_gradient_are_finite_at_extreme_log_ratios(
    card, settings, data_of, num_columns, dtype
):
    # Each combination twice, so that it meets both labels, and groups with and without a gap.
    log_ratio = torch.tensor(list(itertools.product(EXTREMES, repeat=num_columns)), dtype=dtype)
    log_ratio = log_ratio.repeat_interleave(2, dim=0)
    reference = torch.full_like(log_ratio, -2e4)
    policy = (reference + log_ratio).requires_grad_()

    loss = card.loss(data_of(policy, reference), **settings)
    loss.sum().backward()

    assert not loss.isnan().any()
    assert not policy.grad.isnan().any()
    assert card.finite_everywhere == bool(loss.isfinite().all())
    assert policy.grad.isfinite().all()


def test_an_extreme_mismatched_log_ratio_keeps_the_loss_finite(
    card, settings, data_of, policy, reference
):
    for mismatched in EXTREMES:
        loss = card.loss(data_of(policy, reference, mismatched), **settings)
        assert loss.isfinite().all()


def test_examples_do_not_influence_each_other(card, settings, data_of, policy, reference):
    jacobian = torch.autograd.functional.jacobian(
        lambda given: card.loss(data_of(given, reference), **settings), policy
    )

    influence = jacobian.abs().sum(dim=-1)

    assert (influence.diagonal() > 0).all()
    assert (influence - torch.diag(influence.diagonal()) == 0).all()


def test_permuting_examples_permutes_losses(card, settings, data_of, policy, reference):
    # Even with even: the builder gives every second example another label.
    order = torch.tensor([4, 5, 0, 3, 2, 1])

    loss = card.loss(data_of(policy, reference), **settings)
    permuted = card.loss(data_of(policy[order], reference[order]), **settings)

    assert torch.equal(permuted, loss[order])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_has_one_value_per_example_in_the_dtype_of_the_data(
    card, settings, data_of, policy, reference, dtype
):
    loss = card.loss(data_of(policy.to(dtype), reference.to(dtype)), **settings)

    assert loss.shape == (NUM_EXAMPLES,)
    assert loss.dtype == dtype


def test_float32_agrees_with_float64(card, settings, data_of, policy, reference):
    double = card.loss(data_of(policy, reference), **settings)

    single = card.loss(data_of(policy.float(), reference.float()), **settings)

    assert torch.allclose(single.double(), double, rtol=1e-4, atol=1e-5)


def test_an_empty_batch_has_an_empty_loss(card, settings, data_of, policy, reference):
    empty = policy[:0].requires_grad_()

    loss = card.loss(data_of(empty, reference[:0]), **settings)
    loss.sum().backward()

    assert loss.shape == (0,)
    assert empty.grad.shape == empty.shape


def test_an_example_alone_has_the_loss_that_it_has_among_others(
    card, settings, data_of, policy, reference
):
    alone = card.loss(data_of(policy[:1], reference[:1]), **settings)

    assert torch.allclose(alone, card.loss(data_of(policy, reference), **settings)[:1])


def test_an_objective_reads_the_reference_exactly_if_its_card_says_so(
    card, settings, data_of, policy, reference
):
    loss = card.loss(data_of(policy, reference), **settings)
    # One tenth of a nat for the first completion of each example stays inside every domain.
    elsewhere = reference.clone()
    elsewhere[:, 0] += 0.1

    moved = card.loss(data_of(policy, elsewhere), **settings)

    if card.needs_reference:
        assert (moved != loss).all()
    else:
        assert torch.equal(moved, loss)
        assert torch.equal(card.loss(data_of(policy, None), **settings), loss)


def test_an_objective_reads_the_mismatched_log_ratio_exactly_if_its_card_says_so(
    card, settings, data_of, policy, reference
):
    near, far = (card.loss(data_of(policy, reference, m), **settings) for m in (0.1, 0.9))

    assert card.needs_mismatched == (not torch.equal(near, far))


def test_the_initial_loss_is_the_loss_of_the_reference(card, settings, data_of, reference):
    if card.initial_loss is None:
        assert not card.needs_reference
        return
    at_reference = card.loss(data_of(reference.clone(), reference, 0.0), **settings)

    # A policy that is not a number shows that the closed form does not read it.
    unread = data_of(torch.full_like(reference, torch.nan), reference, torch.nan)
    initial = card.initial_loss(unread, **settings)

    assert initial.shape == at_reference.shape
    assert torch.allclose(initial, at_reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_initial_loss_has_the_dtype_of_the_data(card, settings, data_of, reference, dtype):
    if card.initial_loss is None:
        return
    values = reference.to(dtype)

    assert card.initial_loss(data_of(values, values), **settings).dtype == dtype


def test_loss_optimum_and_initial_loss_take_the_same_hyperparameters(card):
    def keywords(function):
        return {
            name: (argument.annotation, argument.default)
            for name, argument in inspect.signature(function).parameters.items()
            if argument.kind is argument.KEYWORD_ONLY
        }

    for function in (card.optimum, card.initial_loss):
        if function is not None:
            assert keywords(function) == keywords(card.loss)


def test_invalid_hyperparameters_are_refused_with_their_range(card, settings):
    for parameter in hyperparameters(card).values():
        for value in (-1.0, 0.0, 0.5, 1.0, 2.0, math.inf, math.nan, "many"):
            try:
                TypeAdapter(parameter.annotation).validate_python(value)
            except ValidationError:
                with pytest.raises(SettingsError, match=parameter.name) as caught:
                    settings_of(card, settings | {parameter.name: value}, data_fraction=None)
                message = str(caught.value)
                assert repr(value) in message
                if isinstance(value, float) and math.isfinite(value):
                    bounds = parameter.range.replace("at least", "greater than or equal to")
                    assert any(bound in message for bound in bounds.split(" and "))
        with pytest.raises(SettingsError, match=parameter.name):
            settings_of(card, settings | {parameter.name: -1.0}, data_fraction=None)


def test_the_docstring_holds_the_equation_the_source_and_every_hyperparameter(card):
    assert "loss" in equation(card.loss)
    assert "=" in equation(card.loss)
    assert source(card.loss)
    for parameter in hyperparameters(card).values():
        assert parameter.meaning, parameter.name
        assert parameter.range != "any", parameter.name
        assert parameter.name in equation(card.loss)


def test_the_card_names_existing_hyperparameters(card):
    known = hyperparameters(card)

    assert card.data_fraction is None or card.data_fraction in known
    assert card.reward_scale is None or card.reward_scale in known
    assert card.normalizer in ("examples", "tokens")
    assert card.source
    assert card.title
    assert card.target


def test_the_name_of_the_objective_is_that_of_its_file_and_functions(card):
    assert card.loss.__module__.rpartition(".")[2] == card.name
    if card.optimum is not None:
        assert card.optimum.__name__ == f"{card.name}_optimum"
    if card.initial_loss is not None:
        assert card.initial_loss.__name__ == f"{card.name}_initial_loss"
