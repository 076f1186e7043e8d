"""Commands, variables and versions in docker/ are those that the project uses."""

import json
import re
import shlex
import shutil
import string
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from compose_reading import (
    AIRFLOW,
    CODE,
    DOCKER,
    REPOSITORY,
    STATE,
    check_of,
    image_environment,
    put_in,
    resolved,
    sample,
)

from cxr_ml import settings
from local import services, state

PROCFILE = dict(
    line.split(": ", 1) for line in (REPOSITORY / "local/Procfile").read_text().splitlines() if line[0] != "#"
)
# What the containers have and `make run` has not.
ADDED = {"postgres", "broker", "init", "worker", "worker-cpu", "worker-gpu"}


@pytest.fixture(scope="module")
def probe(image, compose):
    """What Airflow makes of the DAG folder, the variables and the commands of the containers."""
    root, environment = image
    commands = [shlex.split(c) for s in compose.values() for c in (s.get("command", ""), check_of(s))]
    ours = [command for command in commands if command[:1] == ["airflow"]]
    assert len(ours) == 10
    result = subprocess.run(
        [sys.executable, Path(__file__).with_name("image_probe.py")],
        env=environment(compose["dag-processor"]),
        input=json.dumps(ours),
        cwd=root / "code",
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.rpartition("PROBE ")[2])


def from_procfile(name: str) -> str:
    """The command of a Procfile service on the usual ports, without its log file."""
    command, found = re.subn(r'^exec (.*) >"\$LOCAL_STATE/logs/[\w-]+\.log" 2>&1$', r"\1", PROCFILE[name])
    assert found, PROCFILE[name]
    ports = {f"LOCAL_PORT_{service.upper()}": port for service, port in services.USUAL_PORTS.items()}
    return string.Template(command).substitute(ports, LOCAL_STATE=STATE)


def test_compose_starts_every_service_of_the_procfile_and_the_known_others(compose):
    assert set(compose) == set(PROCFILE) | ADDED


@pytest.mark.parametrize("name", PROCFILE)
def test_a_service_has_the_command_of_the_procfile_but_for_host_and_folder(name, compose):
    assert shlex.split(compose[name]["command"]) == [
        {"-ip=127.0.0.1": "-ip=store", "-ip.bind=127.0.0.1": "-ip.bind=0.0.0.0", "127.0.0.1:1025": "0.0.0.0:1025"}.get(
            word, word
        ).replace(f"{STATE}/maildir", f"{STATE}/mail/maildir")
        for word in shlex.split(from_procfile(name))
    ]


@pytest.mark.parametrize("name", AIRFLOW)
def test_airflow_and_the_library_get_the_variables_of_make_run_but_for_places(name, compose, tmp_path):
    values = sample()
    secrets = {name: values[f"CXR_{name.upper()}"] for name in state.load_secrets(tmp_path)}
    files = services.SettingsFiles(REPOSITORY / "profiles" / "demo.toml", None)
    # CXR_AIRFLOW_DB is how `make run` is given Postgres.
    database = f"postgresql+psycopg2://airflow:{values['CXR_POSTGRES_PASSWORD']}@postgres/airflow"
    expected = services.environment(
        Path(STATE), services.USUAL_PORTS, secrets, files, True, {"CXR_AIRFLOW_DB": database}
    )
    for only_there in [n for n in expected if n.startswith("LOCAL_")] + ["PATH", "PYTHONPATH", "CXR_AIRFLOW_DB"]:
        del expected[only_there]
    store_only = {"GOMEMLIMIT": expected.pop("GOMEMLIMIT")}
    assert store_only.items() <= compose["store"]["environment"].items()
    expected = {n: v.replace(str(REPOSITORY), CODE) for n, v in expected.items()} | {
        "CXR_STORE__ENDPOINT_URL": "http://store:8333",
        "CXR_MAIL__SMTP_HOST": "smtp",
        "CXR_PROFILE": "demo",
        "NO_PROXY": "127.0.0.1,localhost,api-server,store,smtp",
        "no_proxy": "127.0.0.1,localhost,api-server,store,smtp",
        "AIRFLOW__API__HOST": "0.0.0.0",
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": "http://api-server:8080/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": f"{STATE}/ui/passwords.json",
        "AIRFLOW__CELERY__BROKER_URL": f"redis://:{values['CXR_BROKER_PASSWORD']}@broker:6379/0",
        "AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT": "86400",
        "KERAS_HOME": f"{STATE}/cache/keras",
    }
    if name == "init":
        expected["UI_PASSWORD"] = secrets["ui_password"]
    assert image_environment("Dockerfile") | compose[name]["environment"] == expected


