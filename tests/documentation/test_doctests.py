"""The examples in docstrings are run."""

import doctest
import importlib
import pkgutil

import pytest

import veritune

MODULES = [
    module.name
    for module in pkgutil.walk_packages(veritune.__path__, "veritune.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_are_true(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(importlib.import_module(name), optionflags=options)
    assert result.failed == 0
