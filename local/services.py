"""What the services of local/Procfile need: ports of their own and one environment for all of them."""

import json
import os
import shlex
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from cxr_ml.errors import Refused
from local.state import REPOSITORY, write_private_file

USUAL_PORTS = {
    "ui": 8080,
    "smtp": 1025,
    "s3": 8333,
    "master": 9333,
    "volume": 9340,
    "filer": 8888,
    "admin": 23646,
}
# SeaweedFS listens for gRPC on each of its ports + 10000.
GRPC_OFFSET = 10_000
STORE_PORTS = ("s3", "master", "volume", "filer", "admin")


def is_free(port: int) -> bool:
    """Returns whether nothing listens on `port` of the loopback interface and this user may bind it."""
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            return False
    with socket.socket() as probe:
        # Without it, the last run's closed connections would count as taken for a minute.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def choose_ports(free: Callable[[int], bool] = is_free, usual_ports: Mapping[str, int] = USUAL_PORTS) -> dict[str, int]:
    """Returns a port for each service: the usual one, else the next above it that is free.

    Raises:
        Refused: none of the 200 ports from the usual one on is free.
    """
    chosen: dict[str, int] = {}
    used: set[int] = set()
    for name, usual in usual_ports.items():
        for port in range(usual, usual + 200):
            needed = {port, port + GRPC_OFFSET} if name in STORE_PORTS else {port}
            if not needed & used and all(map(free, needed)):
                chosen[name] = port
                used |= needed
                break
        else:
            raise Refused(
                f"No free port for {name} on 127.0.0.1 from {usual} to {usual + 199}. End what listens there."
            )
    return chosen


class SettingsFiles(NamedTuple):
    """The files that the settings of a run come from."""

    profile: Path | None  # None: the defaults
    config: Path | None  # laid over the profile; None: there is none


def find_settings(environ: Mapping[str, str], repository: Path = REPOSITORY) -> SettingsFiles:
    """Returns the profile, PROFILE or else `cpu` with weights and `demo` without, and the file laid over it.

    That file is CXR_CONFIG, else cxr.toml. PROFILE=default means no profile.

    Raises:
        Refused: PROFILE is not one of the profiles/*.toml, or CXR_CONFIG is not a file.
    """
    profiles = {path.stem: path for path in sorted((repository / "profiles").glob("*.toml"))}
    name = environ.get("PROFILE") or ("cpu" if environ.get("CXR_WEIGHTS_DIR") else "demo")
    if name not in (*profiles, "default"):
        raise Refused(f"PROFILE must be one of {', '.join([*profiles, 'default'])}. Received: {name!r}")
    config = Path(environ.get("CXR_CONFIG") or repository / "cxr.toml").absolute()
    if environ.get("CXR_CONFIG") and not config.is_file():
        raise Refused(f"CXR_CONFIG must name a readable TOML file. Received: {str(config)!r}")
    return SettingsFiles(profiles.get(name), config if config.is_file() else None)


def library_environment(
    state: Path, ports: Mapping[str, int], secrets: Mapping[str, str], files: SettingsFiles, environ: Mapping[str, str]
) -> dict[str, str]:
    """Returns the variables with which `cxr-ml` works on the running store, whoever calls it."""
    variables = {
        "AWS_ACCESS_KEY_ID": secrets["s3_access_key"],
        "AWS_SECRET_ACCESS_KEY": secrets["s3_secret_key"],
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "CXR_STORE__ENDPOINT_URL": f"http://127.0.0.1:{ports['s3']}",
        "CXR_STORE__BUCKET": "cxr",
        "CXR_INBOX__PATH": str(state / "inbox"),
        "CXR_CACHE_DIR": str(state / "cache"),
        "CXR_INBOX__PATIENT_SALT": secrets["patient_salt"],
        "CXR_MAIL__SMTP_HOST": "127.0.0.1",
        "CXR_MAIL__SMTP_PORT": str(ports["smtp"]),
        "CXR_MAIL__UI_URL": f"http://127.0.0.1:{ports['ui']}",
        "GX_ANALYTICS_ENABLED": "false",
        # A proxy of the user's must not see what goes to 127.0.0.1.
        "NO_PROXY": ",".join(filter(None, [environ.get("NO_PROXY") or environ.get("no_proxy"), "127.0.0.1,localhost"])),
    }
    variables["no_proxy"] = variables["NO_PROXY"]
    if files.profile:
        variables["CXR_PROFILE"] = str(files.profile)
    if files.config:
        variables["CXR_CONFIG"] = str(files.config)
    if environ.get("CXR_WEIGHTS_DIR"):
        variables["CXR_WEIGHTS_DIR"] = str(Path(environ["CXR_WEIGHTS_DIR"]).absolute())
    return variables


