"""The benchmark of a step: its records, its bound, its page. No toolkit is run here."""

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kept_results import taken_part
from preference_step import _resumed
from step.bound import matrix_rate, step_operations, useful_tokens
from step.cases import CASES, SHAPES, Case, peer_pairs, record_tokens, write_model, write_records
from step.document import document, growth_picture, measured, ratio_picture, table
from step.without import PLAIN_WAYS
from step_gains import GAINS
from transformers import AutoModelForCausalLM, AutoTokenizer

from veritune.batches.prefetch import Prefetch
from veritune.commands.train_settings import TrainConfig
from veritune.models import adapted_layer, attention, forward
from veritune.models.adapters import AdapterConfig, attach_adapter
from veritune.training import loop

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def case_of(name: str, **changes: Any) -> Case:
    return replace(next(case for case in CASES["cpu"] if case.name == name), **changes)


@pytest.mark.parametrize("shape", ["small", "qwen2.5-0.5b", "qwen2.5-1.5b", "llama-3.1-8b"])
def test_a_shape_counts_the_weights_of_its_published_configuration(shape: str) -> None:
    millions = {"small": 8.62, "qwen2.5-0.5b": 494.0, "qwen2.5-1.5b": 1543.7, "llama-3.1-8b": 8030}
    # Biases and norms, which multiply no matrix, are not counted.
    assert SHAPES[shape].parameters / 1e6 == pytest.approx(millions[shape], rel=2e-3)


def test_records_have_the_lengths_that_were_drawn(tmp_path: Path) -> None:
    case = case_of("ultrafeedback", steps=99)
    records = write_records(case, tmp_path, None)
    lengths = record_tokens(write_model(case, tmp_path, None), records)
    prompts = statistics.median(prompt for prompt, _ in lengths)
    completions = statistics.median(size for _, sizes in lengths for size in sizes)
    # An end token behind each completion.
    assert prompts == pytest.approx(120, rel=0.25)
    assert completions - 1 == pytest.approx(250, rel=0.15)


def test_real_pairs_are_drawn_from_all_and_their_tokenizer_learns_from_all(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    words = [f"word{number}" for number in range(300)]

    def turns(word: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"{word} {word} {word}"}]

    lines = [{side: turns(w) for side in ("prompt", "chosen", "rejected")} for w in words]
    pairs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    case = case_of("real", shape="tiny")
    drawn = write_records(case, tmp_path, pairs).read_text().splitlines()
    places = [words.index(json.loads(line)["chosen"][0]["content"].split()[0]) for line in drawn]
    assert len(set(places)) == case.records == 36
    assert max(places) > 200
    tokenizer = AutoTokenizer.from_pretrained(write_model(case, tmp_path, pairs))
    assert all(len(tokenizer(word)["input_ids"]) < len(word) for word in words)


def test_every_part_that_is_taken_away_is_a_part(tmp_path: Path) -> None:
    """Its name in `step.without` exists, and what it replaces is still there to be replaced."""
    named = {gain.without for gain in GAINS.values()} - {None}
    assert named == set(PLAIN_WAYS)
    for gain in GAINS.values():
        TrainConfig.model_validate(
            {"model": "m", "data": "d", "objective": "dpo", "output": "o", "train": gain.train}
        )
    assert loop.Prefetch is Prefetch
    assert callable(adapted_layer.fuse_adapted_layers)
    assert {"loop", "blocks"} <= set(attention.KERNELS)
    assert forward.BUDGET_BYTES["cpu"] > 1


def test_long_prompts_stand_in_every_step_but_the_first(tmp_path: Path) -> None:
    case = case_of("long", shape="tiny", steps=1)
    records = write_records(case, tmp_path, None)
    lengths = record_tokens(write_model(case, tmp_path, None), records)
    assert [prompt for prompt, _ in lengths if prompt > 1000] == [10_000, 10_000]
    assert all(prompt < 1000 for prompt, _ in lengths[:16])


def test_a_peer_gets_the_same_completions_as_pairs(tmp_path: Path) -> None:
    case = case_of("k8", shape="tiny", steps=1)
    records = write_records(case, tmp_path, None)
    rows = [json.loads(line) for line in records.read_text().splitlines()]
    pairs = peer_pairs(records, [3, 0, 1, 2])
    assert len(pairs) == 4 * case.records
    assert [pair["prompt"] for pair in pairs[:4]] == [rows[3]["prompt"]] * 4
    texts = [text for pair in pairs[:4] for text in (pair["chosen"], pair["rejected"])]
    assert texts == rows[3]["completions"]


def test_the_bound_counts_what_a_step_multiplies() -> None:
    """One group, by hand: 2 products forward per weight and token, twice that backward."""
    shape = SHAPES["tiny"]
    prompt, sizes = 10, [4, 6]
    tokens, targets = 10 + 3 + 5, 4 + 6
    attended = 10 * 10 / 2 + (3 * 10 + 3 * 3 / 2) + (5 * 10 + 5 * 5 / 2)
    trunk = 6 * shape.trunk_parameters * tokens
    head = 6 * shape.hidden * shape.vocab * targets
    attention = 3 * 4 * shape.layers * shape.hidden * attended
    assert step_operations(shape, [(prompt, sizes)], rank=None) == trunk + head + attention
    frozen = step_operations(shape, [(prompt, sizes)], rank=4)
    adapters = 6 * shape.adapter_parameters(4) * tokens
    assert frozen == pytest.approx(2 / 3 * (trunk + head) + attention + adapters)
    assert useful_tokens([(prompt, sizes)]) == 20


