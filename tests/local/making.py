"""A `make run` of small limits for tests: one real Airflow, one real store."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
from botocore.config import Config
from botocore.session import Session

from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore
from local import airflow_api
from local.state import REPOSITORY
from local.summary import read_subjects

# One epoch at a rate near zero: the first champion is poor, so that a few real epochs beat it.
CONFIG = """
training.architectures = ["light"]
training.weights = "none"
training.image_size = 32
training.batch_size = 8
training.dropout = 0.0
training.head_epochs = 1
training.head_learning_rate = 1e-6
training.fine_tune_epochs = 0
gate.min_test_support = 5
gate.macro_f1_floor = 0.0
gate.margins = {}
gate.corruption_limit = 1.0
gate.lungs_hidden_limit = 1.0
gate.recall_floors = {NORMAL = 0.0, COVID19 = 0.0, PNEUMONIA = 0.0}
gate.f1_floors = {COVID19 = 0.0, PNEUMONIA = 0.0}
mail.allowed = ["team@hospital.example"]
mail.recipients = ["team@hospital.example"]
"""
_UNFINISHED = ("queued", "running")
LONG = 1200.0  # seconds that no wait takes, not even on a machine that is many times slower


def clouds_of(rng: np.random.Generator, level: float) -> np.ndarray:
    clouds = 25 * cv2.resize(rng.standard_normal((9, 9)), (256, 256), interpolation=cv2.INTER_CUBIC)
    return np.clip(level + clouds + 6 * rng.standard_normal((256, 256)), 0, 240).astype(np.uint8)


def write_easy_drop(folder: Path, images_per_class: int = 40) -> None:
    """Clouds whose brightness tells the class: learnt in seconds."""
    rng = np.random.default_rng(3)
    for split, share in (("train", 0.7), ("test", 0.3)):
        for level, label in enumerate(("NORMAL", "COVID19", "PNEUMONIA")):
            (folder / split / label).mkdir(parents=True)
            for number in range(round(images_per_class * share)):
                cv2.imwrite(str(folder / split / label / f"{number:03}.png"), clouds_of(rng, 70 + 45 * level))
    (folder / "train" / "NORMAL" / "not-an-image.png").write_bytes(b"<html>404</html>")
    cv2.imwrite(str(folder / "train" / "NORMAL" / "small.png"), clouds_of(rng, 70)[:90, :90])


def write_config(folder: Path) -> Path:
    """Small limits and floors that any model meets."""
    expectations = folder / "expectations"
    shutil.copytree(REPOSITORY / "expectations", expectations)
    suite = json.loads((expectations / "dataset.json").read_text())
    for expectation in suite["expectations"]:
        if "min_value" in expectation["kwargs"]:
            expectation["kwargs"]["min_value"] = 1
    (expectations / "dataset.json").write_text(json.dumps(suite))
    config = folder / "small.toml"
    config.write_text(f'validation.expectations = "{expectations}"\n{CONFIG}')
    return config


class MakeRun:
    """A `make run` in a process of its own, and what it printed so far."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        write_easy_drop(folder / "2026-01-05")
        self.config = write_config(folder)
        self.variables = {
            "CXR_LOCAL": str(self.state),
            "CXR_CONFIG": str(self.config),
            "DROP": str(folder / "2026-01-05"),
        }
        self.start()

    def start(self) -> None:
        """Starts it, also a second time when it has ended."""
        inherited = {n: v for n, v in os.environ.items() if not n.startswith(("CXR_", "AIRFLOW")) and n != "ONCE"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "local.run"],
            cwd=REPOSITORY,
            env=inherited | self.variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # A shell starts background jobs, and so this process and its children, with Ctrl-C ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.output = ""
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.output += line

    def wait_for(self, text: str, seconds: float) -> None:
        end = time.monotonic() + seconds
        while text not in self.output:
            assert self.process.poll() is None, f"make run ended early:\n{self.output}"
            assert time.monotonic() < end, f"no {text!r} after {seconds} s:\n{self.output}"
            time.sleep(0.2)

    def connect(self) -> None:
        """For the tests: Airflow's API, the settings of the store, and a client of the store."""
        secrets = json.loads((self.state / "secrets.json").read_text())
        self.password = secrets["ui_password"]
        self.ports = json.loads((self.state / "ports.json").read_text())
        self.address = f"http://127.0.0.1:{self.ports['ui']}"
        self.client = airflow_api.connect(self.address, self.password)
        self.settings = Settings(store={"endpoint_url": f"http://127.0.0.1:{self.ports['s3']}"})
        self.s3 = Session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.settings.store.endpoint_url,
            aws_access_key_id=secrets["s3_access_key"],
            aws_secret_access_key=secrets["s3_secret_key"],
            config=Config(proxies={}),
        )
        hook = SimpleNamespace(get_conn=lambda: self.s3, get_credentials=lambda: None)
        self.store = ObjectStore(self.settings.store, hook)

    def trigger(self, **form: object) -> str:
        return airflow_api.trigger_run(self.client, form)

    def wait(self, run_id: str, seconds: float = LONG) -> str:
        end = time.monotonic() + seconds
        while (state := airflow_api.get_run_state(self.client, run_id, time.sleep)) in _UNFINISHED:
            assert time.monotonic() < end, self.tasks(run_id)
            time.sleep(0.5)
        return state

    def tasks(self, run_id: str) -> dict[str, tuple[str, int]]:
        """Task -> its state, and how often it was tried."""
        found = airflow_api.list_task_instances(self.client, run_id, time.sleep)
        return {task["task_id"]: (task["state"], task["try_number"]) for task in found}

    def question(self, run_id: str) -> dict:
        """The question that the run asks a human, once it does."""
        end = time.monotonic() + LONG
        while self.tasks(run_id)["decide.approval"][0] != "awaiting_input":
            assert time.monotonic() < end, self.tasks(run_id)
            time.sleep(0.5)
        # To an answer before its scheduler has seen that the step waits, which no human gives, Airflow 3.3 answers by
        # asking again.
        seen = (
            f"state success for task instance TaskInstanceKey(dag_id='{airflow_api.DAG}', task_id='decide.approval', "
        )
        while f"{seen}run_id='{run_id}'" not in (self.state / "logs" / "scheduler.log").read_text():
            assert time.monotonic() < end, "the scheduler has not seen that the step waits"
            time.sleep(0.5)
        return airflow_api.get(self.client, self._question(run_id))

    def answer(self, run_id: str, option: str) -> dict:
        """Answers the question of the run as a human does; the question."""
        question = self.question(run_id)
        body = {"chosen_options": [option], "params_input": {}}
        self.client.patch(f"/api/v2/{self._question(run_id)}", json=body).raise_for_status()
        return question

    def _question(self, run_id: str) -> str:
        return f"dags/{airflow_api.DAG}/dagRuns/{run_id}/taskInstances/decide.approval/-1/hitlDetails"

    def champions(self) -> list[dict]:
        """What the events of the asset say that other DAGs follow, oldest first."""
        events = airflow_api.get(self.client, "assets/events", order_by="timestamp")["asset_events"]
        return [event["extra"] for event in events if event["name"] == "cxr_champion"]

    def roll_back(self, **form: object) -> str:
        """Triggers the DAG of the rollback, and waits for its end; its state."""
        path = "/api/v2/dags/cxr_rollback/dagRuns"
        body = {"logical_date": None, "conf": form}
        run_id = self.client.post(path, json=body).raise_for_status().json()["dag_run_id"]
        end = time.monotonic() + LONG
        while (state := airflow_api.get(self.client, f"dags/cxr_rollback/dagRuns/{run_id}")["state"]) in _UNFINISHED:
            assert time.monotonic() < end
            time.sleep(0.5)
        return state

    def mails(self) -> dict[str, str]:
        return read_subjects(self.state / "maildir")
