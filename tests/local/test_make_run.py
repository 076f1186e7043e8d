"""`make run` as a whole: one real Airflow, one real store, runs through the REST API, and Ctrl-C. Tests go in order."""

import json
import mailbox
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import httpx
import numpy as np
import psutil
import pytest
from botocore.config import Config
from botocore.session import Session

from cxr_ml import store
from cxr_ml.release import registry
from cxr_ml.settings import Settings
from local import airflow_api
from local.outcome import mails
from local.state import REPOSITORY

pytestmark = pytest.mark.airflow

STEPS = {
    "data.find_drops", "data.ingest", "data.validate", "data.build_dataset", "learn.train", "learn.evaluate",
    "decide.gate", "decide.ask", "decide.approval", "promote", "announce", "report",
}  # fmt: skip
# One epoch at a rate near zero: the first champion is poor, so that a few real epochs beat it.
CONFIG = """
architectures = ["light"]
weights = "none"
image_size = 32
batch_size = 8
dropout = 0.0
head_epochs = 1
head_learning_rate = 1e-6
fine_tune_epochs = 0
min_test_support = 5
macro_f1_floor = 0.0
margins = {}
lungs_hidden_limit = 1.0
recall_floors = {NORMAL = 0.0, COVID19 = 0.0, PNEUMONIA = 0.0}
f1_floors = {COVID19 = 0.0, PNEUMONIA = 0.0}
mail_allowed = ["team@hospital.example"]
mail_to = ["team@hospital.example"]
"""
_UNFINISHED = ("queued", "running")
BETTER = {"train_anyway": True, "approval": True, "seed": 1, "head_epochs": 8, "head_learning_rate": 3e-3}


def write_easy_drop(folder: Path, images_per_class: int = 40) -> None:
    """Clouds whose brightness tells the class: learnt in seconds."""
    rng = np.random.default_rng(3)
    for split, share in (("train", 0.7), ("test", 0.3)):
        for level, label in enumerate(("NORMAL", "COVID19", "PNEUMONIA")):
            (folder / split / label).mkdir(parents=True)
            for number in range(round(images_per_class * share)):
                clouds = 25 * cv2.resize(rng.standard_normal((9, 9)), (256, 256), interpolation=cv2.INTER_CUBIC)
                image = 70 + 45 * level + clouds + 6 * rng.standard_normal((256, 256))
                cv2.imwrite(str(folder / split / label / f"{number:03}.png"), np.clip(image, 0, 240).astype(np.uint8))
    (folder / "train" / "NORMAL" / "not-an-image.png").write_bytes(b"<html>404</html>")


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
    config.write_text(f'expectations = "{expectations}"\n{CONFIG}')
    return config


