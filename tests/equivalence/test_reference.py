"""The reference: whose log-probabilities they are, and that the cache changes nothing."""

import copy
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from longhand import sequence_logprob
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from run_world import Listener, World, lines, same_weights, write_model
from tiny_world import (
    FROM_RECORDS,
    batch_of,
    gradients,
    lively_model,
    make_pass,
    perturbed,
    random_dataset,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from veritune.commands import train as train_command
from veritune.errors import ReferenceCacheError, SettingsError, VerituneWarning
from veritune.models.cache import ReferenceCache
from veritune.models.forward import CausalModel
from veritune.models.tiny import byte_level_tokenizer, tiny_model, write_tiny_model
from veritune.objectives.catalog import CATALOG
from veritune.tokens.encode import TokenizedRecord
from veritune.training.objective_pass import ObjectivePass
from veritune.training.step import TrainingStep


class Live:
    """A reference that is asked anew each time, one group in a row of its own."""

    def __init__(self, model: Any) -> None:
        self.model = CausalModel(copy.deepcopy(model))

    @torch.no_grad()
    def sums(self, groups: Sequence[TokenizedRecord]) -> torch.Tensor:
        rows = [self.model.batch([group], [0]) for group in groups]
        return torch.cat([self.model.completion_logprobs(row)[0] for row in rows])

    @torch.no_grad()
    def common_sums(self, pairs: Sequence[TokenizedRecord]) -> torch.Tensor:
        sums = []
        for pair in pairs:
            _, lengths, tokens = self.model.completion_logprobs(self.model.batch([pair], [0]))
            sides = torch.split(tokens, lengths.tolist())
            sums += [side[: min(lengths)].double().sum() for side in sides]
        return torch.stack(sums)


@pytest.mark.parametrize("name", [n for n in FROM_RECORDS if CATALOG[n].needs_reference])
def test_a_cached_reference_gives_the_loss_and_gradient_of_a_live_one(
    name: str, tmp_path: Path
) -> None:
    policy = lively_model(seed=1)
    reference = perturbed(policy, 0.004, seed=5)
    dataset = random_dataset(CATALOG[name].kind, 13, seed=3)
    batch = batch_of(dataset, 11)
    cached = make_pass(name, policy, reference, dataset, batch, tmp_path)
    live = make_pass(name, policy, reference, dataset, batch, tmp_path)
    live.reference = Live(reference)  # type: ignore[assignment]
    one, other = (p.run(batch, backward=True) for p in (cached, live))
    # A group by itself is rounded otherwise than among others.
    assert other.loss == pytest.approx(one.loss, rel=1e-5)
    assert other.metrics == pytest.approx(one.metrics, rel=1e-5, abs=4e-6)
    got, expected = gradients(live), gradients(cached)
    for parameter in expected:
        assert (got[parameter] - expected[parameter]).norm() < 4e-5 * expected[parameter].norm()


def test_a_second_run_takes_the_reference_from_the_cache_and_ends_the_same(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    displays = [Listener(), Listener(), Listener()]
    world.train("kto", "first", display=displays[0])
    world.train("kto", "second", display=displays[1])
    world.train("kto", "elsewhere", display=displays[2], cache=tmp_path / "another cache")
    assert displays[1].told("log-probabilities: 0 groups scored")
    assert not displays[0].told("log-probabilities: 0 groups scored")
    assert not displays[2].told("log-probabilities: 0 groups scored")
    assert same_weights(tmp_path / "first", tmp_path / "second")
    assert lines(tmp_path / "first") == lines(tmp_path / "second")
    assert same_weights(tmp_path / "first", tmp_path / "elsewhere")


def test_runs_of_other_objectives_orders_and_batches_share_the_reference(tmp_path: Path) -> None:
    world = World(tmp_path)
    everything: dict[str, Any] = {"train__steps": None, "train__epochs": 1}
    display = Listener()
    world.train("dpo", "first", display=display, **everything)
    assert display.told("log-probabilities: 13 groups scored")
    others: list[tuple[str, dict[str, Any]]] = [
        ("dpo", {"train__seed": 5}),
        ("dpo", {"train__batch_size": 3, "train__epochs": 2.5}),
        ("dpo", {"train__tokens_per_row": 60}),
        ("ipo", {"objective__tau": 0.2}),
        ("ld_dpo", {"train__learning_rate": 1e-4}),
        ("robust_dpo", {"adapter": "{rank: 2}"}),
    ]
    for number, (objective, changes) in enumerate(others):
        display = Listener()
        world.train(objective, f"other {number}", display=display, **everything | changes)
        assert display.told("log-probabilities: 0 groups scored in 0 s, 13 from")
    # Control: what changes the values is scored anew.
    display = Listener()
    world.train("dpo", "colder", display=display, **everything, train__temperature=0.5)
    assert display.told("log-probabilities: 13 groups scored")


class Death(Exception):
    """What stands for a process that dies."""


def test_a_run_with_an_adapter_scores_its_base_before_it_carries_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a fresh run and in one that is continued; held-out records are among what is scored."""
    world = World(tmp_path)
    scorers: list[tuple[bool, int]] = []
    models: list[Any] = []
    load, score = train_command.load_hf_model, train_command.score_reference

    def loaded(*arguments: Any, **named: Any) -> Any:
        models.append(load(*arguments, **named))
        return models[-1]

    def watched(model: CausalModel, *arguments: Any, **named: Any) -> Any:
        carries = any(isinstance(part, BaseTunerLayer) for part in model.hf.modules())
        counts = score(model, *arguments, **named)
        scorers.append((carries, counts.num_scored))
        return counts

    def dying(self: TrainingStep, step: int, batch: Any) -> dict[str, float]:
        line = run(self, step, batch)
        if step == 5:
            raise Death
        return line

    monkeypatch.setattr(train_command, "load_hf_model", loaded)
    monkeypatch.setattr(train_command, "score_reference", watched)
    changes: dict[str, Any] = {"adapter": "{rank: 4}", "evaluation__fraction": 0.3}
    world.train("dpo", "whole", **changes)
    run = TrainingStep.run
    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "run", dying)
        with pytest.raises(Death):
            world.train("dpo", "broken", **changes)
    # The run goes on with adapters that are no longer zero, and has to score everything again.
    shutil.rmtree(tmp_path / "cache")
    world.train("dpo", "broken", **changes)

    assert scorers == [(False, 13), (False, 0), (False, 13)]
    assert len(models) == 3, "one model a run"
    assert same_weights(tmp_path / "whole", tmp_path / "broken")
    assert lines(tmp_path / "whole") == lines(tmp_path / "broken")


@pytest.mark.parametrize("sharing", ["shared", "packed", "padded"])
@pytest.mark.parametrize("name", ["dpo", "kto", "ld_dpo"])
def test_a_policy_that_is_the_reference_has_log_ratios_of_zero_in_every_layout(
    name: str, sharing: Any, tmp_path: Path
) -> None:
    """The reference was scored in shared rows, the policy goes its own way."""
    model = lively_model(seed=1)
    dataset = random_dataset(CATALOG[name].kind, 13, seed=3)
    batch = batch_of(dataset, 11)
    same = make_pass(
        name, model, model, dataset, batch, tmp_path / "same", sharing=sharing, tokens_per_row=20
    )
    other = make_pass(
        name, model, perturbed(model, 0.004, seed=5), dataset, batch, tmp_path, sharing=sharing
    )
    assert same.run(batch).largest_log_ratio < 0.1
    assert other.run(batch).largest_log_ratio > 1


def test_a_cache_that_was_scored_by_other_weights_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path)
    add = ReferenceCache.add

    def wrong(self: ReferenceCache, entries: Any) -> None:
        add(self, {key: values + 0.01 for key, values in entries.items()})

    with monkeypatch.context() as patch:
        patch.setattr(ReferenceCache, "add", wrong)
        with pytest.raises(Exception, match="log-probabilities differ"):
            world.train("dpo", "first")
    with pytest.raises(ReferenceCacheError, match="not what the reference gives now"):
        world.train("dpo", "second")
    shutil.rmtree(tmp_path / "cache")
    world.train("dpo", "third")


def test_a_damaged_file_of_the_cache_is_scored_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.train("dpo", "first")
    (file,) = (tmp_path / "cache").rglob("values-*.safetensors")
    content = bytearray(file.read_bytes())
    content[-3] ^= 0x40
    file.write_bytes(bytes(content))
    with pytest.warns(VerituneWarning, match="scored again"):
        world.train("dpo", "second")
    assert same_weights(tmp_path / "first", tmp_path / "second")


def first_step(run: Path) -> dict[str, Any]:
    return next(line for line in lines(run) if line["step"] == 1)


def longhand_rewards(
    world: World, reference: Any, beta: float, temperature: float = 1.0
) -> tuple[float, float]:
    """Rewards of the first batch, from plain transformers; the whole data are one batch."""
    tokenizer = AutoTokenizer.from_pretrained(world.model)
    policy = AutoModelForCausalLM.from_pretrained(world.model).double().eval()
    reference = reference.double().eval()
    rows = [json.loads(row) for row in world.records("paired", 4).read_text().splitlines()]
    sides = []
    for side in ("chosen", "rejected"):
        rewards = []
        for row in rows:
            prompt = tokenizer.apply_chat_template(
                row["prompt"], add_generation_prompt=True, tokenize=False
            )
            ids = torch.tensor(tokenizer(prompt)["input_ids"])
            text = row[side][0]["content"] + "<|im_end|>"
            completion = Completion(torch.tensor(tokenizer(text)["input_ids"]))
            with torch.no_grad():
                ours = sequence_logprob(policy, ids, completion, temperature)
                theirs = sequence_logprob(reference, ids, completion, temperature)
            rewards.append(beta * float(ours - theirs))
        sides.append(sum(rewards) / len(rewards))
    return sides[0], sides[1]


class Completion:
    """A completion of which every token counts."""

    def __init__(self, ids: torch.Tensor) -> None:
        self.ids = ids
        self.bears_loss = torch.ones_like(ids, dtype=torch.bool)


def run_against(world: World, reference: Path | None, **changes: Any) -> tuple[Listener, Path]:
    display = Listener()
    world.train(
        "dpo",
        "run",
        display=display,
        num_records=4,
        train__batch_size=4,
        reference=reference,
        objective__beta=0.4,
        **changes,
    )
    return display, world.folder / "run"


def test_without_a_setting_the_reference_is_the_starting_model(tmp_path: Path) -> None:
    world = World(tmp_path)
    display, run = run_against(world, None)
    assert display.facts["reference"] == f"the starting model ({world.model})"
    assert display.told("step 0: log-ratios are zero")
    assert first_step(run)["rewards/chosen"] == pytest.approx(0, abs=1e-4)


def test_a_copy_of_the_starting_model_is_recognized_as_such(tmp_path: Path) -> None:
    world = World(tmp_path)
    display, run = run_against(world, shutil.copytree(world.model, tmp_path / "copy"))
    assert "the same weights as the starting model" in display.facts["reference"]
    assert display.told("step 0: log-ratios are zero")
    assert first_step(run)["rewards/chosen"] == pytest.approx(0, abs=1e-4)


def test_another_model_folder_is_the_reference_that_it_names(tmp_path: Path) -> None:
    world = World(tmp_path)
    other = write_model(tmp_path / "other", seed=7)
    display, run = run_against(world, other)
    assert display.facts["reference"] == f"the model {other}"
    assert display.told("nothing to verify")
    line = first_step(run)
    reference = AutoModelForCausalLM.from_pretrained(other)
    chosen, rejected = longhand_rewards(world, reference, 0.4)
    assert abs(chosen) > 0.01
    assert line["rewards/chosen"] == pytest.approx(chosen, rel=1e-3)
    assert line["rewards/rejected"] == pytest.approx(rejected, rel=1e-3)


def test_another_reference_is_scored_at_the_temperature_of_the_run(tmp_path: Path) -> None:
    world = World(tmp_path)
    other = write_model(tmp_path / "other", seed=7)
    _, run = run_against(world, other, train__temperature=0.5)
    reference = AutoModelForCausalLM.from_pretrained(other)
    chosen, _ = longhand_rewards(world, reference, 0.4, temperature=0.5)
    assert first_step(run)["rewards/chosen"] == pytest.approx(chosen, rel=1e-3)
    assert chosen != pytest.approx(longhand_rewards(world, reference, 0.4)[0], rel=1e-2)


def test_an_adapter_folder_is_the_reference_with_the_adapter_on(tmp_path: Path) -> None:
    world = World(tmp_path)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(world.model),
        LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False),
    )
    adapted.save_pretrained(tmp_path / "adapter")
    display, run = run_against(world, tmp_path / "adapter")
    assert display.facts["reference"] == f"the adapter {tmp_path / 'adapter'}"
    assert display.told("nothing to verify")
    line = first_step(run)
    base = AutoModelForCausalLM.from_pretrained(world.model)
    reference = PeftModel.from_pretrained(base, tmp_path / "adapter")
    chosen, rejected = longhand_rewards(world, reference, 0.4)
    assert abs(chosen) > 0.01
    assert line["rewards/chosen"] == pytest.approx(chosen, rel=1e-3)
    assert line["rewards/rejected"] == pytest.approx(rejected, rel=1e-3)


def test_an_objective_without_a_reference_says_so_and_refuses_one(tmp_path: Path) -> None:
    world = World(tmp_path)
    display = Listener()
    world.train("pmle", "run", display=display)
    assert "reads no reference" in display.facts["reference"]
    assert display.told("nothing to verify (the objective reads no reference)")
    with pytest.raises(SettingsError, match="reads no reference"):
        world.train("pmle", "other", reference=world.model)


def test_a_reference_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path)
    other = tiny_model("qwen2", vocab_size=300, hidden_size=32, max_positions=256)
    write_tiny_model(tmp_path / "other", other, byte_level_tokenizer())
    with pytest.raises(SettingsError, match="vocabularies of different size"):
        world.train("dpo", "run", reference=tmp_path / "other")


def test_the_passes_of_a_run_ask_no_model_but_the_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference never lives beside the policy: it was scored before."""
    models: set[int] = set()
    run = ObjectivePass._run

    def watched(self: ObjectivePass, *arguments: Any) -> Any:
        models.add(id(self.model))
        return run(self, *arguments)

    monkeypatch.setattr(ObjectivePass, "_run", watched)
    World(tmp_path).train("kto", "run", reference=write_model(tmp_path / "other", seed=7))
    assert len(models) == 1
