"""The bridge: what the laboratory proves of tables is true of the models that train.

Over a finite language every completion can be listed. The probabilities that a language model gives
to them, by the very packed rows that train it, are a table like those of the laboratory, and an
objective fed from rows is the objective fed from the table: same value, same gradient with respect
to every weight. The models compute in float32; the tables beside them come from a float64 copy, one
plain sequence at a time.
"""

import itertools
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from veritune.laboratory.extremes import largest_residual, smallest_control
from veritune.laboratory.group_draws import expected_group_loss, proportional_group
from veritune.laboratory.languages import FiniteLanguage
from veritune.laboratory.policies import parameter_gradient
from veritune.laboratory.population import GLOBAL_BATCH, population_loss
from veritune.laboratory.problems import bradley_terry_problem, independent_pairs, mixture_problem
from veritune.laboratory.theorem import Evidence, Theorem
from veritune.laboratory.theorems.catalog import THEOREMS
from veritune.logprobs import (
    CompletionLogProbs,
    LogProbs,
    PairedLogProbs,
    ScoredLogProbs,
    UnpairedLogProbs,
)
from veritune.models.forward import CausalModel, Sharing
from veritune.models.tiny import Family, tiny_model
from veritune.objectives.optimum import FiniteProblem
from veritune.objectives.paired.dpo import dpo_loss
from veritune.objectives.paired.pmle import pmle_loss
from veritune.objectives.scored.dpo_rw import dpo_rw_loss
from veritune.objectives.scored.exo_rw import exo_rw_loss
from veritune.objectives.unpaired.rdro import rdro_loss
from veritune.records.kinds import Origin
from veritune.seeds import stream
from veritune.tokens.encode import TokenizedCompletion, TokenizedRecord

_FAMILIES: tuple[Family, ...] = ("qwen2", "opt")
_LAYOUTS: tuple[Sharing, ...] = ("shared", "packed", "padded")
_LANGUAGE = FiniteLanguage(("a", "b"), longest=3)
_END = len(_LANGUAGE.alphabet)
"""Id of the end-of-sequence token; the symbols come before it, in the alphabet's order."""

_PROMPTS = ((0, 1), (1, 1, 0))
_OTHER_TEMPERATURE = 1.1
_FLOAT32 = 1e-5
"""Tolerance of what passes through float32 layers: a hundred roundings, and several times
the largest difference seen."""


def _completions(*, end_bears_loss: bool = True) -> tuple[TokenizedCompletion, ...]:
    """The empty completion and every string of the language, as ids.

    One that is shorter than the longest is ended by the end token. The longest end because they
    must: their end token bears no loss. So each infinite continuation begins with exactly one of
    them, and their probabilities sum to one.
    """
    symbols, found = range(_END), []
    for length in range(_LANGUAGE.longest + 1):
        for spelled in itertools.product(symbols, repeat=length):
            bears_loss = np.ones(length + 1, np.bool_)
            bears_loss[-1] = end_bears_loss and length < _LANGUAGE.longest
            found.append(TokenizedCompletion(np.array([*spelled, _END], np.int32), bears_loss))
    return tuple(found)


def _record(prompt: Sequence[int], completions: Sequence[TokenizedCompletion]) -> TokenizedRecord:
    return TokenizedRecord(np.array(prompt, np.int32), tuple(completions), Origin("language", 1))


@torch.no_grad()
def _model(family: Family, seed: int) -> Any:
    """A tiny model whose weights are so large that its probabilities are far from uniform."""
    hf_model = tiny_model(family, vocab_size=_END + 1, hidden_size=16, num_layers=2, seed=seed)
    generator = stream(seed, "bridge", "weights", family)
    for parameter in hf_model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)
        else:
            parameter.add_(0.1 * noise)
    return hf_model


def _in_float64(hf_model: Any) -> Any:
    """A copy in float64 that attends as transformers does."""
    copy = deepcopy(hf_model).double()
    copy.set_attn_implementation("eager")
    return copy


