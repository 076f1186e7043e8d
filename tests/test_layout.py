"""The keys of the store: spelled in one module, and none is another's."""

import ast
import inspect
import re

import pytest

from cxr_ml import layout
from local.state import REPOSITORY

FOLDERS = [value for name, value in vars(layout).items() if name.isupper() and value.endswith("/")]
CODE = [p for folder in ("cxr_ml", "dags", "plugins", "local") for p in sorted((REPOSITORY / folder).rglob("*.py"))]
KEYS = {name: function for name, function in vars(layout).items() if inspect.isfunction(function)}


def spelled(source: str) -> list[str]:
    """The texts of a module that begin as a key does, docstrings left out."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ]
    key = re.compile("|".join(re.escape(folder) + r"(?!\S*\s)" for folder in [*FOLDERS, "features/", "registry/"]))
    return [text for text in texts if key.match(text)]


@pytest.mark.parametrize("path", CODE, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_no_other_module_spells_a_key(path):
    if path != REPOSITORY / "cxr_ml/layout.py":
        assert spelled(path.read_text()) == []


def test_a_key_that_is_spelled_out_is_seen():
    assert spelled('key = f"models/{name}/model.keras"') == ["models/"]
    assert spelled('"""models/x"""\nprint("models/ is a folder")') == []


def test_no_two_keys_are_the_same():
    made = {}
    for name, function in KEYS.items():
        kinds = inspect.get_annotations(function)
        made[name] = function(*(7 if kinds[p] is int else "abc" for p in inspect.signature(function).parameters))
    assert len(set(made.values())) == len(KEYS), made
