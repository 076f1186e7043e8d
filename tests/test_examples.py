"""The examples in docstrings are true."""

import doctest
import importlib

import pytest

from local.state import REPOSITORY

WITH_EXAMPLES = [p for p in sorted((REPOSITORY / "cxr_ml").rglob("*.py")) if ">>> " in p.read_text()]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_the_examples_of_a_module_are_true(path):
    name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.attempted and not results.failed