def airflow_environment(
    state: Path, ports: Mapping[str, int], secrets: Mapping[str, str], database: str | None, schedule: bool
) -> dict[str, str]:
    """Returns Airflow's configuration as variables.

    Args:
        state: the state folder.
        ports: of `choose_ports`.
        secrets: of `state.load_secrets`.
        database: SQLAlchemy URL; None: an SQLite file in `state`.
        schedule: whether weekly runs are made.
    """
    address = f"http://127.0.0.1:{ports['ui']}"
    home = state / "airflow"
    sections: dict[str, dict[str, object]] = {
        "core": {
            "executor": "LocalExecutor",
            "parallelism": 4,
            "dags_folder": REPOSITORY / "dags",
            "plugins_folder": REPOSITORY / "plugins",
            "load_examples": False,
            # A run by hand comes first; a weekly run that is overdue must not take its drop away.
            "dags_are_paused_at_creation": True,
            "execution_api_server_url": f"{address}/execution/",
            "fernet_key": secrets["fernet_key"],
            "simple_auth_manager_users": "admin:admin",
            "simple_auth_manager_passwords_file": home / "passwords.json",
            # The default asks DNS for the full name, which can take seconds without a network.
            "hostname_callable": "socket.gethostname",
        },
        "api": {
            "host": "127.0.0.1",
            "port": ports["ui"],
            "base_url": address,
            "workers": 1,
            "secret_key": secrets["api_secret"],
        },
        "api_auth": {"jwt_secret": secrets["jwt_secret"]},
        "database": {"sql_alchemy_conn": database or f"sqlite:///{home / 'airflow.db'}"},
        "scheduler": {"use_job_schedule": schedule},
        # Two files that seldom change; to read both takes a second and a half.
        "dag_processor": {"parsing_processes": 1, "min_file_process_interval": 120},
        "logging": {"colored_console_log": False},
    }
    variables = {"AIRFLOW_HOME": str(home)}
    for section, options in sections.items():
        for option, value in options.items():
            variables[f"AIRFLOW__{section}__{option}".upper()] = str(value)
    return variables


def environment(
    state: Path,
    ports: Mapping[str, int],
    secrets: Mapping[str, str],
    files: SettingsFiles,
    schedule: bool,
    environ: Mapping[str, str] = os.environ,
) -> dict[str, str]:
    """Returns the environment of the services: the caller's without its AWS and Airflow variables, and ours on top."""
    inherited = {
        name: value
        for name, value in environ.items()
        if not name.startswith(("AWS_", "AIRFLOW", "MAKE", "CXR_CONFIG", "CXR_PROFILE"))
        and name not in ("DROP", "ONCE", "PROFILE")
    }
    binaries = str(Path(sys.executable).parent)
    return {
        **inherited,
        **library_environment(state, ports, secrets, files, environ),
        **airflow_environment(state, ports, secrets, environ.get("CXR_AIRFLOW_DB"), schedule),
        "LOCAL_STATE": str(state),
        **{f"LOCAL_PORT_{name.upper()}": str(port) for name, port in ports.items()},
        # SeaweedFS takes some 130 MB. A limit near that keeps Go's collector busy: a tenth of a core, all the time.
        "GOMEMLIMIT": "512MiB",
        "PATH": os.pathsep.join([binaries, environ.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
    }


def write_files(
    state: Path, ports: Mapping[str, int], secrets: Mapping[str, str], variables: Mapping[str, str]
) -> None:
    """Writes the files in `state` that services and users read: passwords, ports, and `env` for a shell."""
    for name in ("airflow", "logs", "inbox", "copying", "store", "reports"):
        (state / name).mkdir(mode=0o700, exist_ok=True)
    write_private_file(state / "airflow" / "passwords.json", json.dumps({"admin": secrets["ui_password"]}) + "\n")
    write_private_file(state / "ports.json", json.dumps(dict(ports), indent=2) + "\n")
    lines = [f"{name}={shlex.quote(value)}\n" for name, value in sorted(variables.items())]
    write_private_file(
        state / "env",
        "# For a shell: set -a; . this file; set +a. Then `cxr-ml` uses the running store.\n" + "".join(lines),
    )


def take_environment(state: Path, secrets: Mapping[str, str], schedule: bool) -> dict[str, str]:
    """Chooses settings file and ports, writes the files of `state`, and makes this process's environment the services'.

    Args:
        state: the state folder.
        secrets: of `state.load_secrets`.
        schedule: whether weekly runs are made.

    Returns:
        The environment of the services.
    """
    files, ports = find_settings(os.environ), choose_ports()
    variables = library_environment(state, ports, secrets, files, os.environ)
    env = environment(state, ports, secrets, files, schedule)
    write_files(state, ports, secrets, variables)
    os.environ.clear()
    os.environ.update(env)
    return env
