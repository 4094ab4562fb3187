import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

FAMILIES = ("qwen2", "qwen3", "llama", "gemma", "mistral", "gpt2", "opt")
SMALL = ("hidden_size=16", "num_heads=2", "num_layers=1")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tiny_model_of_every_family_is_loaded_by_transformers(family, place, veritune):
    outcome = veritune("tiny", "output=new", f"family={family}", "max_positions=32", *SMALL)

    assert outcome.code == 0
    assert f"{family} model with random weights" in outcome.out
    model = AutoModelForCausalLM.from_pretrained("new")
    tokenizer = AutoTokenizer.from_pretrained("new")
    assert model.config.model_type == family
    logits = model(**tokenizer("hello", return_tensors="pt")).logits
    assert logits.shape == (1, 5, 259)
    assert bool(logits.isfinite().all())


def test_the_tokenizer_learns_from_the_given_texts(place, veritune):
    rows = [{"prompt": "hello there", "chosen": "general", "rejected": "hello"}]
    (place / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 9))

    assert veritune("tiny", "output=new", "data=a.jsonl", "vocab_size=290", *SMALL).code == 0

    tokenizer = AutoTokenizer.from_pretrained("new")
    assert 259 < len(tokenizer) <= 290
    assert len(tokenizer("hello")["input_ids"]) < 5


def test_a_tilde_is_the_home_folder(place, veritune, monkeypatch):
    monkeypatch.setenv("HOME", str(place / "home"))

    assert veritune("tiny", "output=~/new", *SMALL).code == 0

    assert (place / "home" / "new" / "config.json").is_file()
    assert not (place / "~").exists()


def test_the_seed_decides_on_the_weights(place, veritune):
    weights = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert veritune("tiny", f"output={name}", f"seed={seed}", *SMALL).code == 0
        weights[name] = (place / name / "model.safetensors").read_bytes()
    assert weights["a"] == weights["b"]
    assert weights["a"] != weights["c"]


WRONG = {
    "a folder with files": (["output=models"], "the output folder is not empty", "choose another"),
    "below a file": (["output=a.txt/new"], "a.txt is a file", "choose another output"),
    "an odd number of heads": (
        ["output=new", "num_heads=3"],
        "the heads do not fit into the hidden states",
        "choose an even num_heads",
    ),
    "heads of broken width": (
        ["output=new", "num_heads=4", "hidden_size=20"],
        "num_heads 4, hidden_size 20",
        "a multiple of twice that",
    ),
    "fewer tokens than bytes": (
        ["output=new", "vocab_size=100"],
        "vocab_size must be greater than or equal to 259, got 100",
        "default: 4096",
    ),
    "unknown family": (["output=new", "family=qwen"], "got 'qwen'", "did you mean qwen"),
    "no output": (["seed=1"], "the setting output is missing", "output=…"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_made_is_refused(name, place, veritune):
    words, what, fix = WRONG[name]
    (place / "a.txt").write_text("text")

    outcome = veritune("tiny", *words)

    assert outcome.code == 2
    assert what in outcome.err
    assert fix in outcome.err.partition("fix: ")[2]
    assert not (place / "new").exists()