def _table(model: CausalModel, prompt: Sequence[int]) -> Float[Tensor, " Y"]:
    """Log-probability of every completion, as training computes it."""
    return model.completion_logprobs(model.batch([_record(prompt, _completions())], [0]))[0]


def _plain_table(hf_model: Any, prompt: Sequence[int]) -> Float[Tensor, " Y"]:
    """The same from the model's own logits of one whole sequence at a time, with gradient."""
    sums = []
    for completion in _completions():
        ids = torch.tensor([[*prompt, *completion.ids.tolist()]])
        logprobs = hf_model(input_ids=ids, use_cache=False).logits[0].log_softmax(dim=-1)
        tokens = logprobs[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None])[:, 0]
        sums.append(tokens[torch.from_numpy(completion.bears_loss)].sum())
    return torch.stack(sums)


def _distance(first: Tensor, second: Tensor) -> float:
    """Length of the difference over the length of the second."""
    return float((first - second).norm() / second.norm())


def probabilities_sum_to_one() -> Evidence:
    """Probabilities of all completions of two prompts in one row, in every layout."""
    residuals: list[Tensor] = []
    controls: list[Tensor] = []
    for family in _FAMILIES:
        hf_model = _model(family, seed=0)
        for layout in _LAYOUTS:
            model = CausalModel(hf_model, sharing=layout)
            for end_bears_loss, distances in ((True, residuals), (False, controls)):
                completions = _completions(end_bears_loss=end_bears_loss)
                # A completion of which nothing bears loss has probability one.
                groups = [_record(prompt, completions) for prompt in _PROMPTS]
                with torch.no_grad():
                    sums = model.completion_logprobs(model.batch(groups, range(len(groups))))[0]
                totals = sums.view(len(groups), -1).exp().sum(dim=1)
                distances.append((totals - 1).abs())
    worst, control = float(torch.cat(residuals).max()), float(torch.cat(controls).min())
    return Evidence(
        worst,
        control,
        f"{' and '.join(_FAMILIES)}, {', '.join(_LAYOUTS)} rows, {len(_completions())} "
        f"completions of two prompts: largest difference from one {worst:.1e}; where the end token "
        f"does not count, {control:.2f}",
    )


def rows_agree_with_plain_sequences() -> Evidence:
    """Log-probabilities by packed rows against float64 logits of one sequence at a time."""
    residuals: list[float] = []
    controls: list[float] = []
    for family in _FAMILIES:
        hf_model = _model(family, seed=0)
        for prompt in _PROMPTS:
            with torch.no_grad():
                plain = _plain_table(_in_float64(hf_model), prompt)
                for layout in _LAYOUTS:
                    for temperature, distances in (
                        (1.0, residuals),
                        (_OTHER_TEMPERATURE, controls),
                    ):
                        model = CausalModel(hf_model, sharing=layout, temperature=temperature)
                        found = _table(model, prompt)
                        distances.append(float((found - plain).abs().max()))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"{' and '.join(_FAMILIES)}, {', '.join(_LAYOUTS)} rows: largest difference "
        f"{max(residuals):.1e} nats",
    )


@dataclass(frozen=True)
class _World:
    """A policy and a reference, as models and as tables, and a problem in their language."""

    policy: CausalModel
    reference: CausalModel
    exact: Any
    """The policy in float64."""

    problem: FiniteProblem
    """Its reference is that of the float64 copy."""

    prompt: tuple[int, ...]

    def plain_table(self) -> Float[Tensor, " Y"]:
        """Log-probabilities of the policy from plain float64 sequences, with gradient."""
        return _plain_table(self.exact, self.prompt)

    def completions(self, which: Int[Tensor, "B K"]) -> CompletionLogProbs:
        """Groups of completions, by index, through policy and reference, prompts shared."""
        every = _completions()
        groups = [_record(self.prompt, [every[y] for y in row]) for row in which.tolist()]
        indices = range(len(groups))
        policy, length, _ = self.policy.completion_logprobs(self.policy.batch(groups, indices))
        with torch.no_grad():
            reference = self.reference.completion_logprobs(self.reference.batch(groups, indices))[0]
        return CompletionLogProbs(
            policy.view(which.shape), length.view(which.shape), reference.view(which.shape)
        )


