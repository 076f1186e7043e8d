"""A real API server of Airflow with the console in it, and users of two roles."""

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from local.services import choose_ports
from local.state import REPOSITORY

USERS = {"admin": "Admin", "viewer": "Viewer"}
_FAB = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"


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


@contextmanager
def states(folder: Path, store: dict[str, str]) -> Iterator[Callable[[dict[str, object]], None]]:
    """Puts a run of the Airflow in that folder into the state that putting.py is told, once its server has started."""
    command = [sys.executable, str(Path(__file__).with_name("putting.py"))]
    log = folder / "putting.log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            command,
            env=_environment(folder, store),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):

        def put(given: dict[str, object]) -> None:
            process.stdin.write(json.dumps(given) + "\n")
            process.stdin.flush()
            while (line := process.stdout.readline()) != "put\n":
                assert line, log.read_text(errors="replace")[-4000:]

        yield put


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
    users = {name: (role, passwords[name]) for name, role in USERS.items()} if manager == "fab" else {}
    script = Path(__file__).with_name("serving.py")
    # The console needs no `execution` of Airflow's, by which tasks are run.
    command = [sys.executable, str(script), "--host", "127.0.0.1", "--port", str(port), "--apps", "core"]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True, text=True
        )
        try:
            server.stdin.write(json.dumps(users))
            server.stdin.close()
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
            if httpx.get(f"{address}/api/v2/version", trust_env=False, verify=False).status_code == 200:
                return
        assert server.poll() is None and time.monotonic() < end, log.read_text(errors="replace")[-4000:]
        time.sleep(0.3)


def _token(address: str, name: str, password: str) -> str:
    body = {"username": name, "password": password}
    answer = httpx.post(f"{address}/auth/token", json=body, trust_env=False, timeout=300)
    assert answer.status_code == 201, answer.text
    return answer.json()["access_token"]