def test_the_store_asks_for_the_keys_that_the_library_has(compose):
    keys = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    for key in keys:  # without both, SeaweedFS lets anyone in
        assert compose["store"]["environment"][key] == compose["worker"]["environment"][key] != ""


def test_every_cxr_variable_of_a_container_is_a_setting(compose):
    for name in AIRFLOW:
        ours = {n.removeprefix("CXR_").lower() for n in compose[name]["environment"] if n.startswith("CXR_")}
        assert {n.replace("__", ".") for n in ours} - set(settings.names()) == {"profile"}
        assert len(ours) >= 7


def test_without_a_profile_the_settings_keep_their_defaults(raw):
    bare = resolved(raw, sample() | {"CXR_PROFILE": ""})["services"]
    assert bare["worker"]["environment"]["CXR_PROFILE"] == ""


@pytest.mark.slow
def test_every_airflow_variable_is_an_option_and_every_airflow_command_exists(probe, compose):
    assert probe["options"] > 20
    assert probe["unknown_options"] == []
    assert probe["refused"] == []
    checked = {m[1] for s in compose.values() if (m := re.search(r"--job-type (\w+)", check_of(s)))}
    assert checked == set(probe["job_types"])


@pytest.mark.slow
def test_the_dags_load_from_the_files_of_the_image(probe, image):
    root, _ = image
    assert probe["import_errors"] == {}
    assert "cxr_retraining" in probe["dags"]
    assert probe["library"] == str(root / "code/cxr_ml/__init__.py")
    assert probe["expectations"] == ["classes.json", "dataset.json", "images.json"]
    demo = tomllib.loads((REPOSITORY / "profiles/demo.toml").read_text())
    assert probe["architectures"] == demo["training"]["architectures"]


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_each_queue_of_the_dags_has_one_worker_and_training_is_alone_in_its_own(profile, probe, compose):
    served = []
    for name, service in compose.items():
        words = shlex.split(service.get("command", ""))
        if words[:3] == ["airflow", "celery", "worker"] and profile in service.get("profiles", [profile]):
            served.append((words[words.index("--queues") + 1], name, words[words.index("--concurrency") + 1]))
    assert sorted(served) == [("default", "worker", "4"), ("gpu", f"worker-{profile}", "1")]
    assert probe["queues"] == ["default", "gpu"]


def test_the_broker_waits_longer_for_a_task_than_the_longest_may_take(probe, compose):
    name = "AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT"
    assert int(compose["worker"]["environment"][name]) > probe["longest"] > 3600


def docker_compose() -> list[str]:
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            answer = subprocess.run([*command, "version", "--short"], capture_output=True, text=True)
            if answer.returncode == 0 and int(answer.stdout.strip().lstrip("v").split(".")[0]) >= 2:
                return command
    return pytest.skip("no Docker Compose 2 here")


def test_no_key_of_a_service_is_misspelt(compose):
    # Compose refuses unknown keys, but is seldom where tests run.
    known = {
        "build", "cap_drop", "command", "depends_on", "deploy", "environment", "healthcheck", "image", "init", "ports",
        "profiles", "restart", "security_opt", "stop_grace_period", "user", "volumes",
    }  # fmt: skip
    for service in compose.values():
        assert set(service) <= known
        assert set(service.get("healthcheck", {})) <= {"test", "interval", "timeout", "start_period", "retries"}


def test_docker_compose_resolves_the_file_as_these_tests_do(compose, tmp_path):
    env = tmp_path / "env"
    env.write_text("".join(f"{name}={value}\n" for name, value in sample().items()))
    command = [*docker_compose(), "--env-file", env, "-f", DOCKER / "compose.yaml", "--profile", "*"]
    result = subprocess.run([*command, "config", "--format", "json"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    theirs = json.loads(result.stdout)["services"]
    assert set(theirs) == set(compose)
    for name, service in compose.items():
        assert theirs[name].get("environment", {}) == service.get("environment", {})
        assert theirs[name]["command"] == (shlex.split(service["command"]) if "command" in service else None)
        assert theirs[name].get("healthcheck", {}).get("test", ["CMD-SHELL", ""])[1].replace("$$", "$") == check_of(
            service
        )


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("a${SET}b", "avb"),
        ("${SET:-x}${GONE:-x}", "vx"),
        ("${SET:+/p/${SET}.toml}${GONE:+x}", "/p/v.toml"),
        ("${SET:?}$$(hostname)", "v$$(hostname)"),
    ],
)
def test_variables_are_put_in_by_the_rules_of_compose(text, becomes):
    assert put_in(text, {"SET": "v"}) == becomes


def test_a_stray_dollar_is_found():
    with pytest.raises(AssertionError, match="single"):
        put_in("echo $HOME", {})
