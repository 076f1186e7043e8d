"""What happens when the containers start: init, health checks, secrets, ports, volumes."""

import json
import re
import shlex
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
import uuid

import boto3
import pytest
from compose_reading import (
    AIRFLOW,
    DOCKER,
    DOCKERFILES,
    REPOSITORY,
    check_of,
    env_file,
    image_environment,
    resolved,
    sample,
    steps,
)
from cryptography.fernet import Fernet

from local import airflow_api

pytestmark = pytest.mark.slow


def test_init_makes_database_pool_bucket_and_password(image, compose, seaweed, tmp_path):
    root, environment = image
    bucket, url = f"init-{uuid.uuid4().hex}", f"sqlite:///{tmp_path}/airflow.db"
    given = (
        environment(compose["init"])
        | seaweed
        | {"CXR_STORE__BUCKET": bucket, "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": url}
    )
    command = [sys.executable, *shlex.split(compose["init"]["command"])[1:]]
    result = subprocess.run(command, env=given, cwd=root / "code", capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, result.stdout + result.stderr
    with sqlite3.connect(tmp_path / "airflow.db") as database:
        pool = database.execute("select slots, description from slot_pool where pool = 'gpu'").fetchone()
    assert pool == (airflow_api.GPU_POOL["slots"], airflow_api.GPU_POOL["description"])
    passwords = root / "state/ui/passwords.json"
    assert json.loads(passwords.read_text()) == {"admin": "sample-of-CXR_UI_PASSWORD"}
    assert stat.S_IMODE(passwords.stat().st_mode) == 0o600
    keys = {"aws_access_key_id": "AWS_ACCESS_KEY_ID", "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY"}
    client = boto3.client(
        "s3", endpoint_url=seaweed["CXR_STORE__ENDPOINT_URL"], region_name="us-east-1",
        **{argument: seaweed[name] for argument, name in keys.items()},
    )  # fmt: skip
    client.head_bucket(Bucket=bucket)


def test_a_second_start_keeps_the_bucket_and_takes_the_new_password(store, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(DOCKER)
    import init

    assert store.put_if_absent("kept", b"1")
    init.make_bucket(store)
    assert store.get_or_none("kept")[0] == b"1"
    path = tmp_path / "passwords.json"
    for password in ("first", "second"):
        init.write_passwords(path, "ann:admin,bob:viewer", password)
        assert json.loads(path.read_text()) == {"ann": password, "bob": password}


def test_make_env_fills_each_secret_once_and_for_its_owner_alone(tmp_path):
    for name in ("make_env.py", ".env.example"):
        shutil.copy(DOCKER / name, tmp_path)
    command = [sys.executable, tmp_path / "make_env.py"]
    subprocess.run(command, check=True, capture_output=True)
    written, example = env_file(tmp_path / ".env"), env_file(DOCKER / ".env.example")
    secrets = [written[name] for name, value in example.items() if not value]
    assert len(set(secrets)) == len(secrets) == 9
    assert all(len(value) >= 44 and re.fullmatch(r"[\w=-]+", value) for value in secrets)
    Fernet(written["CXR_FERNET_KEY"])
    assert {n: v for n, v in written.items() if example[n]} == {n: v for n, v in example.items() if v}
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600
    assert (tmp_path / "inbox").is_dir()
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 2
    assert "stays as it is" in again.stderr
    assert env_file(tmp_path / ".env") == written


def test_all_services_have_a_health_check_and_init_is_waited_for(compose):
    for name, service in compose.items():
        if name == "init":
            assert service["restart"] == "no"
        else:
            assert check_of(service)
            assert service["restart"] == "unless-stopped"
        for other, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_completed_successfully" if other == "init" else "service_healthy"}
    assert set(compose["init"]["depends_on"]) == {"postgres", "store"}
    for name in AIRFLOW[1:]:
        assert set(compose[name]["depends_on"]) == {"init", "broker"}
        assert image_environment("Dockerfile")["AIRFLOW_HOME"] + "/logs" in str(compose[name]["volumes"])


def healthy(compose, name, port, real):
    check = check_of(compose[name])
    assert check.count(str(port)) == 1
    command = check.replace(str(port), str(real)).replace("python", shlex.quote(sys.executable), 1)
    return subprocess.run(["sh", "-c", command], capture_output=True).returncode == 0


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_health_check_of_the_store_tells_a_living_one_from_a_dead_one(compose, seaweed):
    assert healthy(compose, "store", 8333, seaweed["CXR_STORE__ENDPOINT_URL"].rpartition(":")[2])
    assert not healthy(compose, "store", 8333, unused_port())


def test_the_mail_sink_starts_on_an_empty_volume_keeps_a_mail_and_has_a_true_health_check(compose, tmp_path):
    port = unused_port()
    (mount,) = [volume.split(":")[1] for volume in compose["smtp"]["volumes"]]
    command = compose["smtp"]["command"].replace(mount, str(tmp_path)).replace("0.0.0.0:1025", f"127.0.0.1:{port}")
    assert not healthy(compose, "smtp", 1025, port)
    sink = subprocess.Popen([sys.executable, *shlex.split(command)[1:]])
    try:
        assert any(healthy(compose, "smtp", 1025, port) for _ in range(50))
        script = "from smtplib import SMTP; SMTP('127.0.0.1', {}).sendmail('a@b', ['c@d'], 'Subject: x')"
        subprocess.run([sys.executable, "-c", script.format(port)], check=True)
    finally:
        sink.terminate()
        sink.wait(120)
    (mail,) = tmp_path.glob("maildir/new/*")
    assert "Subject: x" in mail.read_text()


def test_each_secret_comes_from_outside_and_is_asked_for(raw):
    text = (DOCKER / "compose.yaml").read_text()
    example = env_file(DOCKER / ".env.example")
    secret = {name for name, value in example.items() if not value}
    named = {name: set(re.findall(r"\$\{" + name + r"\b([^}]*)\}", text)) for name in example}
    assert {name for name, how in named.items() if how == {":?"}} == secret
    assert set(re.findall(r"\$\{(\w+)", text)) | {"COMPOSE_PROFILES"} == set(example)
    for name in secret:
        with pytest.raises(AssertionError, match=f"{name} is required"):
            resolved(raw, sample() | {name: ""})


def test_no_secret_has_a_value_in_a_file(raw):
    sensitive = re.compile("PASSWORD$|SECRET|KEY|SALT|AUTH$|BROKER_URL|SQL_ALCHEMY")
    for service in raw["services"].values():
        for name, value in service.get("environment", {}).items():
            if sensitive.search(name):
                assert re.fullmatch(r"([\w+]+://\w*:)?\$\{CXR_\w+:\?\}(@[\w:/]+)?", value), name
    for dockerfile in DOCKERFILES:
        assert not [rest for word, rest in steps(dockerfile) if word in ("ENV", "ARG") and sensitive.search(rest)]
    ignored = (REPOSITORY / ".gitignore").read_text().splitlines()
    assert {"docker/.env", "docker/inbox/"} <= set(ignored)


def test_only_the_ui_has_a_port_and_only_on_the_loopback_interface(compose):
    assert {name: service["ports"] for name, service in compose.items() if "ports" in service} == {
        "api-server": ["127.0.0.1:8080:8080"]
    }
    assert not [name for name, service in compose.items() if "network_mode" in service]


def test_the_inbox_is_read_only_and_must_exist(compose):
    for name in ("worker", "worker-cpu", "worker-gpu"):
        (inbox,) = [volume for volume in compose[name]["volumes"] if isinstance(volume, dict)]
        assert inbox["target"] == compose[name]["environment"]["CXR_INBOX__PATH"]
        assert inbox["read_only"] and inbox["bind"] == {"create_host_path": False}
        assert inbox["source"] == "./inbox"


def test_the_gpu_is_reserved_by_the_gpu_worker_alone(compose):
    assert [name for name, service in compose.items() if "deploy" in service] == ["worker-gpu"]
    (device,) = compose["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
