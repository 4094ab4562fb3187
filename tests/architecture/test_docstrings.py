"""Everything public says what it is."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import veritune
from veritune.config import Config
from veritune.findings import part_of

ROOT = Path(veritune.__file__).parent
FILES = sorted(file.relative_to(ROOT) for file in ROOT.rglob("*.py"))


def undocumented(source: str) -> list[str]:
    """Public classes and functions of a module without a docstring, and "module" itself."""
    tree = ast.parse(source)
    named = [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
    ]
    missing = [] if ast.get_docstring(tree) else ["module"]
    return missing + [node.name for node in named if not ast.get_docstring(node)]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_module_and_every_public_class_and_function_has_a_docstring(file):
    assert undocumented((ROOT / file).read_text(encoding="utf-8")) == []


def test_a_missing_docstring_is_found():
    source = '"""Module."""\nclass A:\n    """A."""\ndef f(): ...\ndef _g(): ...\n'
    assert undocumented(source) == ["f"]
    assert undocumented("x = 1") == ["module"]


def configs() -> list[type[Config]]:
    for module in pkgutil.walk_packages([str(ROOT)], "veritune."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found: list[type[Config]] = []
    kinds = [Config]
    while kinds:
        kinds += (below := kinds.pop().__subclasses__())
        found += [kind for kind in below if kind.__module__.startswith("veritune.")]
    return sorted(set(found), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", configs(), ids=lambda kind: kind.__name__)
def test_every_setting_has_a_docstring_or_is_a_part_that_has_one(kind):
    assert kind.__doc__
    for name, field in kind.model_fields.items():
        part = part_of(kind, name)
        assert field.description or (part is not None and inspect.getdoc(part)), name


def test_settings_of_every_command_are_among_those_looked_at():
    names = {kind.__name__ for kind in configs()}
    assert {"TrainConfig", "CheckConfig", "TinyConfig", "DataConfig", "OptimizerConfig"} <= names
