import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from veritune.commands.main import main
from veritune.models.tiny import byte_level_tokenizer, tiny_model, write_tiny_model


class Outcome(NamedTuple):
    """What a command leaves on the terminal."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


@pytest.fixture
def veritune(monkeypatch, capsys) -> Callable[..., Outcome]:
    """Calls the `veritune` command with words, in this process."""
    # The command shows the package's warnings in its own way; that must not outlive the test.
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.delenv("COLUMNS", raising=False)

    def call(*words: str) -> Outcome:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["veritune", *words])
        with pytest.raises(SystemExit) as left:
            main()
        return Outcome(int(left.value.code or 0), *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """A folder with a sound model, `tiny`, and with one damaged model for each kind of damage."""
    folder = tmp_path_factory.mktemp("models")

    def write(name: str, rows: int = 259) -> Path:
        model = tiny_model("qwen2", vocab_size=rows, hidden_size=16, num_layers=1, num_heads=2)
        return write_tiny_model(folder / name, model, byte_level_tokenizer())

    write("tiny")
    write("more-rows", rows=300)
    write("fewer-rows", rows=200)
    (write("no-config") / "config.json").unlink()
    (write("no-weights") / "model.safetensors").unlink()
    (write("bad-weights") / "model.safetensors").write_bytes(b"no weights")
    (write("bad-config") / "config.json").write_text("{no json")
    (write("no-template") / "chat_template.jinja").unlink()
    for file in write("no-tokenizer").glob("token*"):
        file.unlink()
    for name, base in (("adapter", None), ("lost-adapter", "./gone")):
        (folder / name).mkdir()
        (folder / name / "adapter_model.safetensors").write_bytes(b"")
        settings = {"peft_type": "LORA", "base_model_name_or_path": base}
        (folder / name / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def place(tmp_path, models, monkeypatch) -> Path:
    """An empty working folder; the models lie below `models/`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(models)
    return tmp_path
