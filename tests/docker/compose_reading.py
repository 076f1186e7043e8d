"""Reads docker/ as Docker would, without one: compose.yaml with its variables, Dockerfiles, the build context."""

import re
import shutil
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKER = REPOSITORY / "docker"
CODE, STATE = "/opt/cxr", "/var/lib/cxr"
DOCKERFILES = ("Dockerfile", "Dockerfile.gpu")
AIRFLOW = ("init", "api-server", "scheduler", "dag-processor", "triggerer", "worker", "worker-cpu", "worker-gpu")
REFERENCE = re.compile(r"\$(\$|\{(?P<name>\w+)(?:(?P<how>:[-?+])(?P<text>(?:[^{}$]|\$\{\w+\})*))?\})?")


def put_in(text: str, values: dict[str, str]) -> str:
    """`text` with its ${…} replaced by the rules of Compose; `$$` stays, it is for the shell in the container."""

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$$"
        assert match["name"], f"a single $ in {text!r}"
        value = values.get(match["name"], "")
        if match["how"] == ":+":
            return put_in(match["text"], values) if value else ""
        if match["how"] == ":?":
            assert value, f"{match['name']} is required"
        if match["how"] == ":-":
            return value or put_in(match["text"], values)
        return value

    return REFERENCE.sub(replace, text)


def resolved(node: object, values: dict[str, str]) -> object:
    """A tree of YAML with `put_in` applied to each of its strings."""
    if isinstance(node, dict):
        return {key: resolved(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [resolved(value, values) for value in node]
    return put_in(node, values) if isinstance(node, str) else node


def env_file(path: Path) -> dict[str, str]:
    """The variables of an .env file without quotes."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def sample() -> dict[str, str]:
    """docker/.env with a different value for each secret."""
    return {name: value or f"sample-of-{name}" for name, value in env_file(DOCKER / ".env.example").items()}


def check_of(service: dict) -> str:
    """The health check of a service as the shell in its container gets it, "" without."""
    return service.get("healthcheck", {}).get("test", "").replace("$$", "$")


def raw_compose() -> dict:
    """compose.yaml with its anchors, but not its variables, resolved."""
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


def steps(dockerfile: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile in docker/: word and rest, continued lines joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", (DOCKER / dockerfile).read_text(), flags=re.MULTILINE)
    joined = re.sub(r"\s*\\\n\s*", " ", text)
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def image_environment(dockerfile: str) -> dict[str, str]:
    """What the ENV instructions of a Dockerfile set."""
    pairs = [pair for word, rest in steps(dockerfile) if word == "ENV" for pair in rest.split()]
    return dict(pair.split("=", 1) for pair in pairs)


def let_in() -> list[str]:
    """The paths that .dockerignore lets into the build context; all else is kept out."""
    lines = [line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*", "whatever is not named must stay out"
    named = [line.removeprefix("!") for line in lines if line.startswith("!")]
    assert [line for line in lines[1:] if line[0] != "!"] == ["**/__pycache__"]
    assert not any(set(name) & set("*?[") for name in named)
    return named


def copy_context(target: Path) -> None:
    """Copies what `COPY . ./` would bring into the image."""
    for name in let_in():
        source, copy = REPOSITORY / name, target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, copy)