def test_weights_are_those_of_the_model_itself(tmp_path: Path) -> None:
    case = case_of("tldr", shape="tiny", steps=1)
    model = AutoModelForCausalLM.from_pretrained(write_model(case, tmp_path, None))
    matrices = [p for name, p in model.named_parameters() if "proj" in name and p.dim() == 2]
    assert sum(p.numel() for p in matrices) == SHAPES["tiny"].trunk_parameters
    attach_adapter(model, AdapterConfig(rank=3), seed=0)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == SHAPES["tiny"].adapter_parameters(3)


def test_a_matrix_rate_is_a_rate() -> None:
    rate = matrix_rate(SHAPES["tiny"], device=torch.device("cpu"), turns=1)
    assert 1e6 < rate < 1e16


def made_up(**changes: Any) -> dict[str, Any]:
    """A case of two steps, in which the peer takes four times as long."""
    contestants = {
        name: {
            "error": None,
            "seconds": seconds,
            "losses": [0.693, 0.6, loss],
            "peak_bytes": peak,
        }
        for name, seconds, loss, peak in (
            ("veritune", [1.0, 2.0], 0.5, 1e9),
            ("trl", [4.0, 8.0], 0.5005, 4e9),
            ("trl_tuned", [2.0, 6.0], 0.5, 5e9),
        )
    }
    return {
        "title": "made up",
        "completions": 2,
        "adapter": False,
        "contestants": contestants,
        "matrix_rates": [1e9, 1e9],
        "steps": [{"tokens": 300, "operations": 5e8}, {"tokens": 600, "operations": 1e9}],
        **changes,
    }


def test_ratios_are_taken_step_by_step_and_against_the_bound() -> None:
    found = measured("made-up", made_up())
    assert found.ratios == {"trl": [4.0, 4.0], "trl_tuned": [2.0, 3.0]}
    assert found.ratio("trl_tuned") == 2.5
    assert found.rates["veritune"] == 300
    assert found.over_bound == 2.0
    assert found.memory("trl") == 0.25
    assert found.curve == pytest.approx(5e-4)
    assert measured("made-up", made_up(adapter=True)).curve is None
    assert measured("made-up", made_up(completions=4)).curve is None
    assert "4.00 times the rate" in table({"made-up": made_up()})


def test_an_interrupted_run_is_taken_up_if_nothing_differs() -> None:
    facts = {"device": "cpu", "threads": 2, "cases": {}}
    kept = {"versions": taken_part(), **facts, "cases": {"real": made_up()}}
    assert _resumed(json.loads(json.dumps(kept)), facts) == {"real": made_up()}
    with pytest.raises(SystemExit, match="differs in threads"):
        _resumed(kept, {**facts, "threads": 3})


def test_a_goal_that_is_not_reached_is_told(tmp_path: Path) -> None:
    facts = {
        "versions": {"veritune": "0", "torch": "0", "transformers": "0"},
        "device": "cpu",
        "threads": 2,
        "trl": "0",
        "cases": {"real": made_up(title="300 real pairs")},
    }
    (tmp_path / "preference_step_cpu.json").write_text(json.dumps(facts))
    page = document(tmp_path)
    reached = "| 300 real pairs | 4.0 (≥ 5), **not reached** | 2.5 (≥ 3.5), **not reached** | 0.25"
    assert reached in page
    assert "On a GPU\n\nNot measured yet" in page


def test_a_peer_that_ran_out_of_memory_is_told(tmp_path: Path) -> None:
    case = made_up()
    case["contestants"]["trl"] |= {"error": "ended with exit code -9", "seconds": []}
    facts = {
        "versions": {"veritune": "0", "torch": "0", "transformers": "0"},
        "device": "cpu",
        "threads": 2,
        "trl": "0",
        "cases": {"real": case},
    }
    (tmp_path / "preference_step_cpu.json").write_text(json.dumps(facts))
    assert "TRL as it comes on “made up”: ended with exit code -9." in document(tmp_path)


@pytest.mark.skipif(not (RESULTS / "preference_step_cpu.json").is_file(), reason="no results kept")
def test_page_and_pictures_are_those_of_the_stored_results() -> None:
    docs = ROOT / "docs"
    assert (docs / "performance.md").read_text(encoding="utf-8") == document(RESULTS)
    for name, file, picture in (
        ("preference_step_cpu", "performance_cpu.svg", ratio_picture),
        ("preference_step_cuda", "performance_cuda.svg", ratio_picture),
        ("growth", "performance_growth.svg", growth_picture),
    ):
        stored = RESULTS / f"{name}.json"
        if stored.is_file():
            drawn = picture(json.loads(stored.read_text()))
            assert (docs / file).read_text(encoding="utf-8") == drawn
