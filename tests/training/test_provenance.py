"""What model.json says of the code and the machine."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import cxr_ml
from cxr_ml.training import provenance
from local.state import REPOSITORY


def said_by(folder: Path, **variables: str) -> str:
    """What the package of that folder says of its code."""
    script = "from cxr_ml.training import provenance as p; print(p.cxr_ml.__file__); print(p.describe_code())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(folder)} | variables,
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    file, code = done.stdout.splitlines()
    assert Path(file).is_relative_to(folder)
    return code


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b.example", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_code_is_named_by_its_commit_or_else_by_the_version_of_the_package(tmp_path):
    package = tmp_path / "cxr_ml"
    (package / "training").mkdir(parents=True)
    for file in ("__init__.py", "training/__init__.py", "training/provenance.py"):
        shutil.copy(REPOSITORY / "cxr_ml" / file, package / file)
    version = f"version {cxr_ml.__version__}"
    assert said_by(tmp_path) == version
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "of somebody else's project")
    assert said_by(tmp_path) == version, "installed within another checkout"
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    commit = f"commit {git(tmp_path, 'rev-parse', 'HEAD')}"
    assert said_by(tmp_path) == commit
    (package / "__init__.py").write_text((package / "__init__.py").read_text() + "\n")
    assert said_by(tmp_path) == f"{commit}+changes"
    assert said_by(tmp_path, PATH=str(tmp_path)) == version, "no git on this machine"


def test_the_machine_is_described():
    found = provenance.describe_hardware()
    assert found["cores"] >= 1 and found["memory_gib"] >= 1 and found["cpu"]
    assert isinstance(found["gpus"], str)
    packages = provenance.list_packages()
    for name in ("tensorflow", "simplejpeg", "pillow", "scipy"):  # the latter decide pixels and the operating point
        assert re.fullmatch(r"\d+\.\d+\.\d+\S*", packages[name]), name
