"""compose.yaml as a whole and the files of the image, read once for all tests of this folder."""

import os
import sys
from pathlib import Path

import pytest
from compose_reading import CODE, STATE, copy_context, image_environment, raw_compose, resolved, sample

VENV = Path(sys.executable).parent


@pytest.fixture(scope="session")
def raw():
    return raw_compose()


@pytest.fixture(scope="session")
def compose(raw):
    return resolved(raw, sample())["services"]


@pytest.fixture(scope="session")
def image(tmp_path_factory):
    """The files of the image, and a function that moves a container's variables and words to where they are here."""
    root = tmp_path_factory.mktemp("image")
    copy_context(root / "code")
    (root / "state/ui").mkdir(parents=True)

    def here(text: str) -> str:
        return text.replace(CODE, str(root / "code")).replace(STATE, str(root / "state"))

    def environment(service: dict) -> dict[str, str]:
        given = image_environment("Dockerfile") | service["environment"]
        inherited = {"PATH": f"{VENV}:{os.environ['PATH']}", "HOME": str(root), "PYTHONPATH": str(root / "code")}
        return inherited | {name: here(value) for name, value in given.items()}

    return root, environment
