"""The commands of the README on real preference data, at a small size.

The data are not part of the project; the tests look for them in `$VERITUNE_TEST_DATA`, or in
`../shared/data/preferences` beside the checkout, and skip where there are none.
"""

import json
import os
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from veritune.commands.main import main

_BESIDE = Path(__file__).parents[3] / "shared" / "data" / "preferences"
DATA = Path(os.environ.get("VERITUNE_TEST_DATA", _BESIDE))
pytestmark = pytest.mark.skipif(
    not (DATA / "pairs.jsonl").is_file(), reason=f"no preference data in {DATA}"
)
STEPS = 24
FILES = {"paired": "pairs.jsonl", "unpaired": "labelled.jsonl"}


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of the `veritune` command with these words."""
    monkeypatch.setattr(sys, "argv", ["veritune", *words])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real") / "tiny-qwen2"
    with pytest.MonkeyPatch.context() as patch:
        words = ("vocab_size=1024", "hidden_size=64", "num_layers=2", "num_heads=4")
        words += (f"output={folder}", f"data={DATA / FILES['paired']}")
        assert command(patch, "tiny", *words) == 0
    return folder


@pytest.mark.parametrize("kind", ["paired", "unpaired"])
def test_check_finds_the_real_records_sound(kind, model_folder, monkeypatch, capsys):
    code = command(monkeypatch, "check", str(DATA / FILES[kind]), f"model={model_folder}")

    printed = capsys.readouterr().out
    assert code == 0
    assert "300, of which 300 can be used" in printed
    assert printed.count("<|im_end|>⟧") >= 3


@pytest.mark.parametrize(
    ("objective", "kind"),
    [
        ("dpo", "paired"),
        ("exo_pref", "paired"),
        ("pmle", "paired"),
        ("rdro", "unpaired"),
        ("ddro", "unpaired"),
        ("kto", "unpaired"),
    ],
)
def test_training_on_real_records_leaves_a_model_that_plain_transformers_loads(
    objective, kind, model_folder, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    few = tmp_path / FILES[kind]
    few.write_text("".join((DATA / FILES[kind]).open().readlines()[:40]))
    code = command(
        monkeypatch,
        "train",
        f"model={model_folder}",
        f"objective={objective}",
        f"output={run}",
        f"cache={tmp_path / 'cache'}",
        "tokens.max_length=128",
        "tokens.long_completions=cut",
        f"train.steps={STEPS}",
        "train.batch_size=8",
        f"train.learning_rate={'1e-6' if objective in ('rdro', 'ddro') else '1e-3'}",
        # A few pairs many times over: at this size nothing else is learned within seconds.
        f"data.files={json.dumps([str(few)])}",
        "evaluation.fraction=0.2",
    )
    assert code == 0

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == STEPS
    assert all(loss is not None for loss in losses)
    held_out = [line for line in lines if "eval/loss" in line]
    assert [line["step"] for line in held_out] == [0, STEPS]
    if kind == "paired":
        assert "eval/rewards/accuracies" in held_out[-1]
    assert held_out[0]["eval/records"] > 0

    if objective == "dpo":
        accuracies = [line["rewards/accuracies"] for line in lines if "loss" in line]
        assert sum(losses[-3:]) / 3 < losses[0] - 0.1
        assert sum(accuracies[-3:]) / 3 > 0.7

    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    generated = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert ids.shape[1] < generated.shape[1] <= ids.shape[1] + 8
    assert (run / "report.html").read_text().startswith("<!")
