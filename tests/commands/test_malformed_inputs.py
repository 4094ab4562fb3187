"""Everything that users get wrong, and what they are told: where, what, the value, the way out.

Each table reads as documentation. Every case leaves with exit code 2, without a traceback, and
before a run folder was made.
"""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

import pytest


def message(role: str, content: str = "hi") -> dict[str, str]:
    return {"role": role, "content": content}


PAIR = {"prompt": "What is two and two?", "chosen": "Four.", "rejected": "Five."}
LABEL = {"prompt": "Name a color.", "completion": "Blue.", "label": True}
SCORED = {"prompt": "Name a tree.", "completions": ["Oak.", "Salt."], "scores": [2, 1]}
DIALOGUE = {"messages": [message("user"), message("assistant")]}


def lines(*rows: object) -> bytes:
    """JSON Lines; bytes are put in as they are."""
    texts = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    return b"\n".join(texts) + b"\n"


class BadRow(NamedTuple):
    """A row that stands on the second line, behind a sound one."""

    good: dict
    bad: object
    what: str
    got: str | None
    fix: str


BAD_ROWS = {
    "broken JSON": BadRow(
        PAIR, b'{"prompt": "p", "chosen"', "not valid JSON", "chosen", "one complete JSON object"
    ),
    "a list": BadRow(
        PAIR, [1, 2], "a JSON object is expected, and this is an array", "[1, 2]", 'write {"prompt"'
    ),
    "missing column": BadRow(
        PAIR,
        {"prompt": "p", "chosen": "c"},
        "the columns do not make a record",
        "['prompt', 'chosen']",
        'add "rejected"',
    ),
    "misspelled column": BadRow(
        PAIR,
        {"prompt": "p", "chosen": "c", "rejectd": "r"},
        "the columns do not make a record",
        "rejectd",
        "data.columns.rejectd=rejected",
    ),
    "wrong type": BadRow(
        PAIR, PAIR | {"chosen": 3}, '"chosen" is neither text nor a list', "3", "write text"
    ),
    "null prompt": BadRow(
        PAIR, PAIR | {"prompt": None}, '"chosen" is plain text', "Four.", "add a column prompt"
    ),
    "empty completion": BadRow(
        PAIR, PAIR | {"chosen": ""}, "chosen is empty", "''", "remove the row, or add the text"
    ),
    "identical pair": BadRow(
        PAIR,
        PAIR | {"rejected": "Four."},
        '"chosen" and "rejected" are the same text',
        "'Four.'",
        "data.identical_pairs=drop",
    ),
    "duplicate key": BadRow(
        PAIR,
        b'{"prompt": "a", "prompt": "b", "chosen": "c", "rejected": "d"}',
        "the key 'prompt' is given twice",
        '"prompt": "b"',
        "leave each key once",
    ),
    "unknown role": BadRow(
        PAIR,
        PAIR | {"prompt": [message("human")]},
        "unknown role in the prompt",
        "'human'",
        'write "user"',
    ),
    "two system messages": BadRow(
        PAIR,
        PAIR | {"prompt": [message("system"), message("system"), message("user")]},
        "there are two system turns",
        "['system', 'system', 'user', 'assistant']",
        "leave one system turn",
    ),
    "no assistant turn": BadRow(
        DIALOGUE, {"messages": [message("user")]}, "no assistant turn", "['user']", "remove the row"
    ),
    "not UTF-8": BadRow(
        PAIR,
        b'{"prompt": "caf\xe9", "chosen": "c", "rejected": "r"}',
        "byte 16 of the line is not UTF-8",
        "\\xe9",
        "save the file as UTF-8",
    ),
    "half a surrogate pair": BadRow(
        PAIR,
        PAIR | {"chosen": "\ud83d"},
        "the text holds half of a surrogate pair",
        "\\ud83d",
        "mend what cut the text",
    ),
    "10 MB line": BadRow(
        PAIR,
        PAIR | {"prompt": "x" * 10_000_000},
        f"the line is {10_000_000 + len(json.dumps(PAIR | {'prompt': ''})):,} bytes long",
        "xxx … xxx",
        "one JSON object per line",
    ),
    "label maybe": BadRow(
        LABEL, LABEL | {"label": "maybe"}, '"label" says neither', "'maybe'", "write true or false"
    ),
    "score not a number": BadRow(
        SCORED,
        SCORED | {"scores": [1, float("nan")]},
        "the score of completion 2 is not a finite number",
        "nan",
        "score it again",
    ),
    "infinite score": BadRow(
        SCORED,
        SCORED | {"scores": [float("-inf"), 1]},
        "the score of completion 1 is not a finite number",
        "-inf",
        "score it again",
    ),
    "fewer scores than completions": BadRow(
        SCORED,
        SCORED | {"scores": [1]},
        "there are 1 scores for 2 completions",
        "(1.0,)",
        "give each completion one score",
    ),
    "another kind of record": BadRow(
        PAIR,
        LABEL,
        "the row makes an unpaired record, and the first one made a paired record",
        "['prompt', 'completion', 'label']",
        "keep each kind in its own files",
    ),
}


