import math

import pytest
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from veritune.laboratory.languages import FiniteLanguage
from veritune.laboratory.policies import (
    GaussianPolicy,
    LogLinearPolicy,
    NextSymbolPolicy,
    Spelling,
    TabularPolicy,
    TransformerPolicy,
    parameter_gradient,
)

TWO_LETTERS = FiniteLanguage(("a", "b"), longest=3)
LANGUAGES = (
    TWO_LETTERS,
    FiniteLanguage(("a", "b", "c"), longest=2),
    FiniteLanguage(("x",), longest=4),
    FiniteLanguage(("a", "b", "c", "d"), longest=1),
)


def policies(language=TWO_LETTERS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(len(language), 2, generator=generator, dtype=torch.float64)
    yield TabularPolicy(torch.randn(len(language), generator=generator))
    yield LogLinearPolicy(features, torch.tensor([0.5, -1.0]))
    yield GaussianPolicy(torch.linspace(-2, 2, len(language)), mean=0.3, std=0.7)
    yield NextSymbolPolicy(language, seed)
    yield TransformerPolicy(language, seed)


@pytest.mark.parametrize("language", LANGUAGES, ids=repr)
def test_probabilities_of_every_policy_sum_to_one_in_float64(language):
    for policy in policies(language):
        law = policy().detach()

        assert law.shape == (len(language),)
        assert law.dtype == torch.float64
        assert float(law.exp().sum()) == pytest.approx(1, abs=1e-14)


def test_gradients_are_those_of_finite_differences():
    weights = torch.linspace(-1, 2, len(TWO_LETTERS), dtype=torch.float64)
    for policy in policies():
        found = parameter_gradient((weights * policy()).sum(), policy)
        start = parameters_to_vector(policy.parameters()).detach()
        generator = torch.Generator().manual_seed(1)
        direction = torch.randn(len(start), generator=generator, dtype=torch.float64)
        values = []
        for step in (1e-5, -1e-5):
            vector_to_parameters(start + step * direction, policy.parameters())
            values.append(float((weights * policy().detach()).sum()))

        slope = (values[0] - values[1]) / 2e-5
        assert slope == pytest.approx(float(found @ direction), rel=1e-6)
        assert found.isfinite().all()


def test_a_policy_of_a_seed_is_always_the_same_and_another_seed_gives_another():
    for kind in (NextSymbolPolicy, TransformerPolicy):
        assert torch.equal(kind(TWO_LETTERS, 0)(), kind(TWO_LETTERS, 0)())
        assert not torch.allclose(kind(TWO_LETTERS, 0)(), kind(TWO_LETTERS, 1)())


def test_a_table_gives_the_law_it_was_made_of():
    law = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)

    assert torch.allclose(TabularPolicy(law.log())().exp(), law, atol=1e-15)


def test_a_log_linear_policy_is_the_exponential_of_its_features():
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], dtype=torch.float64)

    found = LogLinearPolicy(features, torch.tensor([0.5, -1.0]))().exp()

    weights = [math.exp(0.5), math.exp(-2.0), math.exp(-0.5)]
    assert found.tolist() == pytest.approx([w / sum(weights) for w in weights])


def test_a_gaussian_on_a_fine_grid_has_its_mean_and_width():
    grid = torch.linspace(-5, 5, 201, dtype=torch.float64)

    law = GaussianPolicy(grid, mean=0.6, std=0.5)().detach().exp()

    mean = float((law * grid).sum())
    assert mean == pytest.approx(0.6, abs=1e-9)
    assert math.sqrt(float((law * (grid - mean) ** 2).sum())) == pytest.approx(0.5, abs=1e-9)


def test_a_table_of_next_symbols_spells_a_string_longhand():
    """Prefixes in order: the empty one, "a", "b", "aa", …; next symbols: a, b, the end."""
    policy = NextSymbolPolicy(TWO_LETTERS, seed=3)
    rows = policy.logits.detach()
    found = dict(zip(TWO_LETTERS.strings, policy().exp().tolist(), strict=True))

    first = rows[0, :2].softmax(0)  # No string ends before its first symbol.
    after_a, after_b = rows[1].softmax(0), rows[2].softmax(0)
    after_ba = rows[5].softmax(0)
    assert policy.spelling.num_prefixes == 1 + 2 + 4
    assert found["a"] == pytest.approx(float(first[0] * after_a[2]))
    assert found["ba"] == pytest.approx(float(first[1] * after_b[0] * after_ba[2]))
    # The longest strings end because they must.
    assert found["bab"] == pytest.approx(float(first[1] * after_b[0] * after_ba[1]))


def test_a_table_of_next_symbols_can_be_any_law():
    """It has a free parameter for each string, less one: its Jacobian has that rank."""
    policy = NextSymbolPolicy(TWO_LETTERS, seed=0)
    rows = [parameter_gradient(policy()[y], policy) for y in range(len(TWO_LETTERS))]

    assert torch.linalg.matrix_rank(torch.stack(rows)) == len(TWO_LETTERS) - 1


def test_strings_are_spelled_in_the_order_of_the_language():
    spelling = Spelling(TWO_LETTERS)

    for row, string in enumerate(TWO_LETTERS.strings):
        symbols = ["ab"[s] for s in spelling.targets[row].tolist() if s < 2]
        assert "".join(symbols) == string
        assert int(spelling.counts[row].sum()) == min(len(string) + 1, TWO_LETTERS.longest)


def test_without_the_end_symbol_probabilities_would_not_sum_to_one():
    policy = NextSymbolPolicy(TWO_LETTERS, seed=0)
    policy.spelling.counts &= policy.spelling.targets < 2

    assert float(policy().detach().exp().sum()) > 1.5


def test_the_transformer_never_sees_what_comes_later():
    policy = TransformerPolicy(TWO_LETTERS, seed=0)
    inputs = policy.spelling.inputs
    hidden = policy.symbols[inputs] + policy.positions
    changed = inputs.clone()
    changed[:, -1] = 1 - changed[:, -1].clamp(max=1)
    other = policy.symbols[changed] + policy.positions

    for layer in policy.layers:
        hidden, other = layer(hidden), layer(other)

    assert torch.equal(hidden[:, :-1], other[:, :-1])
    assert not torch.allclose(hidden[:, -1], other[:, -1])


def test_every_weight_of_the_transformer_matters():
    policy = TransformerPolicy(TWO_LETTERS, seed=0)
    weights = torch.linspace(-1, 2, len(TWO_LETTERS), dtype=torch.float64)
    (weights * policy()).sum().backward()

    for name, parameter in policy.named_parameters():
        assert parameter.grad.abs().max() > 1e-6, name
