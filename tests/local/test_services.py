import os
import re
import shlex
import socket
import stat
import subprocess

import pytest

from cxr_ml import settings as settings_module
from cxr_ml.errors import Refused
from local import services, state

NO_FILES = services.SettingsFiles(None, None)


@pytest.fixture
def ports():
    return services.choose_ports(lambda port: True)


@pytest.fixture
def secrets(tmp_path):
    return state.load_secrets(tmp_path)


def test_the_usual_ports_are_used_where_they_are_free(ports):
    assert ports == services.USUAL_PORTS


def test_a_taken_port_is_replaced_by_the_next_free_one():
    taken = {8080, 8081, 1025}
    chosen = services.choose_ports(lambda port: port not in taken)
    assert (chosen["ui"], chosen["smtp"], chosen["s3"]) == (8082, 1026, 8333)


def test_a_store_port_is_replaced_when_only_its_grpc_port_is_taken():
    chosen = services.choose_ports(lambda port: port not in {18333, 33646})
    assert chosen["s3"] == 8334
    assert chosen["admin"] == 23647


def test_no_port_is_given_twice_however_crowded_the_machine_is():
    # Everything below 9340 is taken up to the range of the next service, so that ranges overlap.
    chosen = services.choose_ports(lambda port: not (9333 <= port <= 9400))
    used = [port for name, port in chosen.items() if name not in services.STORE_PORTS]
    for name in services.STORE_PORTS:
        used += [chosen[name], chosen[name] + services.GRPC_OFFSET]
    assert len(used) == len(set(used))
    assert min(chosen["master"], chosen["volume"]) > 9400


def test_a_machine_without_free_ports_is_an_error_that_says_so():
    with pytest.raises(Refused, match="No free port for ui"):
        services.choose_ports(lambda port: False)


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_port_somebody_listens_on_is_not_free(address):
    with socket.socket() as server:
        server.bind((address, 0))
        server.listen()
        port = server.getsockname()[1]
        assert not services.is_free(port)
    assert services.is_free(port)


def test_the_profile_follows_the_weights_and_a_file_is_laid_over_it(tmp_path):
    (tmp_path / "profiles").mkdir()
    demo, cpu = (tmp_path / "profiles" / f"{name}.toml" for name in ("demo", "cpu"))
    own = tmp_path / "own.toml"
    for path in (demo, cpu, own):
        path.touch()

    def find(**environ):
        return services.find_settings(environ, tmp_path)

    assert find() == (demo, None)
    assert find(CXR_WEIGHTS_DIR="w") == (cpu, None)
    assert find(CXR_CONFIG=str(own)) == (demo, own)
    assert find(CXR_CONFIG=str(own), PROFILE="cpu") == (cpu, own)
    assert find(PROFILE="default", CXR_WEIGHTS_DIR="w") == (None, None)
    with pytest.raises(Refused, match="PROFILE must be one of cpu, demo, default"):
        find(PROFILE="../demo")
    with pytest.raises(Refused, match="CXR_CONFIG"):
        find(CXR_CONFIG=str(tmp_path / "gone.toml"))
    (tmp_path / "cxr.toml").touch()
    assert find() == (demo, tmp_path / "cxr.toml")


@pytest.mark.parametrize("profile", ["demo", "cpu"])
def test_every_profile_holds_settings_that_exist(profile, monkeypatch):
    monkeypatch.setenv("CXR_PROFILE", profile)
    assert settings_module.load().training.architectures


def test_services_get_our_credentials_and_none_of_the_callers(tmp_path, ports, secrets):
    caller = {
        "AWS_PROFILE": "work",
        "AWS_SESSION_TOKEN": "t",
        "AWS_ACCESS_KEY_ID": "theirs",
        "AIRFLOW_HOME": "/theirs",
        "AIRFLOW__CORE__DAGS_FOLDER": "/theirs",
        "CXR_TRAINING__SEED": "7",
        "NO_PROXY": "intranet",
        "PATH": "/bin",
    }
    env = services.environment(tmp_path, ports, secrets, NO_FILES, True, caller)
    assert env["AWS_ACCESS_KEY_ID"] == secrets["s3_access_key"]
    assert not {"AWS_PROFILE", "AWS_SESSION_TOKEN"} & set(env)
    assert env["AIRFLOW_HOME"] == str(tmp_path / "airflow")
    assert env["AIRFLOW__CORE__DAGS_FOLDER"] == str(state.REPOSITORY / "dags")
    assert env["CXR_TRAINING__SEED"] == "7"
    assert env["NO_PROXY"] == "intranet,127.0.0.1,localhost"


def test_every_address_is_on_the_loopback_interface(tmp_path, ports, secrets):
    env = services.environment(tmp_path, ports, secrets, NO_FILES, True, {})
    addresses = [value for name, value in env.items() if re.search("HOST$|URL$", name)]
    assert len(addresses) >= 5
    assert all("127.0.0.1" in value for value in addresses)
    procfile = (state.REPOSITORY / "local" / "Procfile").read_text()
    assert "-ip=127.0.0.1 -ip.bind=127.0.0.1" in procfile
    assert "-l 127.0.0.1:" in procfile
    # Their log servers would listen on all interfaces.
    assert all("--skip-serve-logs" in line for line in procfile.splitlines() if re.match("scheduler|triggerer", line))


def test_no_secret_is_on_a_command_line(secrets):
    procfile = (state.REPOSITORY / "local" / "Procfile").read_text()
    assert not re.search("KEY|SECRET|PASSWORD|SALT", procfile)
    assert not any(value in procfile for value in secrets.values())


def test_sqlite_is_the_default_database_and_a_url_replaces_it(tmp_path, ports, secrets):
    name = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
    url = "postgresql+psycopg2://u@h/db"
    assert services.environment(tmp_path, ports, secrets, NO_FILES, True, {})[name].startswith(f"sqlite:///{tmp_path}")
    assert services.environment(tmp_path, ports, secrets, NO_FILES, True, {"CXR_AIRFLOW_DB": url})[name] == url


def test_the_env_file_gives_a_shell_the_same_values_and_is_private(tmp_path, ports, secrets):
    tricky = {**secrets, "patient_salt": "a b'$HOME\"`id`"}
    variables = services.library_environment(tmp_path, ports, tricky, NO_FILES, {"CXR_WEIGHTS_DIR": "weights"})
    services.write_files(tmp_path, ports, tricky, variables)
    names = '"$CXR_INBOX__PATIENT_SALT" "$CXR_WEIGHTS_DIR"'
    script = f"set -a; . {shlex.quote(str(tmp_path / 'env'))}; printf '%s\n%s' {names}"
    shown = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == [tricky["patient_salt"], os.path.abspath("weights")]
    for name in ("env", "ports.json", "airflow/passwords.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