def _world(
    family: Family,
    prompt: tuple[int, ...],
    *,
    temperature: float = 1.0,
    same_reference: bool = False,
) -> _World:
    """A policy of a family and another model, or the same, as its reference."""
    hf_policy = _model(family, seed=0)
    hf_reference = deepcopy(hf_policy) if same_reference else _model(family, seed=1)
    with torch.no_grad():
        reference = _plain_table(_in_float64(hf_reference), prompt)
    size = len(reference)
    labels = mixture_problem(size, seed=0, desirable_fraction=0.4)
    rewarded = bradley_terry_problem(size, seed=0)
    problem = FiniteProblem(
        reference=reference,
        reward=rewarded.reward,
        preferences=rewarded.preferences,
        pair_law=independent_pairs(reference),
        desirable=labels.desirable,
        undesirable=labels.undesirable,
        desirable_fraction=labels.desirable_fraction,
    )
    return _World(
        CausalModel(hf_policy, temperature=temperature),
        CausalModel(hf_reference, temperature=temperature),
        _in_float64(hf_policy),
        problem,
        prompt,
    )


class _Data(NamedTuple):
    """Every example of a kind of data, through the models, with its probability."""

    weight: Float[Tensor, " B"]
    logprobs: LogProbs


def _pairs(world: _World) -> _Data:
    problem = world.problem
    assert problem.preferences is not None, "pairs have preferences"
    assert problem.pair_law is not None, "pairs have a law"
    every = torch.arange(problem.num_completions)
    sides = world.completions(torch.cartesian_prod(every, every))
    chosen, rejected = (
        CompletionLogProbs(sides.policy[:, k], sides.length[:, k], _of(sides.reference)[:, k])
        for k in (0, 1)
    )
    # A pair is put to comparison in either order.
    weight = (problem.pair_law + problem.pair_law.T) * problem.preferences
    return _Data(weight.flatten(), PairedLogProbs(chosen, rejected))


def _groups_of_two(world: _World) -> _Data:
    problem = world.problem
    assert problem.reward is not None, "scores are a reward"
    every = torch.arange(problem.num_completions)
    which = torch.cartesian_prod(every, every)
    groups = ScoredLogProbs(
        world.completions(which),
        scores=problem.reward[which],
        present=torch.ones_like(which, dtype=torch.bool),
    )
    return _Data(problem.reference[which].sum(dim=1).exp(), groups)


def _labels(world: _World) -> _Data:
    problem = world.problem
    assert problem.desirable is not None, "labels have two laws"
    assert problem.undesirable is not None, "labels have two laws"
    assert problem.desirable_fraction is not None, "labels have a fraction of desirable ones"
    size, share = problem.num_completions, problem.desirable_fraction
    single = world.completions(torch.arange(size).repeat(2)[:, None])
    num_desirable = round(share * GLOBAL_BATCH)
    labels = UnpairedLogProbs(
        CompletionLogProbs(single.policy[:, 0], single.length[:, 0], _of(single.reference)[:, 0]),
        desirable=torch.arange(2 * size) < size,
        num_desirable=num_desirable,
        num_undesirable=GLOBAL_BATCH - num_desirable,
    )
    weight = torch.cat([share * problem.desirable.exp(), (1 - share) * problem.undesirable.exp()])
    return _Data(weight, labels)


def _of(reference: Tensor | None) -> Tensor:
    assert reference is not None, "the rows went through the reference"
    return reference


class _Case(NamedTuple):
    """An objective, its data through models, and its hyper-parameters."""

    loss: Callable[..., Tensor]
    data: Callable[[_World], _Data]
    hyperparameters: dict[str, Any]


