"""The images: locked requirements, no root, nothing private in the build context."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from compose_reading import DOCKER, DOCKERFILES, REPOSITORY, STATE, let_in, steps


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_python_and_uv_have_the_versions_of_the_makefile(dockerfile):
    makefile = (REPOSITORY / "Makefile").read_text()
    assert [rest for word, rest in steps(dockerfile) if word == "ARG"] == [
        "UV_VERSION=" + re.search(r"^UV := uv==(\S+)$", makefile, re.MULTILINE)[1]
    ]
    (base,) = [rest for word, rest in steps(dockerfile) if word == "FROM"]
    version = re.fullmatch(r"python:(\d+\.\d+)\.\d+-slim-\w+", base)[1]
    assert set(re.findall(r"--python-version (\S+)", makefile)) == {version}
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={version}"


def test_dockerfiles_install_the_locked_requirements_and_nothing_unpinned():
    for dockerfile, files in {"Dockerfile": "", "Dockerfile.gpu": " -r requirements-gpu.txt"}.items():
        installs = [rest for word, rest in steps(dockerfile) if word == "RUN" and " install --" in rest]
        assert [text.partition(" && chmod")[0] for text in installs if "useradd" not in text] == [
            'pip install --no-cache-dir "uv==${UV_VERSION}"',
            f"uv pip install --system --no-cache --compile-bytecode -r requirements.txt{files}",
            "uv pip install --system --no-cache --no-deps -e .",
        ]


def test_the_gpu_image_is_the_cpu_image_and_cuda():
    gpu = [
        (word, rest.replace(" docker/requirements-gpu.txt", "").replace(" -r requirements-gpu.txt", ""))
        for word, rest in steps("Dockerfile.gpu")
    ]
    gpu = [(word, rest.replace(" NVIDIA_DRIVER_CAPABILITIES=compute,utility", "")) for word, rest in gpu]
    assert gpu == steps("Dockerfile") != steps("Dockerfile.gpu")


def pins(path: Path) -> dict[str, set[str]]:
    """Package -> its lines in a lock, with version and marker."""
    found: dict[str, set[str]] = {}
    for line in path.read_text().splitlines():
        if line and line[0] not in "# ":
            found.setdefault(re.split("[=\\[ ]", line)[0], set()).add(line)
    return found


def test_the_cuda_lock_moves_no_version_and_is_what_make_lock_writes():
    locked, cuda = pins(REPOSITORY / "requirements.txt"), pins(DOCKER / "requirements-gpu.txt")
    shared = set(locked) & set(cuda)
    assert {name: cuda[name] for name in shared} == {name: locked[name] for name in shared}
    assert "tensorflow" in shared
    assert "nvidia-cudnn-cu12" in set(cuda) - shared
    assert all("==" in line for lines in cuda.values() for line in lines)
    command = re.search(r"^#    uv (pip compile .*)$", (DOCKER / "requirements-gpu.txt").read_text(), re.MULTILINE)[1]
    makefile = re.sub(r" \\\n\s*", " ", (REPOSITORY / "Makefile").read_text()).replace(" -q ", " ")
    assert f".venv/bin/uv {command}\n" in makefile


def test_every_image_is_built_here_or_pinned_to_a_version(compose):
    for service in compose.values():
        if "build" in service:
            assert service["build"]["context"] == ".."
            assert (REPOSITORY / service["build"]["dockerfile"]).is_file()
            assert (
                service["image"]
                == {"Dockerfile": "cxr-ml:cpu", "Dockerfile.gpu": "cxr-ml:gpu"}[
                    Path(service["build"]["dockerfile"]).name
                ]
            )
        else:
            assert re.fullmatch(r"[\w./-]+:\d+\.\d+(\.\d+)?(-\w+)?", service["image"])


def test_no_service_runs_as_root_or_can_become_it(compose):
    for dockerfile in DOCKERFILES:
        *_, (_, user) = [step for step in steps(dockerfile) if step[0] == "USER"]
        assert int(user) >= 1000
        assert f"useradd --uid {user} " in str(steps(dockerfile))
    for service in compose.values():
        assert service.get("user") not in ("root", "0")
        assert "user" in service or "build" in service
        assert "privileged" not in service and "cap_add" not in service
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_each_volume_lies_on_a_folder_that_the_image_gives_to_its_user(compose):
    (made,) = re.findall(r"for folder in ([^;]+);", str(steps("Dockerfile")))
    folders = {f"{STATE}/{name}" for name in made.split()}
    used = [v.split(":") for s in compose.values() if "build" in s for v in s.get("volumes", ()) if isinstance(v, str)]
    assert len(used) >= 6
    assert {target for _, target in used} <= folders


def test_what_the_dockerfiles_copy_is_let_into_the_build_context():
    for dockerfile in DOCKERFILES:
        sources = [word for step, rest in steps(dockerfile) if step == "COPY" for word in rest.split()[:-1]]
        assert "." in sources
        for source in set(sources) - {"."}:
            assert source in let_in()
            assert (REPOSITORY / source).is_file()


def test_the_build_context_has_what_runs_and_nothing_that_is_private(image):
    root, _ = image
    files = {str(path.relative_to(root / "code")) for path in (root / "code").rglob("*") if path.is_file()}
    files = {name for name in files if "__pycache__" not in name and not name.startswith("cxr_ml.egg-info")}
    assert {"docker/init.py", "dags/cxr_retraining.py", "profiles/demo.toml", "cxr_ml/cli.py"} <= files
    top = {name.split("/")[0] for name in files}
    assert top <= {
        "cxr_ml",
        "dags",
        "docker",
        "expectations",
        "plugins",
        "profiles",
        "pyproject.toml",
        "requirements.txt",
    }
    assert {name for name in files if name.startswith("docker/")} == {"docker/init.py", "docker/requirements-gpu.txt"}
    assert not [name for name in files if Path(name).name in (".env", "cxr.toml", "secrets.json")]


def test_hadolint_has_nothing_to_say():
    hadolint = shutil.which("hadolint") or pytest.skip("no hadolint here")
    result = subprocess.run([hadolint, *(DOCKER / name for name in DOCKERFILES)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
