"""Small policies that give the exact log-probability of every completion, in float64.

Each is a torch module that takes nothing and returns the log-probabilities of all completions:
tables that can represent every law, families with a few parameters that cannot, and policies that
spell a completion symbol by symbol, as language models do.
"""

import math
from itertools import product

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

from veritune.laboratory.languages import FiniteLanguage
from veritune.seeds import stream


class TabularPolicy(nn.Module):
    """A logit for each completion: any law without zeros.

    Args:
        logits: Where it starts; log-probabilities are logits, too.
    """

    def __init__(self, logits: Float[Tensor, " Y"]) -> None:
        super().__init__()
        self.logits = _parameter(logits)

    def forward(self) -> Float[Tensor, " Y"]:
        """Log-probabilities of all completions."""
        return torch.log_softmax(self.logits, dim=-1)


class LogLinearPolicy(nn.Module):
    """Laws whose logits are linear in a few features: limited capacity.

        log_probability(y) = features(y) . weights - log of the normalizer

    Args:
        features: What the policy can tell completions apart by.
        weights: Where it starts.
    """

    features: Tensor

    def __init__(self, features: Float[Tensor, "Y F"], weights: Float[Tensor, " F"]) -> None:
        super().__init__()
        self.register_buffer("features", features.double())
        self.weights = _parameter(weights)

    def forward(self) -> Float[Tensor, " Y"]:
        """Log-probabilities of all completions."""
        return torch.log_softmax(self.features @ self.weights, dim=-1)


class GaussianPolicy(nn.Module):
    """A Gaussian on the points of a grid: one mode, wherever it is and however wide.

        log_probability(y) = -(y - mean)^2 / (2 std^2) - log of the normalizer over the grid

    Args:
        grid: The completions, numbers.
        mean: Where it starts.
        std: How wide it starts, greater than 0.
    """

    grid: Tensor

    def __init__(self, grid: Float[Tensor, " Y"], mean: float, std: float) -> None:
        super().__init__()
        self.register_buffer("grid", grid.double())
        self.mean = _parameter(torch.tensor(mean, dtype=torch.float64))
        self.log_std = _parameter(torch.tensor(math.log(std), dtype=torch.float64))

    def forward(self) -> Float[Tensor, " Y"]:
        """Log-probabilities of all points."""
        distance = (self.grid - self.mean) * torch.exp(-self.log_std)
        return torch.log_softmax(-(distance**2) / 2, dim=-1)


class NextSymbolPolicy(nn.Module):
    """A table of the next symbol, one row for each beginning of a string: any law, autoregressive.

    Args:
        language: Its strings are the completions, in its order.
        seed: Of the logits, which are standard normal.
    """

    def __init__(self, language: FiniteLanguage, seed: int) -> None:
        super().__init__()
        self.spelling = Spelling(language)
        shape = (self.spelling.num_prefixes, len(language.alphabet) + 1)
        generator = stream(seed, "laboratory", "next-symbol policy")
        self.logits = _parameter(torch.randn(shape, generator=generator, dtype=torch.float64))

    def forward(self) -> Float[Tensor, " Y"]:
        """Log-probabilities of all strings."""
        return self.spelling.string_logprobs(self.logits[self.spelling.prefixes])


class TransformerPolicy(nn.Module):
    """A causal transformer over the strings of a language: attention and MLP with residuals.

    Normalization is before each block and has no parameters; positions are learned.

    Args:
        language: Its strings are the completions, in its order.
        seed: Of the weights.
        hidden_size: Width of the residual stream; a multiple of `num_heads`.
        num_layers: Pairs of attention and MLP.
        num_heads: Heads of each attention.
    """

    def __init__(
        self,
        language: FiniteLanguage,
        seed: int,
        *,
        hidden_size: int = 8,
        num_layers: int = 2,
        num_heads: int = 2,
    ) -> None:
        super().__init__()
        assert hidden_size % num_heads == 0, "heads share the width equally"
        generator = stream(seed, "laboratory", "transformer policy")
        self.spelling = Spelling(language)
        num_symbols = len(language.alphabet) + 1

        def drawn(rows: int, columns: int) -> nn.Parameter:
            weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
            return _parameter(weight / math.sqrt(rows))

        self.symbols = drawn(num_symbols, hidden_size)
        self.positions = drawn(language.longest, hidden_size)
        self.layers = nn.ModuleList(
            _Layer(
                num_heads,
                attention_in=drawn(hidden_size, 3 * hidden_size),
                attention_out=drawn(hidden_size, hidden_size),
                mlp_in=drawn(hidden_size, 4 * hidden_size),
                mlp_out=drawn(4 * hidden_size, hidden_size),
            )
            for _ in range(num_layers)
        )
        self.head = drawn(hidden_size, num_symbols)

    def forward(self) -> Float[Tensor, " Y"]:
        """Log-probabilities of all strings."""
        hidden = self.symbols[self.spelling.inputs] + self.positions
        for layer in self.layers:
            hidden = layer(hidden)
        return self.spelling.string_logprobs(_normalized(hidden) @ self.head)