_CASES = (
    _Case(dpo_loss, _pairs, {"beta": 0.3}),
    _Case(pmle_loss, _pairs, {"gamma": 0.3}),
    _Case(exo_rw_loss, _groups_of_two, {"beta_pi": 0.5, "beta_r": 0.7}),
    _Case(rdro_loss, _labels, {"alpha": 0.4}),
)


def _by_rows(world: _World, case: _Case) -> tuple[float, Float[Tensor, " P"]]:
    """Expected loss and its gradient over the weights, through packed rows."""
    data = case.data(world)
    value = (data.weight * case.loss(data.logprobs, **case.hyperparameters)).sum()
    return float(value.detach()), parameter_gradient(value, world.policy.hf).double()


def _by_table(world: _World, case: _Case) -> tuple[float, Float[Tensor, " P"]]:
    """The same by the laboratory's expectation, fed from the table of plain sequences."""
    expected = population_loss(case.loss, world.problem, **case.hyperparameters)
    value = expected(world.plain_table())
    return float(value.detach()), parameter_gradient(value, world.exact)


def objectives_agree_with_tables() -> Evidence:
    """Values and gradients of four objectives, through rows and through the table."""
    residuals: list[float] = []
    controls: list[float] = []
    for family in _FAMILIES:
        prompt = _PROMPTS[0]
        world = _world(family, prompt)
        warmer = _world(family, prompt, temperature=_OTHER_TEMPERATURE)
        for case in _CASES:
            value, gradient = _by_table(world, case)
            for given, distances in ((world, residuals), (warmer, controls)):
                found, along = _by_rows(given, case)
                distances.append(max(abs(found - value), _distance(along, gradient)))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"{' and '.join(_FAMILIES)}, dpo, pmle, exo_rw and rdro over all pairs, groups of two and "
        f"labels of {len(_completions())} completions: values differ by at most, and gradients "
        f"over all weights by a relative {max(residuals):.1e}",
    )


def _counted_reference(size: int) -> tuple[Int[Tensor, " Y"], FiniteProblem]:
    """A reference whose probabilities are whole numbers over their sum."""
    generator = stream(0, "bridge", "counted reference")
    counts = torch.randint(1, 6, (size,), generator=generator)
    problem = FiniteProblem(
        reference=(counts.double() / counts.sum()).log(),
        reward=bradley_terry_problem(size, seed=0).reward,
    )
    return counts, problem


def _reinforcement_gradient(
    table: Float[Tensor, " Y"], hf_model: Any, problem: FiniteProblem, beta_r: float, beta_pi: float
) -> Float[Tensor, " P"]:
    """`-1/beta_r` times the gradient of E[reward] - beta_r KL(tempered policy || reference)."""
    assert problem.reward is not None, "a reward is maximized"
    law = torch.log_softmax(beta_pi * table + (1 - beta_pi) * problem.reference, dim=0)
    gain = (law.exp() * (problem.reward - beta_r * (law - problem.reference))).sum()
    return -parameter_gradient(gain, hf_model) / beta_r


def exo_follows_rl_in_models() -> Evidence:
    """EXO's gradient on the weights, for a group that holds all completions in proportion."""
    residuals: list[float] = []
    controls: list[float] = []
    for family in _FAMILIES:
        world = _world(family, _PROMPTS[0])
        counts, problem = _counted_reference(world.problem.num_completions)
        groups = proportional_group(counts)
        for beta_r, beta_pi in ((1.0, 1.0), (0.5, 0.5), (0.2, 0.7)):
            truth = _reinforcement_gradient(
                world.plain_table(), world.exact, problem, beta_r, beta_pi
            )
            for loss, distances in ((exo_rw_loss, residuals), (dpo_rw_loss, controls)):
                expected = expected_group_loss(
                    loss, problem, groups, beta_r=beta_r, beta_pi=beta_pi
                )
                value = expected(_table(world.policy, world.prompt))
                found = parameter_gradient(value, world.policy.hf).double()
                distances.append(_distance(found, truth))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"{' and '.join(_FAMILIES)}, {len(_completions())} completions, one group of "
        f"{int(counts.sum())}: relative distance at most {max(residuals):.1e}; DPO-rw's gradient "
        f"is at least {min(controls):.2g} away",
    )


