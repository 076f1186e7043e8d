"""Models in a real MLflow server with SQLite: runs, curves, figures, and the alias that follows the champion.

MLflow's server cannot be installed beside pandas 3: uv gives it an environment of its own, and puts the client into a
folder beside that of the tests.
"""

import os
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import httpx
import pytest
import report_samples as samples
import store_samples as stored

from cxr_ml.errors import Refused
from cxr_ml.registry import mlflow_sync, promotion

pytestmark = pytest.mark.slow

VERSION = "3.17.2"
UV = str(Path(sysconfig.get_path("scripts")) / "uv")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of a running MLflow."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    command = [UV, "tool", "run", "-q", "--from", f"mlflow=={VERSION}", "mlflow", "server", "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder)]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
        address, end = f"http://127.0.0.1:{port}", time.monotonic() + 900
        try:
            while True:
                try:
                    if httpx.get(f"{address}/health", trust_env=False).is_success:
                        break
                except httpx.TransportError:
                    assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()
                time.sleep(0.2)
            yield address
        finally:
            os.killpg(process.pid, 15)
            process.wait()


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """MLflow's client, for as long as the tests here run; of packages that the tests have too, theirs are taken."""
    folder = str(tmp_path_factory.mktemp("mlflow-client"))
    subprocess.run([UV, "pip", "install", "-q", "--target", folder, f"mlflow-skinny=={VERSION}"], check=True)
    sys.path.append(folder)
    yield
    sys.path.remove(folder)
    for name in [n for n in sys.modules if n.split(".")[0] == "mlflow"]:
        del sys.modules[name]


def ask(address, path, **values):
    answer = httpx.request(
        "POST" if path.endswith("search") else "GET", f"{address}/api/2.0/mlflow/{path}", trust_env=False,
        **({"json": values} if path.endswith("search") else {"params": values}),
    )  # fmt: skip
    return answer.raise_for_status().json()


def test_models_are_mirrored_once_and_the_alias_follows_a_rollback(
    store, settings, server, client, monkeypatch, caplog
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    data = stored.put_dataset(settings)
    stored.put_model(settings, "first", data, samples.GOOD)
    stored.run(settings, "run-1", ["first"])
    beside = stored.evaluate("first", data, samples.GOOD)
    stored.put_model(settings, "second", data, stored.BEST, beside)
    stored.put_model(settings, "other", data, samples.GOOD, beside)
    stored.run(settings, "run-2", ["second", "other"])
    for _ in range(2):
        mlflow_sync.mirror(store, ["second", "other"])
    assert caplog.text == ""

    experiment = ask(server, "experiments/get-by-name", experiment_name="cxr")["experiment"]["experiment_id"]
    runs = {r["info"]["run_name"]: r for r in ask(server, "runs/search", experiment_ids=[experiment])["runs"]}
    assert set(runs) == {"second", "other"}
    tags = {t["key"]: t["value"] for t in runs["other"]["data"]["tags"]}
    assert tags["cxr.outcome"] == "not_chosen" and runs["second"]["info"]["status"] == "FINISHED"
    params = {p["key"]: p["value"] for p in runs["second"]["data"]["params"]}
    assert params["architecture"] == "inception_v3" and params["batch_size"] == "128"
    figures = {m["key"]: m["value"] for m in runs["second"]["data"]["metrics"]}
    assert figures["test/recall COVID19"] == pytest.approx(89 / 90)
    assert figures["test/macro F1 shrunk"] == pytest.approx(samples.metrics(stored.BEST).macro_f1)
    run = runs["second"]["info"]["run_id"]
    curve = ask(server, "metrics/get-history", run_id=run, metric_key="val_loss")["metrics"]
    history = samples.history()
    assert [(m["step"], m["value"]) for m in sorted(curve, key=lambda m: m["step"])] == [
        (epoch, pytest.approx(loss)) for epoch, loss in zip(history["epoch"], history["val_loss"], strict=True)
    ]

    version = ask(server, "registered-models/alias", name="cxr", alias="champion")["model_version"]
    assert (version["run_id"], version["version"]) == (run, "1")
    assert version["source"] == f"s3://{settings.store.bucket}/models/second/model.keras"

    promotion.rollback(store, None, "ann", "Misses too much.")
    mlflow_sync.mirror(store)
    assert caplog.text == ""
    version = ask(server, "registered-models/alias", name="cxr", alias="champion")["model_version"]
    assert version["version"] == "2" and version["source"].endswith("models/first/model.keras")
    assert {t["key"]: t["value"] for t in version["tags"]} == {"cxr.version": "3"}


def test_a_server_that_is_down_is_a_warning_and_not_an_error(store, settings, client, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    data = stored.put_dataset(settings)
    stored.run(settings, "run-1", [stored.put_model(settings, "first", data)])
    mlflow_sync.mirror(store, ["first"])
    assert "MLflow does not mirror this" in caplog.text
    assert promotion.champion(store).model == "first"


def test_mlflow_is_needed_only_with_the_variable_and_the_error_says_what_to_install(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as where it is not installed
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow_sync.mirror(store, ["first"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(Refused, match=r"pip install 'mlflow-skinny>=3'"):
        mlflow_sync.mirror(store, ["first"])