class _Layer(nn.Module):
    """Attention, then MLP, each added to the residual stream."""

    def __init__(
        self,
        num_heads: int,
        *,
        attention_in: nn.Parameter,
        attention_out: nn.Parameter,
        mlp_in: nn.Parameter,
        mlp_out: nn.Parameter,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_in, self.attention_out = attention_in, attention_out
        self.mlp_in, self.mlp_out = mlp_in, mlp_out

    def forward(self, hidden: Float[Tensor, "N T D"]) -> Float[Tensor, "N T D"]:
        hidden = hidden + self._attention(_normalized(hidden))
        return hidden + gelu(_normalized(hidden) @ self.mlp_in) @ self.mlp_out

    def _attention(self, hidden: Float[Tensor, "N T D"]) -> Float[Tensor, "N T D"]:
        rows, length, width = hidden.shape
        query, key, value = (
            (hidden @ self.attention_in)
            .view(rows, length, 3, self.num_heads, width // self.num_heads)
            .permute(2, 0, 3, 1, 4)
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        is_later = torch.ones(length, length, dtype=torch.bool).triu(diagonal=1)
        weights = scores.masked_fill(is_later, -torch.inf).softmax(dim=-1)
        mixed: Tensor = (weights @ value).transpose(1, 2).reshape(hidden.shape)
        return mixed @ self.attention_out


class Spelling:
    """How the strings of a language are spelled, symbol by symbol, with an end symbol.

    A string ends by the end symbol or, at the greatest length, because it must; it does not end
    before its first symbol. So the probabilities of all strings sum to one. Symbols are numbered in
    the alphabet's order; the next number is the end symbol as a target and the beginning as an
    input.

    Args:
        language: A language with Y strings of up to L symbols over A different ones.
    """

    inputs: Int[Tensor, "Y L"]
    """What stands before each place: the beginning, then the string without its last symbol."""

    targets: Int[Tensor, "Y L"]
    """What comes at each place: the string, then the end symbol if there is room."""

    counts: Bool[Tensor, "Y L"]
    """True at the places whose target is a factor of the string's probability."""

    prefixes: Int[Tensor, "Y L"]
    """For each place, the number of the prefix that stands before it; 0 where nothing counts."""

    num_prefixes: int
    """How many beginnings a string can have at which a next symbol is drawn."""

    def __init__(self, language: FiniteLanguage) -> None:
        symbols, longest = range(len(language.alphabet)), language.longest
        spelled = [s for n in range(1, longest + 1) for s in product(symbols, repeat=n)]
        prefixes = {s: i for i, s in enumerate([(), *(s for s in spelled if len(s) < longest)])}
        end = len(language.alphabet)
        filled = torch.tensor([[*s, *[end] * (longest - len(s))] for s in spelled])
        self.targets = filled
        self.inputs = torch.cat([torch.full_like(filled[:, :1], end), filled[:, :-1]], dim=1)
        lengths = torch.tensor([len(s) for s in spelled])
        self.counts = torch.arange(longest) <= lengths[:, None]
        self.prefixes = torch.tensor(
            [[prefixes[s[:n]] if n <= len(s) else 0 for n in range(longest)] for s in spelled]
        )
        self.num_prefixes = len(prefixes)
        self._ends_at_once = torch.zeros(longest, end + 1, dtype=torch.bool)
        self._ends_at_once[0, end] = True

    def string_logprobs(self, logits: Float[Tensor, "Y L S"]) -> Float[Tensor, " Y"]:
        """Log-probability of every string, from the logits of the next symbol at each place."""
        allowed = logits.masked_fill(self._ends_at_once, -torch.inf)
        chosen = allowed.log_softmax(dim=-1).gather(2, self.targets[..., None])[..., 0]
        return chosen.where(self.counts, 0).sum(dim=1)


def parameter_gradient(value: Float[Tensor, ""], policy: nn.Module) -> Float[Tensor, " P"]:
    """Gradient of a number with respect to all parameters of a policy, laid end to end.

    A parameter on which the number does not depend has a gradient of zero.
    """
    parameters = list(policy.parameters())
    gradients = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


def _parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone().double())


def _normalized(hidden: Tensor) -> Tensor:
    return layer_norm(hidden, hidden.shape[-1:])
