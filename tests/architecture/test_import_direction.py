"""The rules of the tree: who may import whom, read from the docstring of the package."""

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import veritune

ROOT = Path(veritune.__file__).parent
FILES = sorted(file.relative_to(ROOT) for file in ROOT.rglob("*.py"))
ORDER = re.findall(r"^    (\w+)  +\S", veritune.__doc__ or "", re.MULTILINE)

DOORS = {
    "transformers": {"models", "tokens"},
    "tokenizers": {"models", "tokens"},
    "huggingface_hub": {"models"},
    "peft": {"models"},
    "safetensors": {"models", "training"},
    "datasets": {"records"},
    "pyarrow": {"records"},
    "torch.distributed": {"distributed"},
    "tensorboard": {"training"},
    "torch.utils.tensorboard": {"training"},
    "yaml": {"config", "findings"},
    "typer": {"commands"},
    "rich": {"commands", "reports"},
    "jinja2": {"reports", "tokens"},
}
"""Libraries to the parts that may import them."""


class Import(NamedTuple):
    """A module that is imported, and the name taken from it, if one is."""

    module: str
    name: str | None


def imports_of(source: str) -> Iterator[Import]:
    """Every import of a file, those inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (Import(node.module or "", alias.name) for alias in node.names)


def part_of_file(file: Path) -> str:
    return file.parts[0].removesuffix(".py")


def parts_imported(source: str) -> set[str]:
    """The parts of the package that a file imports from."""
    parts = set()
    for module, name in imports_of(source):
        words = [*module.split("."), *([name] if name else [])]
        if words[0] == "veritune" and words[1:2] not in ([], ["__version__"]):
            parts.add(words[1])
    return parts


def wrong_way(part: str, source: str) -> set[str]:
    """Parts that are imported though they stand behind the importing one."""
    return {
        other
        for other in parts_imported(source) - {part}
        if ORDER.index(other) >= ORDER.index(part)
    }


def read(file: Path) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


def test_the_docstring_lists_every_part_once():
    parts = {part_of_file(file) for file in FILES} - {"__init__", "__main__"}
    assert sorted(ORDER) == sorted(parts)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_part_imports_only_parts_listed_before_it(file):
    if part_of_file(file) in ("__init__", "__main__"):
        return
    assert wrong_way(part_of_file(file), read(file)) == set()


def test_an_import_in_the_wrong_direction_is_found_wherever_it_stands():
    assert wrong_way("records", "from veritune.tokens.encode import TextEncoder") == {"tokens"}
    assert wrong_way("records", "def f():\n    import veritune.training.loop") == {"training"}
    assert wrong_way("records", "from veritune import commands") == {"commands"}
    assert wrong_way("records", "from veritune.config import Config") == set()


def package_inits_imported(file: Path, source: str) -> list[str]:
    """Names that a file takes from the `__init__` of its own package."""
    package = ".".join(("veritune", *file.parts[:-1]))
    beside = {path.stem for path in (ROOT / file).parent.glob("*.py")} | {
        path.name for path in (ROOT / file).parent.iterdir() if path.is_dir()
    }
    own = {"__version__"} if package == "veritune" else set()
    return [
        name or module
        for module, name in imports_of(source)
        if module == package and name not in beside | own
    ]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_file_never_imports_from_its_own_package(file):
    if file.name != "__init__.py":
        assert package_inits_imported(file, read(file)) == []


def test_an_import_from_the_own_package_is_found():
    file = Path("records/read.py")
    assert package_inits_imported(file, "from veritune.records import Record") == ["Record"]
    assert package_inits_imported(file, "from veritune.records import kinds") == []
    assert package_inits_imported(file, "from veritune.records.kinds import Record") == []


def module_of(file: Path) -> str:
    words = ("veritune", *file.with_suffix("").parts)
    return ".".join(words[:-1] if words[-1] == "__init__" else words)


def test_files_import_each_other_without_circles():
    modules = {module_of(file): file for file in FILES}
    graph = {}
    for module, file in modules.items():
        imported = set()
        for target, name in imports_of(read(file)):
            inner = f"{target}.{name}"
            imported.add(inner if inner in modules else target)
        graph[module] = {target for target in imported if target in modules and target != module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"{' -> '.join(error.args[1])} is a circle")


ALLOWED = {
    "objectives": {"errors", "ranges", "logprobs"},
    # Its problems are drawn, and every draw takes its generator from `seeds`.
    "laboratory": {"errors", "ranges", "seeds", "logprobs", "rejection", "objectives"},
}
THIRD_PARTY = {"torch", "jaxtyping"}


@pytest.mark.parametrize("part", ALLOWED)
def test_objectives_and_laboratory_know_no_models(part):
    for file in FILES:
        if part_of_file(file) != part:
            continue
        # Hyper-parameters are settings: the catalog checks them, and reads their ranges.
        about_settings = file.name in ("catalog.py", "parameters.py", "choice.py")
        parts = parts_imported(read(file)) - {part}
        assert parts <= ALLOWED[part] | ({"config"} if about_settings else set()), file
        libraries = {
            module.split(".")[0]
            for module, _ in imports_of(read(file))
            if module.split(".")[0] not in {*sys.stdlib_module_names, "veritune"}
        }
        assert libraries <= THIRD_PARTY | ({"pydantic"} if about_settings else set()), file


@pytest.mark.parametrize("library", DOORS)
def test_a_heavy_library_has_one_door(library):
    users = {
        part_of_file(file)
        for file in FILES
        for module, name in imports_of(read(file))
        for imported in (module, f"{module}.{name}")
        if imported == library or imported.startswith(f"{library}.")
    }
    assert users <= DOORS[library]