class BadFile(NamedTuple):
    """A file that cannot be read as a whole; `content` is None where it does not exist."""

    name: str
    content: bytes | None
    what: str
    fix: str
    where: str | None = None


WHOLE = gzip.compress(lines(*[PAIR] * 500))
BAD_FILES = {
    "empty": BadFile("a.jsonl", b"", "the file is empty", "at least one row"),
    "blank lines": BadFile("a.jsonl", b"\n \n", "the file is empty", "at least one row"),
    "UTF-16": BadFile(
        "a.jsonl", lines(PAIR).decode().encode("utf-16"), "the file is UTF-16", "save the file"
    ),
    "broken JSON": BadFile(
        "a.json", b'[{"prompt": "a",\n]', "not valid JSON", "mend the line", "a.json, line 2"
    ),
    "damaged gzip": BadFile(
        "a.jsonl.gz", WHOLE[: len(WHOLE) // 2], "the file is damaged", "download or write"
    ),
    "no gzip": BadFile("a.jsonl.gz", lines(PAIR), "the file is damaged", "download or write"),
    "no Parquet": BadFile("a.parquet", b"text", "the file is damaged", "download or write"),
    "unknown ending": BadFile("a.xml", b"<a/>", "the ending '.xml' is not one of", "use .jsonl"),
    "missing, near name": BadFile(
        "sund.jsonl", None, "the file does not exist", "did you mean sound.jsonl?"
    ),
    "missing": BadFile("far/z.jsonl", None, "the file does not exist", "check the path"),
    "no data set": BadFile("folder", None, "the folder is no data set", "give the files"),
    "not on the hub": BadFile(
        "nobody/nothing", None, "neither a file or folder here nor a data set", "check the path"
    ),
}

TRAIN = ("train", "model=models/tiny", "objective=sft", "output=run", "train.steps=1")


def told(text: str, where: str, what: str) -> dict[str, str]:
    """The message about a place: its first line as "head", then got, why and fix by their names."""
    head = f"{where}: {what}"
    assert head in text, f"{head!r} is not in:\n{text}"
    first, *below = text[text.index(head) :].split("\n")
    parts = {"head": first}
    for line in below:
        if not line.startswith("  "):
            break
        name, _, value = line.strip().partition(": ")
        parts.setdefault(name, value)
    return parts


def assert_refused(outcome, where: str, what: str, got: str | None, fix: str) -> None:
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    parts = told(outcome.text, where, what)
    assert fix in parts["fix"]
    if got is not None:
        # A long value is cut in the middle.
        for piece in got.split(" … "):
            assert piece in parts.get("got", parts["head"])


@pytest.mark.parametrize("name", BAD_ROWS)
@pytest.mark.parametrize("command", ["check", "train"])
def test_a_row_that_cannot_be_used_is_named_with_its_line(name, command, place, veritune):
    row = BAD_ROWS[name]
    (place / "a.jsonl").write_bytes(lines(row.good, row.bad))

    outcome = (
        veritune("check", "a.jsonl") if command == "check" else veritune(*TRAIN, "data=a.jsonl")
    )

    assert_refused(outcome, "a.jsonl, line 2", row.what, row.got, row.fix)
    assert "1 of 2 rows cannot be used" in outcome.err
    assert not (place / "run").exists()


@pytest.mark.parametrize("name", BAD_ROWS)
def test_the_other_rows_are_trained_on_when_bad_ones_are_skipped(name, place, veritune):
    row = BAD_ROWS[name]
    (place / "a.jsonl").write_bytes(lines(row.good, row.bad))

    outcome = veritune(*TRAIN, "data=a.jsonl", "data.on_error=skip")

    assert outcome.code == 0, outcome.text
    assert "2 rows, 1 demonstration records" in outcome.out
    assert "left out   1 with problems" in outcome.out


@pytest.mark.parametrize("name", BAD_FILES)
@pytest.mark.parametrize("command", ["check", "train"])
def test_a_file_that_cannot_be_used_is_named(name, command, place, veritune):
    bad = BAD_FILES[name]
    (place / "folder").mkdir()
    (place / "folder" / "notes.txt").write_text("x")
    (place / "sound.jsonl").write_bytes(lines(PAIR))
    if bad.content is not None:
        (place / bad.name).write_bytes(bad.content)

    outcome = (
        veritune("check", bad.name) if command == "check" else veritune(*TRAIN, f"data={bad.name}")
    )

    assert_refused(outcome, bad.where or bad.name, bad.what, None, bad.fix)
    assert not (place / "run").exists()


class BadSetting(NamedTuple):
    """Words behind a sound `train`; a later word replaces an earlier one of the same key."""

    words: Sequence[str]
    where: str
    what: str
    got: str | None
    fix: str


HUB = "there is no such folder, and the hub gives no such model"
BAD_SETTINGS = {
    "unknown setting": BadSetting(
        ["evalution.every=3"], "command line", "unknown setting evalution", "3", "mean evaluation?"
    ),
    "setting of a part": BadSetting(
        ["learning_rate=1e-6"],
        "command line",
        "unknown setting learning_rate",
        "1e-06",
        "did you mean train.learning_rate?",
    ),
    "out of range": BadSetting(
        ["train.learning_rate=-1e-6"],
        "command line",
        "train.learning_rate must be greater than 0, got -1e-06",
        None,
        "leave train.learning_rate out (default: 5.0e-07)",
    ),
    "wrong type": BadSetting(
        ["train.steps=many"],
        "command line",
        "train.steps must be a whole number, got 'many'",
        None,
        "leave train.steps out",
    ),
    "no choice": BadSetting(
        ["train.schedule=cosin"],
        "command line",
        "train.schedule must be 'cosine', 'linear' or 'constant', got 'cosin'",
        None,
        "did you mean cosine?",
    ),
    "a part as a number": BadSetting(
        ["tokens=3"], "command line", "tokens must be a mapping", "3", "leave tokens out"
    ),
    "a date for a name": BadSetting(
        ["model=2026-01-01"], "command line", "model must be text", "date(2026", "in quotes"
    ),
    "a setting within a value": BadSetting(
        ["model.name=a"],
        "command line",
        "model holds a plain value, so model.name has no place in it",
        "'models/tiny'",
        "set model itself",
    ),
    "no key": BadSetting(
        ["objective"],
        "command line",
        "an override is not of the form key=value",
        "'objective'",
        "write",
    ),
    "a value that is no YAML": BadSetting(
        ["data=[a"],
        "command line, data",
        "the value of an override is not valid YAML",
        "'[a'",
        "quotes",
    ),
    "unknown kind": BadSetting(
        ["data.kind=pared"], "command line", "data.kind: not a kind of record", "'pared'", "paired?"
    ),
    "unknown column": BadSetting(
        ["data.columns.q=promt"],
        "command line",
        "data.columns: the file's columns",
        "'promt'",
        "prompt?",
    ),
    "a column that no row has": BadSetting(
        ["data.columns.q=prompt"],
        "a.jsonl",
        "data.columns names columns that no row has",
        "['q']",
        "correct the names",
    ),
    "unknown objective": BadSetting(
        ["objective=dop"], "objective", "there is no objective of this name", "'dop'", "mean dpo?"
    ),
    "unknown hyper-parameter": BadSetting(
        ["objective.bta=1"], "objective dpo", "unknown setting bta", "1", "did you mean beta?"
    ),
    "hyper-parameter out of range": BadSetting(
        ["objective.beta=0"],
        "objective dpo",
        "beta must be greater than 0, got 0",
        None,
        "leave beta out (default: 0.1)",
    ),
    "two held-out sets": BadSetting(
        ["evaluation.data=a.jsonl", "evaluation.fraction=0.5"],
        "command line",
        "evaluation: data and fraction are two ways",
        "data a.jsonl and fraction 0.5",
        "give one of them",
    ),
    "no room for a token": BadSetting(
        ["tokens.max_length=1"],
        "command line",
        "tokens.max_length must be greater than or equal to 2, got 1",
        None,
        "leave tokens.max_length out",
    ),
    "room for no record": BadSetting(
        ["tokens.max_length=2"],
        "a.jsonl",
        "no record is left",
        "2 too long, of 2 records",
        "raise tokens.max_length",
    ),
    "no such model": BadSetting(["model=nowhere"], "model", HUB, "'nowhere'", "check the path"),
    "misspelled model": BadSetting(
        ["model=./models/tini"],
        "model",
        "there is no such folder",
        "'./models/tini'",
        "did you mean models/tiny?",
    ),
    "a file for a model": BadSetting(
        ["model=a.jsonl"], "model", "the model is a file", "'a.jsonl'", "give the folder"
    ),
    "a run folder for its model": BadSetting(
        ["model=old-run"], "model", "the folder holds no model", "'old-run'", "mean old-run/model?"
    ),
    "model without config": BadSetting(
        ["model=models/no-config"],
        "model",
        "the folder holds no model",
        "no-config",
        "give the folder that save_pretrained wrote",
    ),
    "model without tokenizer": BadSetting(
        ["model=models/no-tokenizer"],
        "models/no-tokenizer",
        "the model has no tokenizer",
        None,
        "put the tokenizer's files (tokenizer.json, tokenizer_config.json) into the folder",
    ),
    "model without weights": BadSetting(
        ["model=models/no-weights"],
        "model",
        "the folder holds no weights",
        "no-weights",
        "give a folder with .safetensors files",
    ),
    "model with damaged weights": BadSetting(
        ["model=models/bad-weights"],
        "models/bad-weights",
        "the model cannot be loaded",
        None,
        "check that AutoModelForCausalLM.from_pretrained loads this folder",
    ),
    "tokenizer larger than the embedding": BadSetting(
        ["model=models/fewer-rows"],
        "models/fewer-rows",
        "the tokenizer has more tokens than the model has embeddings",
        "259 tokens, 200 embeddings",
        "use the tokenizer that belongs to the model",
    ),
    "adapter without base": BadSetting(
        ["model=models/adapter"],
        "model",
        "the adapter does not say which model it belongs to",
        "models/adapter",
        "set base_model_name_or_path",
    ),
    "adapter of a lost base": BadSetting(
        ["model=models/lost-adapter"],
        "model (base of the adapter)",
        "there is no such folder",
        "'./gone'",
        "check the path",
    ),
    "unknown layer for adapters": BadSetting(
        ["adapter.target_modules=nolayer"],
        "adapter.target_modules",
        "the adapter does not fit the model",
        "'nolayer'",
        'use "all-linear"',
    ),
    "reference of another vocabulary": BadSetting(
        ["reference=models/more-rows"],
        "reference",
        "policy and reference have vocabularies of different size",
        "models/more-rows: 300 tokens, the policy has 259",
        "choose a reference of the same family",
    ),
    "reference that is not read": BadSetting(
        ["objective=sft", "reference=models/tiny"],
        "reference",
        "the objective sft reads no reference",
        "'models/tiny'",
        "remove the setting",
    ),
    "output with other files": BadSetting(
        ["output=full"],
        "output",
        "the output folder is not empty and holds no run",
        "'full'",
        "choose another folder",
    ),
    "output that is a file": BadSetting(
        ["output=a.jsonl"], "output", "a.jsonl is a file", "'a.jsonl'", "choose another output"
    ),
    "output below a file": BadSetting(
        ["output=a.jsonl/run"], "output", "", "'a.jsonl/run'", "choose another output"
    ),
    "no such template": BadSetting(
        ["tokens.chat_template=none.jinja"],
        "tokens.chat_template",
        "the chat template cannot be read",
        "'none.jinja'",
        "give the path of a UTF-8 Jinja file",
    ),
    "broken template": BadSetting(
        ["tokens.chat_template=broken.jinja"],
        "chat template, line 2",
        "the chat template is not valid Jinja",
        None,
        "mend it",
    ),
    "messages without a template": BadSetting(
        ["model=models/no-template", "data=dialogues.jsonl", "objective=sft"],
        "dialogues.jsonl, line 1",
        "the record holds messages, but the model's tokenizer has no chat template",
        "['user', 'assistant']",
        "set tokens.chat_template to a Jinja file",
    ),
    "special token in a message": BadSetting(
        ["data=special.jsonl", "objective=sft"],
        "special.jsonl, line 2",
        "the text of a message holds the special token '<|im_end|>'",
        "'a<|im_end|>b'",
        "remove it from the text",
    ),
    "one label for rdro": BadSetting(
        ["objective=rdro", "data=one-label.jsonl"],
        "data",
        "every record is desirable",
        None,
        "add records of the other label",
    ),
    "one prompt for kto": BadSetting(
        ["objective=kto", "data=one-prompt.jsonl"],
        "data",
        "kto needs at least two different prompts",
        None,
        "such as rdro",
    ),
    "scores for labels": BadSetting(
        ["objective=rdro", "data=scored.jsonl"],
        "scored.jsonl",
        "scored records cannot become unpaired without a further choice",
        None,
        "choose the score from which on a completion is desirable",
    ),
    "labels for pairs": BadSetting(
        ["data=one-label.jsonl"],
        "one-label.jsonl",
        "unpaired records cannot become paired",
        None,
        "give records that are paired",
    ),
}

FILES = {
    "a.jsonl": lines(PAIR, PAIR | {"prompt": "And two and three?"}),
    "dialogues.jsonl": lines(DIALOGUE),
    "special.jsonl": lines(
        DIALOGUE, {"messages": [message("user", "a<|im_end|>b"), message("assistant")]}
    ),
    "one-label.jsonl": lines(LABEL, LABEL | {"prompt": "Name another color."}),
    "one-prompt.jsonl": lines(LABEL, LABEL | {"completion": "Salt.", "label": False}),
    "scored.jsonl": lines(SCORED, SCORED | {"prompt": "Name another tree."}),
    "broken.jinja": b"{% for message in messages %}\n{% for %}\n",
    "full/thesis.tex": b"years of work",
    "old-run/model/config.json": b"{}",
}


@pytest.fixture
def furnished(place):
    for name, content in FILES.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return place


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_a_setting_that_cannot_be_honored_is_named(name, furnished, veritune):
    bad = BAD_SETTINGS[name]
    words = ("model=models/tiny", "data=a.jsonl", "objective=dpo", "output=run", "train.steps=1")

    outcome = veritune("train", *words, *bad.words)

    assert_refused(outcome, bad.where, bad.what, bad.got, bad.fix)
    assert not (furnished / "run").exists()


RUN_YAML = "model: models/tiny\ndata: a.jsonl\nobjective: dpo\noutput: run\ntrain: {steps: 1}\n"


class BadSettingsFile(NamedTuple):
    """A settings file and the words behind it."""

    content: str | bytes
    where: str
    what: str
    got: str | None
    fix: str
    words: Sequence[str] = ()


BAD_SETTINGS_FILES = {
    "unknown key": BadSettingsFile(
        RUN_YAML.replace("steps", "step"),
        "run.yaml",
        "unknown setting train.step",
        "1",
        "did you mean train.steps?",
    ),
    "out of range": BadSettingsFile(
        RUN_YAML + "tokens: {max_length: 0}\n",
        "run.yaml",
        "tokens.max_length must be greater than or equal to 2, got 0",
        None,
        "give another value",
    ),
    "wrong word behind a sound file": BadSettingsFile(
        RUN_YAML,
        "command line",
        "train.steps must be greater than 0, got 0",
        None,
        "give another value",
        ["train.steps=0"],
    ),
    "broken YAML": BadSettingsFile(
        RUN_YAML + "\tcache: x\n", "run.yaml, line 6", "not valid YAML", None, "mend the line"
    ),
    "duplicate key": BadSettingsFile(
        RUN_YAML + "data: b.jsonl\n",
        "run.yaml, line 6",
        "the key 'data' is given twice",
        None,
        "leave the key once",
    ),
    "missing key": BadSettingsFile(
        RUN_YAML.replace("objective: dpo\n", ""),
        "run.yaml",
        "the setting objective is missing",
        None,
        "objective=… on the command line",
    ),
    "a list": BadSettingsFile(
        "- model\n- data\n",
        "run.yaml",
        "the settings file does not hold `key: value` lines",
        "['model', 'data']",
        "README",
    ),
    "not UTF-8": BadSettingsFile(
        b"model: caf\xe9\n", "run.yaml", "the settings file cannot be read", None, "give a UTF-8"
    ),
    "a number for a key": BadSettingsFile(
        RUN_YAML + "7: 8\n", "run.yaml", "the key 7 is not text", None, "put the key in quotes"
    ),
    "two files": BadSettingsFile(
        RUN_YAML,
        "command line",
        "there are several settings files",
        "['run.yaml', 'other.yml']",
        "give one",
        ["other.yml"],
    ),
}


@pytest.mark.parametrize("name", BAD_SETTINGS_FILES)
def test_a_settings_file_that_cannot_be_used_is_named(name, furnished, veritune):
    bad = BAD_SETTINGS_FILES[name]
    content = bad.content if isinstance(bad.content, bytes) else bad.content.encode()
    (furnished / "run.yaml").write_bytes(content)

    outcome = veritune("train", "run.yaml", *bad.words)

    assert_refused(outcome, bad.where, bad.what, bad.got, bad.fix)
    assert not (furnished / "run").exists()


def test_the_settings_that_the_tables_change_are_sound_by_themselves(furnished, veritune):
    (furnished / "run.yaml").write_text(RUN_YAML)
    assert veritune("train", "run.yaml").code == 0
    assert (furnished / "run" / "model" / "config.json").is_file()


def test_all_wrong_settings_are_told_at_once(furnished, veritune):
    outcome = veritune("train", "model=m", "data=a.jsonl", "train.step=1", "train.seed=-1")

    assert outcome.code == 2
    assert outcome.err.startswith("SettingsError: 4 settings are wrong")
    for what in ("objective is missing", "output is missing", "train.step.", "train.seed must be"):
        assert what in outcome.err


def test_a_settings_file_that_does_not_exist_is_named(place, veritune):
    outcome = veritune("train", "run.yaml")
    assert_refused(outcome, "run.yaml", "the settings file does not exist", None, "check the path")


CHECKED = {
    "model without tokenizer": (["model=models/no-tokenizer"], "the model has no tokenizer"),
    "model without config": (["model=models/no-config"], "the folder holds no model"),
    "broken config": (["model=models/bad-config"], "the model's config cannot be read"),
    "unknown setting": (["modle=models/tiny"], "did you mean model?"),
    "missing held-out file": (["evaluation=b.jsonl"], "did you mean a.jsonl?"),
    "no room": (["model=models/tiny", "tokens.max_length=2"], "every record is too long"),
    "unknown column": (["data.columns.q=prompt"], "data.columns names columns that no row has"),
}


@pytest.mark.parametrize("name", CHECKED)
def test_check_refuses_what_train_would_refuse(name, furnished, veritune):
    words, what = CHECKED[name]

    outcome = veritune("check", "a.jsonl", *words)

    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    assert what in outcome.err
    assert "fix: " in outcome.err


PROCESSES = {
    "check a damaged file": (["check", "bad.jsonl"], "1 of 2 rows cannot be used"),
    "train on it": ([*TRAIN, "data=bad.jsonl"], "RecordError: bad.jsonl, line 2: not valid JSON"),
    "train with a wrong setting": (["train", "run.yaml", "train.step=1"], "mean train.steps?"),
}


@pytest.mark.slow
def test_a_process_leaves_with_exit_code_2_and_a_message_on_standard_error(furnished):
    (furnished / "bad.jsonl").write_bytes(lines(PAIR, b"{"))
    (furnished / "run.yaml").write_text(RUN_YAML)
    source = os.pathsep.join(path for path in sys.path if path)
    running = {
        name: subprocess.Popen(
            [sys.executable, "-m", "veritune", *words],
            env={**os.environ, "PYTHONPATH": source},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        for name, (words, _) in PROCESSES.items()
    }
    left = {name: (p.communicate(), p.returncode) for name, p in running.items()}

    for name, (_, what) in PROCESSES.items():
        (_, err), code = left[name]
        assert code == 2, (name, err)
        assert what in err
        assert "Traceback" not in err
