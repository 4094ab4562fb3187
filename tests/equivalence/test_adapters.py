"""A run that trains an adapter: what it leaves computes what was trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from longhand import sequence_logprob, wide
from peft import PeftModel
from run_world import World, largest_difference, lines, weights
from transformers import AutoModelForCausalLM

from veritune.models.forward import CausalModel
from veritune.training.objective_pass import ObjectivePass

LORA = "{rank: 4, alpha: 16}"


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(1, 40)[None]
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def test_the_merged_model_computes_what_base_and_adapter_do(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.train("dpo", "run", adapter=LORA, train__learning_rate=1e-2)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    base = AutoModelForCausalLM.from_pretrained(world.model)
    before = logits(base)
    adapted = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter")
    torch.testing.assert_close(logits(merged), logits(adapted), rtol=1e-4, atol=1e-5)
    # Control: the adapter does something.
    assert (logits(merged) - before).abs().max() > 1e-2


def test_the_merged_model_gives_the_log_probabilities_that_were_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[ObjectivePass] = []
    build = ObjectivePass.__init__

    def watched(self: ObjectivePass, *arguments: Any) -> None:
        build(self, *arguments)
        passes.append(self)

    monkeypatch.setattr(ObjectivePass, "__init__", watched)
    live: list[float] = []

    def measure(model: CausalModel, step: int) -> None:
        if step == 6:
            group = passes[0].dataset[0]
            with torch.no_grad():
                policy, _, _ = model.completion_logprobs(model.batch([group], [0]))
            live.extend(policy.tolist())

    World(tmp_path).train("dpo", "run", adapter=LORA, train__learning_rate=1e-2, measure=measure)
    merged = wide(AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model"))
    group = passes[0].dataset[0]
    with torch.no_grad():
        plain = [float(sequence_logprob(merged, group.prompt, c, 1.0)) for c in group.completions]
    assert live == pytest.approx(plain, rel=1e-5)


def test_training_an_adapter_leaves_the_embedding_and_the_base_folder_alone(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    before = (world.model / "model.safetensors").read_bytes()
    world.train("dpo", "run", adapter=LORA)
    assert (world.model / "model.safetensors").read_bytes() == before
    world.train("dpo", "still", adapter=LORA, train__learning_rate=1e-30)
    assert largest_difference(tmp_path / "run", tmp_path / "still") > 1e-3
    name = "model.embed_tokens.weight"
    assert torch.equal(weights(tmp_path / "run")[name], weights(tmp_path / "still")[name])


def test_the_adapter_names_its_base_and_the_seed_decides_how_it_begins(tmp_path: Path) -> None:
    world = World(tmp_path)
    for run, seed in (("one", 0), ("again", 0), ("other", 1)):
        world.train("dpo", run, adapter=LORA, train__seed=seed)
    assert lines(tmp_path / "one") == lines(tmp_path / "again")
    assert largest_difference(tmp_path / "one", tmp_path / "again") == 0
    assert largest_difference(tmp_path / "one", tmp_path / "other") > 0
    text = (tmp_path / "one" / "adapter" / "adapter_config.json").read_text()
    assert str(world.model) in text


def test_a_run_can_start_from_the_adapter_of_another(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.train("sft", "first", adapter=LORA, train__learning_rate=1e-2)
    adapter, merged = tmp_path / "first" / "adapter", tmp_path / "first" / "model"
    world.train("dpo", "on-adapter", model=adapter)
    world.train("dpo", "on-merged", model=merged)
    assert largest_difference(tmp_path / "on-adapter", tmp_path / "on-merged") < 1e-4
    world.train("dpo", "on-base")
    assert largest_difference(tmp_path / "on-adapter", tmp_path / "on-base") > 1e-3