class MakeRun:
    """A `make run` in a process of its own, and what it printed so far."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        write_easy_drop(folder / "2026-01-05")
        variables = {
            "CXR_LOCAL": str(self.state),
            "CXR_CONFIG": str(write_config(folder)),
            "DROP": str(folder / "2026-01-05"),
        }
        inherited = {n: v for n, v in os.environ.items() if not n.startswith(("CXR_", "AIRFLOW")) and n != "ONCE"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "local.run"],
            cwd=REPOSITORY,
            env=inherited | variables,
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
        self.ports = json.loads((self.state / "ports.json").read_text())
        self.client = airflow_api.connect(f"http://127.0.0.1:{self.ports['ui']}", secrets["ui_password"])
        self.settings = Settings(s3_endpoint_url=f"http://127.0.0.1:{self.ports['s3']}")
        self.s3 = Session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.settings.s3_endpoint_url,
            aws_access_key_id=secrets["s3_access_key"],
            aws_secret_access_key=secrets["s3_secret_key"],
            config=Config(proxies={}),
        )

    def trigger(self, **form: object) -> str:
        return airflow_api.trigger(self.client, form)

    def wait(self, run_id: str, seconds: float = 300) -> str:
        end = time.monotonic() + seconds
        while (state := airflow_api.run_state(self.client, run_id, time.sleep)) not in ("success", "failed"):
            assert time.monotonic() < end, self.tasks(run_id)
            time.sleep(0.5)
        return state

    def tasks(self, run_id: str) -> dict[str, tuple[str, int]]:
        """Task -> its state, and how often it was tried."""
        found = airflow_api.task_instances(self.client, run_id, time.sleep)
        return {task["task_id"]: (task["state"], task["try_number"]) for task in found}

    def answer(self, run_id: str, option: str) -> dict:
        """Answers the question of the run as a human does; the question."""
        path = f"dags/{airflow_api.DAG}/dagRuns/{run_id}/taskInstances/decide.approval/-1/hitlDetails"
        end = time.monotonic() + 300
        while self.tasks(run_id)["decide.approval"][0] != "success":
            assert time.monotonic() < end, self.tasks(run_id)
            # To an answer within a fraction of a second of the question, which no human gives, Airflow 3.3 answers by
            # asking again: its scheduler has not yet seen that the step waits.
            time.sleep(3)
            if self.tasks(run_id)["decide.approval"][0] == "awaiting_input":
                question = airflow_api.get(self.client, path)
                body = {"chosen_options": [option], "params_input": {}}
                self.client.patch(f"/api/v2/{path}", json=body).raise_for_status()
        return question

    def champions(self) -> list[dict]:
        """What the events of the asset say that other DAGs follow, oldest first."""
        events = airflow_api.get(self.client, "assets/events", order_by="timestamp")["asset_events"]
        return [event["extra"] for event in events if event["name"] == "cxr_champion"]

    def roll_back(self, **form: object) -> str:
        """Triggers the DAG of the rollback, and waits for its end; its state."""
        path = "/api/v2/dags/cxr_rollback/dagRuns"
        body = {"logical_date": None, "conf": form}
        run_id = self.client.post(path, json=body).raise_for_status().json()["dag_run_id"]
        end = time.monotonic() + 300
        while (state := airflow_api.get(self.client, f"dags/cxr_rollback/dagRuns/{run_id}")["state"]) in _UNFINISHED:
            assert time.monotonic() < end
            time.sleep(0.5)
        return state

    def mails(self) -> dict[str, str]:
        return mails(self.state / "maildir")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    run = MakeRun(tmp_path_factory.mktemp("make-run"))
    try:
        run.wait_for("Everything stays up", 480)
        run.connect()
        yield run
    finally:
        while run.process.poll() is None:
            run.process.send_signal(signal.SIGTERM)
            time.sleep(1)
        run.process.wait()


@pytest.fixture(autouse=True)
def own_store(made, monkeypatch):
    monkeypatch.setattr(store, "_given", [made.s3])


def test_the_first_run_takes_the_drop_to_a_champion_and_reports_it(made):
    run_id = re.search(r"/runs/(manual__\S+)", made.output)[1]
    tasks = made.tasks(run_id)
    assert set(tasks) == STEPS
    assert {name for name, (state, _) in tasks.items() if state != "success"} == {"decide.approval"}
    assert tasks["decide.approval"][0] == "skipped"
    champion = registry.champion(made.settings)
    (entry,) = registry.history(made.settings)
    assert (champion.version, champion.model) == (1, entry.model)
    assert (entry.action, entry.by) == ("promoted", "admin")
    assert made.champions() == [{"model": champion.model, "version": 1}]

    assert "PROMOTED: " in made.output
    assert "1 × not_an_image" in made.output
    report = Path(re.search(r"^Report +(\S+)$", made.output, re.M)[1])
    assert report.is_relative_to(made.state)
    assert champion.model in report.read_text()
    (subject,) = made.mails().values()
    assert subject.startswith("[cxr] PROMOTED light v1")


def test_no_weekly_run_was_made_behind_the_scenes(made):
    # It would have taken the drop before the run by hand.
    runs = airflow_api.get(made.client, f"dags/{airflow_api.DAG}/dagRuns")["dag_runs"]
    assert [run["run_type"] for run in runs] == ["manual"]
    dag = airflow_api.get(made.client, f"dags/{airflow_api.DAG}")
    assert dag["is_paused"] is False
    assert not airflow_api.overdue(made.client)
    assert dag["next_dagrun_run_after"].endswith("T03:00:00Z")


def test_nothing_new_ends_early_with_every_step_skipped_and_no_mail(made):
    before = made.mails()
    run_id = made.trigger()
    assert made.wait(run_id) == "success"
    tasks = made.tasks(run_id)
    assert set(tasks) == STEPS
    assert {state for state, _ in tasks.values()} == {"skipped"}
    assert made.mails() == before


def test_the_form_refuses_a_bad_value_before_anything_runs(made):
    for form in ({"recall_floor_COVID19": 2}, {"architectures": ["resnet9000"]}, {"recipients": ["x@else.example"]}):
        with pytest.raises(httpx.HTTPStatusError) as caught:
            made.trigger(**form)
        assert caught.value.response.status_code == 400
        assert next(iter(form)) in caught.value.response.text
    assert not airflow_api.active_runs(made.client)


def test_a_drop_that_does_not_exist_fails_at_once_with_one_mail_that_says_why(made):
    before = made.mails()
    run_id = made.trigger(drop="../../etc")
    assert made.wait(run_id) == "failed"
    tasks = made.tasks(run_id)
    assert tasks.pop("data.find_drops") == ("failed", 1)
    assert {state for state, _ in tasks.values()} == {"upstream_failed"}
    end = time.monotonic() + 60
    while made.mails() == before and time.monotonic() < end:
        time.sleep(0.5)
    time.sleep(5)  # a second mail, of the DAG's own callback, would come now
    ((name, subject),) = made.mails().items() - before.items()
    assert subject.startswith("[cxr] FAILED at data.find_drops: The inbox")
    mail = mailbox.Maildir(made.state / "maildir", create=False)[name]
    text = " ".join(mail.get_payload()[0].get_payload(decode=True).decode().split())
    assert "no drop of that name. Received: '../../etc'. There: ['2026-01-05']" in text
    assert "Trying again without changing it cannot help" in text


def test_a_human_who_says_no_keeps_the_champion(made):
    champion = registry.champion(made.settings)
    before = made.mails()
    run_id = made.trigger(**BETTER)
    question = made.answer(run_id, "Reject")
    assert question["options"] == ["Approve", "Reject"]
    assert question["defaults"] == ["Reject"]
    assert re.search(r"\| macro F1 against champion \| [\d.]+ \|  \| \\> 0\.\d+ \| yes \|", question["body"])
    assert made.wait(run_id) == "success"
    tasks = made.tasks(run_id)
    assert tasks.pop("data.ingest")[0] == "skipped"  # nothing new, trained anyway
    assert tasks.pop("announce")[0] == "skipped"  # the champion stays
    assert {state for state, _ in tasks.values()} == {"success"}
    entry = registry.history(made.settings)[-1]
    assert (entry.action, entry.by, entry.why) == ("refused", "admin", "Not approved by admin.")
    assert entry.decision.promote
    assert entry.decision.overrides == {"seed": "1", "head_epochs": "8", "head_learning_rate": "0.003"}
    assert registry.champion(made.settings) == champion
    assert len(made.champions()) == 1
    ((_, subject),) = made.mails().items() - before.items()
    assert subject.startswith("[cxr] REFUSED light")


def test_a_human_who_says_yes_makes_it_champion(made):
    run_id = made.trigger(**BETTER)
    made.answer(run_id, "Approve")
    assert made.wait(run_id) == "success"
    entry = registry.history(made.settings)[-1]
    assert (entry.action, entry.by, entry.version) == ("promoted", "admin, approved by admin", 2)
    assert registry.champion(made.settings).model == entry.model
    assert made.champions()[1:] == [{"model": entry.model, "version": 2}]


def test_a_rollback_by_hand_needs_a_reason_and_is_told_to_history_team_and_other_dags(made):
    before, (first, _) = made.mails(), made.champions()
    for form in ({}, {"why": " "}, {"to": first["model"]}):
        with pytest.raises(httpx.HTTPStatusError) as caught:
            made.roll_back(**form)
        assert caught.value.response.status_code == 400
    assert made.roll_back(why="Misses too much.") == "success"
    entry = registry.history(made.settings)[-1]
    assert (entry.action, entry.model, entry.version) == ("rolled_back", first["model"], 3)
    assert (entry.by, entry.why) == ("admin", "Misses too much.")
    assert registry.champion(made.settings).model == first["model"]
    assert made.champions()[2:] == [{"model": first["model"], "version": 3}]
    ((_, subject),) = made.mails().items() - before.items()
    assert subject.startswith("[cxr] ROLLED BACK to light") and subject.endswith("v3: Misses too much.")


def checkpoints(made: MakeRun, known: set[str]) -> dict[str, int]:
    """Model -> the last epoch of its head that the store has, of the models that were not known before."""
    found = {}
    for key in store.keys(made.settings, "models/"):
        if (match := re.match(r"models/(.+)/checkpoints/head-(\d+)-", key)) and match[1] not in known:
            found[match[1]] = int(match[2])
    return found


def running_training(made: MakeRun, run_id: str, try_number: int) -> psutil.Process:
    """The process that trains, once it does so for the `try_number`-th time and has begun."""
    end = time.monotonic() + 180
    while True:
        found = [
            t for t in airflow_api.task_instances(made.client, run_id, time.sleep) if t["task_id"] == "learn.train"
        ]
        assert time.monotonic() < end, made.tasks(run_id)
        if [(t["state"], t["try_number"]) for t in found] == [("running", try_number)]:
            title = f"airflow worker -- {found[0]['id']}"
            for process in psutil.process_iter(["cmdline"]):
                if " ".join(process.info["cmdline"] or ()).strip() == title:
                    return process
        time.sleep(0.5)


def wait_until(true: Callable[[], bool], seconds: float, what: str) -> float:
    """Seconds until it is true."""
    start = time.monotonic()
    while not true():
        assert time.monotonic() - start < seconds, what
        time.sleep(0.2)
    return time.monotonic() - start


def test_a_training_that_is_killed_is_retried_and_goes_on_and_one_that_is_cancelled_stops(made):
    known = {key.split("/")[1] for key in store.keys(made.settings, "models/")}
    run_id = made.trigger(train_anyway=True, seed=2, head_epochs=1000, patience=1000)
    first = running_training(made, run_id, 1)
    wait_until(lambda: max(checkpoints(made, known).values(), default=0) >= 3, 120, "no third epoch")
    first.kill()
    second = running_training(made, run_id, 2)
    assert second.pid != first.pid
    ((model, died_after),) = checkpoints(made, known).items()
    wait_until(lambda: checkpoints(made, known)[model] > died_after, 120, "it does not go on")
    (task,) = [t for t in airflow_api.task_instances(made.client, run_id, time.sleep) if t["task_id"] == "learn.train"]
    path = f"dags/{airflow_api.DAG}/dagRuns/{run_id}/taskInstances/learn.train/logs/{task['try_number']}"
    log = str(airflow_api.get(made.client, path, map_index=task["map_index"])["content"])
    assert int(re.search(r"head: (\d+) epochs were stored before; going on from there", log)[1]) >= 3
    assert "head: epoch 1 of 1000" not in log

    airflow_api.fail_run(made.client, run_id, "cancelled")
    seconds = wait_until(lambda: not second.is_running(), 30, "the cancelled training still runs")
    print(f"cancelled: the process was gone, and with it its memory, after {seconds:.1f} s")
    assert made.tasks(run_id)["learn.train"][0] in ("failed", "skipped")


def left_over(state: Path) -> list[str]:
    """Processes that have the state folder on their command line or in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            texts = [*process.cmdline(), *process.environ().values()]
        except psutil.Error:
            continue
        if process.pid != os.getpid() and any(str(state) in text for text in texts):
            found.append(f"{process.pid} {process.cmdline()}")
    return found


def test_ctrl_c_twice_ends_everything_at_once_with_the_status_of_the_run(made):
    assert left_over(made.state)
    made.process.send_signal(signal.SIGINT)
    made.wait_for("Ending all services", 30)
    made.process.send_signal(signal.SIGINT)
    assert made.process.wait(timeout=30) == 0
    assert left_over(made.state) == []
    for name, port in made.ports.items():
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0, name
