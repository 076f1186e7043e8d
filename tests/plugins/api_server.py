"""A real API server of Airflow with the console in it, and users of two roles."""

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from local.services import choose_ports
from local.state import REPOSITORY

USERS = {"admin": "Admin", "viewer": "Viewer"}
_FAB = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"
# As `airflow users create` does, but both in one process.
_MAKE_USERS = """
import json, sys
from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder
with get_application_builder() as builder:
    for name, (role, password) in json.load(sys.stdin).items():
        found = builder.sm.find_role(role)
        assert builder.sm.add_user(name, name, name, f"{name}@hospital.example", found, password)
"""


def _environment(folder: Path, store: dict[str, str]) -> dict[str, str]:
    """Of every process of the Airflow in that folder."""
    own = {
        "AIRFLOW_HOME": folder,
        "AIRFLOW__CORE__DAGS_FOLDER": REPOSITORY / "dags",
        "AIRFLOW__CORE__PLUGINS_FOLDER": REPOSITORY / "plugins",
        "AIRFLOW__CORE__LOAD_EXAMPLES": False,
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{folder / 'airflow.db'}",
        "PYTHONPATH": REPOSITORY,
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    return inherited | store | {name: str(value) for name, value in own.items()}


def run_airflow(folder: Path, store: dict[str, str], *command: str) -> None:
    """Runs a command of the Airflow in that folder."""
    _run([sys.executable, "-m", "airflow", *command], folder, store, "")


def run_script(folder: Path, store: dict[str, str], script: str, given: object) -> None:
    """Runs a script by the database of the Airflow in that folder, with `given` as JSON on its standard input."""
    _run([sys.executable, "-c", script], folder, store, json.dumps(given))


def _run(command: list[str], folder: Path, store: dict[str, str], given: str) -> None:
    env = _environment(folder, store)
    done = subprocess.run(command, env=env, input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


@contextmanager
def api_server(folder: Path, manager: str, store: dict[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Its address, and a token of each user.

    Args:
        folder: for Airflow's home.
        manager: of users, simple or fab.
        store: variables with which the console reaches its store.
    """
    port = choose_ports(usual_ports={"ui": random.randrange(20_000, 24_000)})["ui"]
    address = f"http://127.0.0.1:{port}"
    passwords = {name: secrets.token_urlsafe(12) for name in USERS}
    (folder / "passwords.json").write_text(json.dumps(passwords))
    variables = {
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{name}:{role.lower()}" for name, role in USERS.items()),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": folder / "passwords.json",
        "AIRFLOW__API__BASE_URL": address,
        "AIRFLOW__API__SECRET_KEY": secrets.token_hex(16),
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
        **({"AIRFLOW__CORE__AUTH_MANAGER": _FAB} if manager == "fab" else {}),
    }
    env = _environment(folder, store) | {name: str(value) for name, value in variables.items()}
    airflow = [sys.executable, "-m", "airflow"]
    with (folder / "server.log").open("wb") as log:
        subprocess.run([*airflow, "db", "migrate"], env=env, check=True, stdout=log, stderr=log)
        if manager == "fab":
            users = json.dumps({name: (role, passwords[name]) for name, role in USERS.items()}).encode()
            command = [sys.executable, "-c", _MAKE_USERS]
            subprocess.run(command, env=env, check=True, input=users, stdout=log, stderr=log)
        command = [*airflow, "api-server", "--host", "127.0.0.1", "--port", str(port)]
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait(address, server, folder / "server.log")
            yield address, {name: _token(address, name, password) for name, password in passwords.items()}
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def _wait(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 600
    while True:
        with suppress(httpx.HTTPError):
            if httpx.get(f"{address}/api/v2/version", trust_env=False).status_code == 200:
                return
        assert server.poll() is None and time.monotonic() < end, log.read_text(errors="replace")[-4000:]
        time.sleep(0.3)


def _token(address: str, name: str, password: str) -> str:
    body = {"username": name, "password": password}
    answer = httpx.post(f"{address}/auth/token", json=body, trust_env=False, timeout=300)
    assert answer.status_code == 201, answer.text
    return answer.json()["access_token"]
