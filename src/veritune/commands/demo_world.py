"""The demo's world: a small language, a reader of known taste, their feedback, exact distances."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from veritune import seeds
from veritune.laboratory.languages import FiniteLanguage
from veritune.models.forward import CausalModel
from veritune.models.load import find_model, load_hf_model, load_tokenizer
from veritune.records.kinds import Demonstration, Origin, Paired, Record, Scored, Unpaired
from veritune.tokens.encode import TextEncoder, TokenizedRecord, encode_record

LETTERS = ("a", "b", "c", "d")
PROMPTS = ("x", "y", "z")
LONGEST = 3
DESIRABLE_FRACTION = 0.4
TASTE = 2.5
"""How much the reader cares: log-odds of approval between a letter loved and a letter hated."""

Feedback = Literal["labels", "pairs", "target pairs"]
"""What a reader gives: one of the three forms of `feedback`."""


@dataclass(frozen=True)
class World:
    """The language, the reader and the distributions, all exact; X prompts, Y strings."""

    language: FiniteLanguage
    approval: Float[Tensor, "X Y"]
    """Probability that the reader approves of a string under a prompt."""

    reference: Float[Tensor, "X Y"]
    """Probabilities of the taught model, normalized over the language."""

    @property
    def target(self) -> Float[Tensor, "X Y"]:
        """The law of approved strings: reference times approval, normalized."""
        joint = self.reference * self.approval
        return joint / joint.sum(1, keepdim=True)


class ExactMeasurement:
    """Probabilities of every string of the language under every prompt, by a model."""

    def __init__(self, model_folder: Path, language: FiniteLanguage) -> None:
        self._source = find_model(str(model_folder))
        encoder = TextEncoder(load_tokenizer(self._source))
        origin = Origin("demo", 0)
        scores = (0.0,) * len(language.strings)
        self._groups: list[TokenizedRecord] = [
            encode_record(encoder, Scored(prompt, language.strings, scores, origin))
            for prompt in PROMPTS
        ]

    def load(self) -> CausalModel:
        """The taught model."""
        return CausalModel(load_hf_model(self._source, device=torch.device("cpu")))

    @torch.no_grad()
    def probabilities(self, model: CausalModel) -> Float[Tensor, "X Y"]:
        """Float64; what a row lacks to 1 the model gives to strings outside the language."""
        batch = model.batch(self._groups, range(len(self._groups)))
        sums, _, _ = model.completion_logprobs(batch)
        return sums.view(len(PROMPTS), -1).exp()


def demonstrations(language: FiniteLanguage, num: int, seed: int) -> list[Demonstration]:
    """Strings of a random chain of letters, one chain per prompt."""
    generator = seeds.stream(seed, "teacher")
    chain = torch.randn(len(PROMPTS), len(LETTERS) + 1, len(LETTERS), generator=generator)
    law = torch.stack([_chain_law(language, chain[x]) for x in range(len(PROMPTS))])
    return [
        Demonstration(PROMPTS[x], language.strings[y], Origin("teacher", n))
        for n, (x, y) in enumerate(draw(law, num, seed, "demonstrations"))
    ]


def _chain_law(language: FiniteLanguage, logits: Float[Tensor, "S A"]) -> Float[Tensor, " Y"]:
    """Probabilities of strings whose letters depend on the one before, all lengths equally."""
    logprobs = logits.double().log_softmax(-1)
    place = {letter: number for number, letter in enumerate(LETTERS)}
    values = []
    for string in language.strings:
        before, total = len(LETTERS), 0.0
        for letter in string:
            total += float(logprobs[before, place[letter]])
            before = place[letter]
        values.append(total)
    return torch.tensor(values, dtype=torch.float64).exp() / LONGEST


def make_world(language: FiniteLanguage, before: Float[Tensor, "X Y"], seed: int) -> World:
    """The reader's approval, shifted so that each prompt has the same share of approved strings.

    RDRO and DDRO take the reference for the mixture of approved and disapproved strings, with one
    share for all prompts; here that holds exactly.
    """
    reference = before / before.sum(1, keepdim=True)
    generator = seeds.stream(seed, "reader")
    taste = TASTE * (torch.rand(len(PROMPTS), len(LETTERS), generator=generator).double() - 0.5)
    counts = torch.tensor(
        [[string.count(letter) for letter in LETTERS] for string in language.strings]
    ).double()
    liking = taste @ counts.T
    low, high = torch.full((len(PROMPTS), 1), -50.0), torch.full((len(PROMPTS), 1), 50.0)
    low, high = low.double(), high.double()
    for _ in range(80):
        middle = (low + high) / 2
        share = (reference * torch.sigmoid(liking + middle)).sum(1, keepdim=True)
        low = torch.where(share < DESIRABLE_FRACTION, middle, low)
        high = torch.where(share < DESIRABLE_FRACTION, high, middle)
    return World(language, torch.sigmoid(liking + middle), reference)


def feedback(world: World, num: int, seed: int) -> dict[Feedback, list[Record]]:
    """The reader's word on strings that the reference wrote, in three forms.

    Args:
        world: The reader and the reference.
        num: How many labels; pairs of equal strings are left out, so there are fewer of them.
        seed: Another one draws other strings and other words.
    """
    strings = world.language.strings
    coin = torch.rand(3, num, generator=seeds.stream(seed, "coins")).double()
    singles = draw(world.reference, num, seed, "first")
    # The second string of a pair answers the same prompt as the first.
    seconds = (
        torch.stack([world.reference[x] for x, _ in singles])
        .multinomial(1, generator=seeds.stream(seed, "second"))[:, 0]
        .tolist()
    )
    records: dict[Feedback, list[Record]] = {"labels": [], "pairs": [], "target pairs": []}
    for number, ((x, first), second) in enumerate(zip(singles, seconds, strict=True)):
        prompt, origin = PROMPTS[x], Origin("reader", number)
        desirable = bool(coin[0, number] < world.approval[x, first])
        records["labels"].append(Unpaired(prompt, strings[first], desirable, origin))
        if first == second:
            continue
        values: tuple[tuple[Feedback, Tensor], ...] = (
            ("pairs", world.approval[x]),
            ("target pairs", world.target[x]),
        )
        for place, (form, value) in enumerate(values, start=1):
            wins = coin[place, number] < value[first] / (value[first] + value[second])
            better, worse = (first, second) if wins else (second, first)
            records[form].append(Paired(prompt, strings[better], strings[worse], origin))
    return records


def draw(law: Float[Tensor, "X Y"], num: int, seed: int, stream: str) -> list[tuple[int, int]]:
    """Prompt and string of draws: prompts in turn, strings from the law of the prompt."""
    generator = seeds.stream(seed, stream)
    prompts = torch.arange(num) % len(law)
    strings = law[prompts].multinomial(1, generator=generator)[:, 0]
    return list(zip(prompts.tolist(), strings.tolist(), strict=True))


def kl(target: Float[Tensor, "X Y"], policy: Float[Tensor, "X Y"]) -> float:
    """KL(target || policy) in nats, the mean over prompts; exact."""
    return float((target * (target / policy).log()).sum(1).mean())


def expected(law: Float[Tensor, "X Y"], reward: Float[Tensor, "X Y"]) -> float:
    """Expected reward over the language, the mean over prompts; exact."""
    return float((law * reward).sum(1).mean())