def exo_begins_along_rl_in_models() -> Evidence:
    """EXO's expected gradient on pairs where the reference is the policy itself."""
    residuals: list[float] = []
    controls: list[float] = []
    hyperparameters = {"beta_pi": 0.5, "beta_r": 0.7}
    for family in _FAMILIES:
        for prompt in _PROMPTS:
            world = _world(family, prompt, same_reference=True)
            truth = _reinforcement_gradient(
                world.plain_table(), world.exact, world.problem, beta_r=0.7, beta_pi=0.5
            )
            for loss, distances in ((exo_rw_loss, residuals), (dpo_rw_loss, controls)):
                _, found = _by_rows(world, _Case(loss, _groups_of_two, hyperparameters))
                distances.append(_distance(found, truth / 2))
    return Evidence(
        largest_residual(residuals),
        smallest_control(controls),
        f"{' and '.join(_FAMILIES)}, all pairs of {len(_completions())} completions: relative "
        f"distance at most {max(residuals):.1e}; DPO-rw's gradient is at least {min(controls):.2g} "
        "away",
    )


_EXO = "Ji et al. 2024, arXiv:2402.00856"

BRIDGE: tuple[Theorem, ...] = (
    Theorem(
        name="probabilities_of_a_model_sum_to_one",
        claim="Over all completions of a finite language, the probabilities that a model gives in "
        "packed and padded rows sum to one.",
        control="They do so without the end-of-sequence token.",
        source="the chain rule",
        methods=("dpo", "pmle", "exo_rw", "rdro"),
        tolerance=_FLOAT32,
        check=probabilities_sum_to_one,
    ),
    Theorem(
        name="rows_agree_with_plain_sequences",
        claim="Log-probabilities in packed rows with shared prompts are those of one plain "
        "sequence at a time.",
        control="They are those at another temperature.",
        source="a property of causal attention",
        methods=("dpo", "pmle", "exo_rw", "rdro"),
        tolerance=_FLOAT32,
        check=rows_agree_with_plain_sequences,
    ),
    Theorem(
        name="objectives_agree_with_tables",
        claim="An objective fed from the packed rows of a model has the value, and over all "
        "weights the gradient, of the objective fed from the table of its probabilities.",
        control="It has those at another temperature.",
        source="derived here",
        methods=("dpo", "pmle", "exo_rw", "rdro"),
        tolerance=_FLOAT32,
        check=objectives_agree_with_tables,
    ),
    Theorem(
        name="exo_follows_rl_in_models",
        claim="On a group that holds every completion in proportion to the reference, EXO's "
        "gradient on a language model's weights is -1/beta_r times that of KL-regularized RL.",
        control="DPO-rw's gradient is.",
        source=f"{_EXO}, asymptotic equivalence",
        methods=("exo_rw",),
        contrasts=("dpo_rw",),
        tolerance=_FLOAT32,
        check=exo_follows_rl_in_models,
    ),
    Theorem(
        name="exo_begins_along_rl_in_models",
        claim="Where training starts, EXO's expected gradient on pairs is half of that of "
        "KL-regularized RL, over beta_r, on a language model's weights.",
        control="DPO-rw's is.",
        source="derived here, from the group form of arXiv:2402.00856",
        methods=("exo_rw",),
        contrasts=("dpo_rw",),
        tolerance=_FLOAT32,
        check=exo_begins_along_rl_in_models,
    ),
)

EVERY_THEOREM: tuple[Theorem, ...] = (*THEOREMS, *BRIDGE)
"""Those of the laboratory on tables, and then those on models."""
