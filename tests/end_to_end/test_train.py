"""From a file of records to an aligned model that other tools load."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from run_world import BAD, GOOD, Listener, World, lines
from transformers import AutoModelForCausalLM, AutoTokenizer

OBJECTIVES = ["dpo", "exo_pref", "pmle", "rdro", "ddro_stabilized", "kto", "sft", "exo_rw"]
NUM_STEPS = 30


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def displays(world: World) -> dict[str, Listener]:
    """A run of every objective, and what was said about it."""
    found = {}
    for name in OBJECTIVES:
        found[name] = Listener()
        world.train(
            name,
            name,
            display=found[name],
            num_records=20,
            train__steps=NUM_STEPS,
            train__batch_size=10,
            train__learning_rate=5e-3,
            train__checkpoint_every=None,
        )
    return found


def aligned(world: World, name: str) -> tuple[Any, Any]:
    folder = world.folder / name / "model"
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_training_loss_falls(name: str, world: World, displays: dict[str, Listener]) -> None:
    losses = [line["loss"] for line in lines(world.folder / name)]
    assert len(losses) == NUM_STEPS
    start, end = (sum(part) / 5 for part in (losses[:5], losses[-5:]))
    # Where alpha = 0.4 the loss of RDRO is lowest at a ratio of 1 / alpha for desirable completions
    # and of 0 for the others: (1 + alpha) log(1 + 1 / alpha) - log(1 / alpha).
    floor = 1.4 * math.log(3.5) - math.log(2.5) if name == "rdro" else 0
    assert end - floor < 0.75 * (start - floor), (start, end)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_praise_becomes_likelier_than_blame_for_plain_transformers(
    name: str, world: World, displays: dict[str, Listener]
) -> None:
    """Judged by the log-ratios of the saved model, computed by nothing of this package."""
    policy, tokenizer = aligned(world, name)
    reference = AutoModelForCausalLM.from_pretrained(world.model)
    is_dialogue = name in ("dpo", "exo_pref", "pmle", "sft")
    right = 0
    for place in ("bakery 0", "hotel 3", "garden 8", "market 5"):
        question = f"How was the {place}?"
        prompt = f"{question} "
        if is_dialogue:
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
            )
        ratios = {
            word: log_ratio(policy, reference, tokenizer, prompt, f"It was {word}.<|im_end|>")
            for word in (*GOOD, *BAD)
        }
        right += sum(ratios[good] > ratios[bad] for good in GOOD for bad in BAD)
    # Chance is one half of 4 x 9.
    assert right >= 32


def log_ratio(policy: Any, reference: Any, tokenizer: Any, prompt: str, text: str) -> float:
    given = tokenizer(prompt)["input_ids"]
    ids = torch.tensor([given + tokenizer(text)["input_ids"]])
    values = []
    for model in (policy, reference):
        with torch.no_grad():
            logprobs = model.eval()(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
        taken = logprobs.gather(1, ids[0, 1:, None])[:, 0]
        values.append(float(taken[len(given) - 1 :].sum()))
    return values[0] - values[1]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_logged_accuracy_or_margin_rises_from_chance(
    name: str, world: World, displays: dict[str, Listener]
) -> None:
    found = lines(world.folder / name)
    if name == "sft":
        assert found[-1]["logps/completions"] > found[0]["logps/completions"] + 10
        return
    if "rewards/accuracies" in found[-1]:
        assert min(line["rewards/accuracies"] for line in found[-5:]) >= 0.9
    assert found[-1]["rewards/margins"] > found[0]["rewards/margins"] + 0.2


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_model_folder_generates_with_plain_transformers_and_stops(
    name: str, world: World, displays: dict[str, Listener]
) -> None:
    model, tokenizer = aligned(world, name)
    ids = tokenizer("How was the hotel 3? ", return_tensors="pt")["input_ids"]
    torch.manual_seed(0)
    out = model.generate(ids, max_new_tokens=40, do_sample=True, num_return_sequences=4)
    assert out.shape[0] == 4
    assert out.shape[1] <= ids.shape[1] + 40
    ends = model.generation_config.eos_token_id
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in (
        ends if isinstance(ends, list) else [ends]
    )
    assert tokenizer.chat_template
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_run_folder_holds_what_the_contract_promises(
    name: str, world: World, displays: dict[str, Listener]
) -> None:
    run = world.folder / name
    assert {f.name for f in run.iterdir()} - {"tensorboard"} == {
        "config.yaml",
        "provenance.json",
        "metrics.jsonl",
        "checkpoints",
        "model",
        "report.html",
    }
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["objective"]["name"] == name
    assert settings["train"]["beta2"] == 0.999
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["finished"] is True
    assert {"model", "reference", "data_tokens", "versions"} <= provenance.keys()
    # Ten checkpoints in the run, the last at its end, one kept.
    assert [f.name for f in (run / "checkpoints").iterdir()] == ["step-30"]
    assert "<html" in (run / "report.html").read_text()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_line_of_the_log_holds_what_the_contract_promises(
    name: str, world: World, displays: dict[str, Listener]
) -> None:
    text = (world.folder / name / "metrics.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in found] == list(range(1, NUM_STEPS + 1))
    for line in found:
        for key in ("loss", "learning_rate", "gradient_norm", "tokens", "seconds", "waited"):
            assert isinstance(line[key], int | float), key
        assert line["tokens"] > 0
        assert line["seconds"] > 0
        assert line["waited"] >= 0
        assert line["gradient_norm"] > 0


def test_hyper_parameters_from_the_data_are_written_out(
    world: World, displays: dict[str, Listener]
) -> None:
    settings = yaml.safe_load((world.folder / "rdro" / "config.yaml").read_text())
    # Two records in five are desirable.
    assert settings["objective"] == {"name": "rdro", "combine": None, "alpha": 0.4}
    assert "alpha is this fraction" in displays["rdro"].facts["desirable"]


def test_the_first_loss_is_the_one_that_the_user_is_told(
    world: World, displays: dict[str, Listener]
) -> None:
    first = lines(world.folder / "dpo")[0]["loss"]
    assert first == pytest.approx(0.693147, abs=1e-5)
    assert displays["dpo"].told("loss 0.693147, expected 0.693147")


def test_the_model_can_be_saved_in_half_precision(world: World, tmp_path: Path) -> None:
    world.train("dpo", "half", train__save_dtype="bf16")
    world.train("dpo", "full")
    half, full = (
        AutoModelForCausalLM.from_pretrained(world.folder / n / "model") for n in ("half", "full")
    )
    for a, b in zip(half.parameters(), full.parameters(), strict=True):
        assert a.dtype == torch.bfloat16
        assert torch.equal(a, b.to(torch.bfloat16))


def test_an_aligned_model_is_the_start_of_the_next_run(
    world: World, displays: dict[str, Listener]
) -> None:
    display = Listener()
    world.train("dpo", "second round", model=world.folder / "sft" / "model", display=display)
    assert display.told("step 0: log-ratios are zero")


def test_bf16_compute_trains_and_leaves_float32_weights(world: World) -> None:
    display = Listener()
    world.train("dpo", "bf16", train__precision="bf16", train__steps=20, display=display)
    assert display.told("step 0: log-ratios are zero")
    losses = [line["loss"] for line in lines(world.folder / "bf16")]
    assert losses[-1] < losses[0]
    model = AutoModelForCausalLM.from_pretrained(world.folder / "bf16" / "model")
    assert next(model.parameters()).dtype == torch.float32
