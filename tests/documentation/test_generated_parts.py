import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    return generate


@pytest.mark.parametrize("page", ["README.md", "docs/choosing-an-objective.md"])
def test_the_generated_parts_are_current(page, generate):
    written = (ROOT / page).read_text(encoding="utf-8")

    assert generate.generated(page, written) == written, "run `make docs`"


@pytest.mark.parametrize("page", ["docs/objectives.md", "docs/theorems.md", "docs/tree.md"])
def test_the_generated_pages_are_current(page, generate):
    assert generate.PAGES[page]() == (ROOT / page).read_text(encoding="utf-8"), "run `make docs`"
