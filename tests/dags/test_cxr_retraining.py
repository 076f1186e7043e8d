"""The DAG as Airflow's dag-processor reads it, in a process of its own: Airflow keeps global state."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pandas as pd
import pytest
from airflow.sdk import Param
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, ParamValidationError
from dag_reading import HEAVY, read_dag
from jinja2 import Template

from cxr_ml import pipeline
from cxr_ml.ingest import ingest_drop, tables
from cxr_ml.records import Batch, Dataset, Decision, HistoryEntry, Ruling, Run
from cxr_ml.reporting import publish
from cxr_ml.store import ObjectStore

EDGES = {
    "data.find_drops": ["data.ingest", "data.validate"],
    "data.ingest": ["data.left_out", "data.validate"],
    "data.left_out": [],
    "data.validate": ["data.build_dataset", "report"],
    "data.build_dataset": ["learn.train"],
    "learn.train": ["learn.evaluate"],
    "learn.evaluate": ["decide.gate"],
    "decide.gate": ["decide.ask", "promote"],
    "decide.ask": ["decide.approval"],
    "decide.approval": ["promote"],
    "promote": ["announce", "report"],
    "announce": [],
    "report": ["mail"],
    "mail": [],
}
HOUR = 3600


@pytest.fixture(scope="module")
def reads(tmp_path_factory):
    """What is read with the settings' defaults, with a profile of one's own, and with one that cannot be used."""
    home, profile = tmp_path_factory.mktemp("airflow"), tmp_path_factory.mktemp("profile") / "own.toml"
    profile.write_text(
        'training.architectures = ["light"]\ntraining.seed = 9\nmail.recipients = []\nmail.allowed = ["a@b.example"]\n'
        "[gate]\napproval = true\n[gate.recall_floors]\nNORMAL = 0.5\nCOVID19 = 0.9\nPNEUMONIA = 0.9\n"
    )
    own = {"CXR_CONFIG": str(profile), "CXR_TRAINING__BATCH_SIZE": "7"}
    return read_dag("cxr_retraining", home, {}, own, {"CXR_TRAINING__BATCH_SIZE": "many"})


@pytest.fixture(scope="module")
def read(reads):
    return reads[0]


@pytest.fixture(scope="module")
def dag(read):
    assert read["errors"] == {}
    return read["dag"]


def field(dag: dict, name: str) -> Param:
    return Param.deserialize(dag["form"][name], Param.__version__)


def test_the_dag_is_read_without_errors_and_loads_nothing_heavy(read):
    assert read["errors"] == {}
    assert read["dags"] == ["cxr_retraining"]
    loaded = {name.partition(".")[0] for name in read["modules"]}
    assert {"airflow", "cxr_ml"} <= loaded
    assert not HEAVY & loaded


def test_it_runs_on_mondays_at_three_utc_one_at_a_time_and_catches_nothing_up(dag):
    assert (dag["timetable"], dag["cron"], dag["timezone"]) == ("CronTriggerTimetable", "0 3 * * 1", "UTC")
    assert dag["catchup"] is False
    assert dag["max_active_runs"] == 1


def test_switching_it_on_does_not_run_last_mondays_retraining(dag):
    # With a start date in the past, Airflow would make one run at once, and it would take the drop of a run by hand.
    assert dag["start_date"] is None
    assert 0 < dag["run_immediately"] <= HOUR / 6


def test_the_tasks_follow_the_story(dag):
    assert {name: task["downstream"] for name, task in dag["tasks"].items()} == EDGES
    assert {name for name, task in dag["tasks"].items() if task["mapped"]} == {"data.ingest", "learn.train"}


def test_a_skipped_question_to_a_human_does_not_skip_the_promotion(dag):
    rules = {name: task["rule"] for name, task in dag["tasks"].items() if task["rule"] != "all_success"}
    # validate: with the form's "train even if nothing is new", no drop is ingested.
    promote = "none_failed_min_one_success"
    assert rules == {"data.validate": "none_failed", "promote": promote, "mail": "all_done_setup_success"}


def test_a_mail_that_fails_is_red_in_a_run_that_stays_green(dag):
    assert {name for name, task in dag["tasks"].items() if task["harmless"]} == {"mail"}


def test_only_a_promotion_updates_the_asset_that_other_dags_follow(dag, announce):
    assert {name for name, task in dag["tasks"].items() if task["outlets"]} == {"announce"}
    assert dag["tasks"]["announce"]["outlets"] == ["cxr_champion"]
    assert announce(action="promoted", model="second", version=2) == {"model": "second", "version": 2}
    with pytest.raises(AirflowSkipException):  # a skipped task updates nothing
        announce(action="refused", model="second", version=None)


def test_what_needs_the_accelerator_waits_in_the_pool_and_the_queue_gpu(dag):
    gpu = {name for name, task in dag["tasks"].items() if (task["pool"], task["queue"]) == ("gpu", "gpu")}
    assert gpu == {"learn.train", "learn.evaluate"}
    assert all(task["pool"] == "default_pool" for name, task in dag["tasks"].items() if name not in gpu)


def test_every_task_ends_some_day_and_the_long_ones_may_be_long(dag):
    limits = {name: task["timeout"] for name, task in dag["tasks"].items()}
    assert all(limits.values())
    assert limits["data.find_drops"] <= HOUR / 6
    assert limits["data.ingest"] >= 6 * HOUR
    assert limits["learn.train"] >= 12 * HOUR


def test_a_human_has_three_days_and_silence_is_a_no(dag):
    approval = dag["tasks"]["decide.approval"]
    assert approval["response_timeout"] == 72 * HOUR
    assert approval["defaults"] == ["Reject"]


def test_every_failure_is_mailed_by_the_step_or_else_by_the_dag(dag):
    # But a mail that fails: nobody could be mailed about it.
    assert all(task["callbacks"] == ["mail_failure"] for name, task in dag["tasks"].items() if name != "mail")
    assert dag["callbacks"] == ["mail_silent_failures"]


def test_every_task_has_retries_and_a_policy_for_them(dag):
    for name, task in dag["tasks"].items():
        assert task["retries"] == (5 if name == "mail" else 2)
        assert task["policy"]["default"] == "fail"


def test_everything_in_the_ui_explains_itself(dag):
    texts = {name: task["doc"] for name, task in dag["tasks"].items()} | dag["groups"] | {"dag": dag["doc"]}
    assert {"data", "learn", "decide"} < set(texts)
    for name, text in texts.items():
        assert text, name
        assert text.strip().endswith("."), name
    assert len(set(texts.values())) == len(texts)


def test_the_form_starts_from_the_settings(dag):
    form = {name: entry["value"] for name, entry in dag["form"].items()}
    assert form == {
        "drop": None,
        "train_anyway": False,
        "architectures": ["inception_v3", "resnet101_v2"],
        "image_size": 256,
        "head_epochs": 30,
        "fine_tune_epochs": 30,
        "batch_size": 128,
        "head_learning_rate": 1e-3,
        "fine_tune_learning_rate": 1e-5,
        "patience": 5,
        "seed": 0,
        "warm_start": False,
        "recall_floor_COVID19": 0.95,
        "recall_floor_PNEUMONIA": 0.9,
        "recall_floor_NORMAL": 0.7,
        "f1_floor_COVID19": 0.85,
        "f1_floor_PNEUMONIA": 0.85,
        "macro_f1_floor": 0.85,
        "floors_on_lower_bound": [],
        "approval": False,
        "recipients": ["radiology-team@localhost"],
    }


def test_another_profile_changes_the_form(reads):
    found = reads[1]
    assert found["errors"] == {}
    form = {name: entry["value"] for name, entry in found["dag"]["form"].items()}
    assert (form["architectures"], form["seed"], form["batch_size"], form["approval"]) == (["light"], 9, 7, True)
    floors = ["recall_floor_NORMAL", "recall_floor_COVID19", "recall_floor_PNEUMONIA"]
    assert [name for name in form if name.startswith("recall")] == floors
    assert (form["recipients"], form["recall_floor_NORMAL"]) == ([], 0.5)
    assert found["dag"]["form"]["recipients"]["schema"]["items"]["enum"] == ["a@b.example"]


def test_settings_that_cannot_be_used_are_an_import_error_that_says_so(reads):
    (error,) = reads[2]["errors"].values()
    assert "batch_size" in error
    assert "Received: 'many'" in error


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("drop", "2026-01-05"),
        ("drop", None),
        ("architectures", ["mobilenet_v2", "light"]),
        ("image_size", 32),
        ("fine_tune_epochs", 0),
        ("head_learning_rate", 1),
        ("macro_f1_floor", 0),
        ("recall_floor_COVID19", 1.0),
        ("recipients", []),
    ],
)
def test_the_form_takes_what_makes_sense(dag, name, value):
    assert field(dag, name).resolve(value) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("drop", 5),
        ("drop", "x" * 256),
        ("train_anyway", "yes"),
        ("architectures", ["resnet9000"]),
        ("architectures", []),
        ("architectures", ["light", "light"]),
        ("architectures", "light"),
        ("image_size", 31),
        ("image_size", 1025),
        ("head_epochs", 0),
        ("head_epochs", 2.5),
        ("head_epochs", True),
        ("fine_tune_epochs", -1),
        ("batch_size", 0),
        ("batch_size", 4097),
        ("head_learning_rate", 0),
        ("fine_tune_learning_rate", 1.1),
        ("patience", 0),
        ("seed", -1),
        ("seed", 2**31),
        ("recall_floor_COVID19", 2),
        ("f1_floor_PNEUMONIA", -0.1),
        ("macro_f1_floor", "high"),
        ("approval", None),
        ("recipients", ["somebody@else.example"]),
        ("recipients", ["radiology-team@localhost", "radiology-team@localhost"]),
    ],
)
def test_the_form_refuses_what_does_not(dag, name, value):
    with pytest.raises(ParamValidationError):
        field(dag, name).resolve(value)


# What find_drops decides, on a real store


@pytest.fixture
def data_task(settings):
    """A task of the group `data`, and its function with the values of the form that differ from its defaults."""
    import cxr_retraining
    from cxr_airflow import form as form_module

    def get(name):
        task = cxr_retraining.cxr_retraining().get_task(f"data.{name}")
        form = {name: param.value for name, param in form_module.make_form().items()}
        return task, lambda changed, **given: task.python_callable(params=form | changed, **given)

    return get


@pytest.fixture
def announce():
    """What the event of the asset holds after the promotion's outcome was handed to the task."""
    import cxr_retraining
    from airflow.sdk.execution_time.context import OutletEventAccessors

    def call(**outcome):
        events = OutletEventAccessors()
        task = cxr_retraining.cxr_retraining().get_task("announce")
        task.python_callable(outcome=outcome, outlet_events=events)
        return events[task.outlets[0]].extra

    return call


class Ti:
    """A task instance of a run by hand, of which Airflow has timed one step."""

    dag_id, run_id = "cxr_retraining", "manual__1"
    told: ClassVar[list[dict]] = []

    @staticmethod
    def xcom_pull(task_ids):
        return None  # as of a step that was skipped

    @staticmethod
    def xcom_push(key, value):
        assert key == "progress"
        Ti.told.append(value)

    @staticmethod
    def get_task_breadcrumbs(dag_id, run_id):
        steps = (("data.ingest", 0, "success", 12.34), ("learn.train", 1, "skipped", 0.1), ("x", -1, "success", None))
        return [dict(zip(("task_id", "map_index", "state", "duration"), step, strict=True)) for step in steps]


@pytest.fixture
def context(monkeypatch):
    """What Airflow tells the tasks of a run by hand."""
    from cxr_airflow import context

    run = SimpleNamespace(triggering_user_name="ann", run_type="manual")
    monkeypatch.setenv("CXR_MAIL__UI_URL", "https://airflow.example")
    monkeypatch.setattr(context, "get_current_context", lambda: {"run_id": "manual__1", "ti": Ti(), "dag_run": run})


@pytest.fixture
def find_drops(data_task, context):
    """The task's function, with the values of the form that differ from its defaults."""
    function = data_task("find_drops")[1]
    return lambda **changed: function(changed)


def write_drop(settings, name, files=1):
    folder = Path(settings.inbox.path) / name / "NORMAL"
    folder.mkdir(parents=True)
    for n in range(files):
        (folder / f"{n}.png").write_bytes(b"x")


def write_dataset(settings, number):
    record = Dataset(dataset=number, parent=None, batches=("b",), counts={}, manifest_sha256="m")
    ObjectStore(settings.store).put_if_absent(f"datasets/{number}/dataset.json", record.to_bytes())


def conclude(settings, dataset, number):
    decision = Decision(
        run=f"r{number}", model="m", dataset=dataset, champion=None, candidates=("m",), promote=False,
        checks=(), reason="",
    )  # fmt: skip
    entry = HistoryEntry(
        number=number, action="refused", model="m", previous=None, version=None, by="a", why=".", at="2026-01-05",
        run=f"r{number}", decision=decision,
    )  # fmt: skip
    ObjectStore(settings.store).put_if_absent(f"registry/history/{number:05d}.json", entry.to_bytes())


def test_all_new_drops_are_taken_or_the_one_that_the_form_names(settings, find_drops):
    write_drop(settings, "2026-01-05")
    write_drop(settings, "2026-01-12 [red]")
    assert [job["drop"] for job in find_drops()] == ["2026-01-05", "2026-01-12 [red]"]
    assert [job["drop"] for job in find_drops(drop="2026-01-12 [red]")] == ["2026-01-12 [red]"]


def test_a_drop_is_ingested_in_shards_by_mapped_tasks_that_say_which_and_is_judged_once(
    settings, data_task, find_drops, monkeypatch
):
    monkeypatch.setenv("CXR_INBOX__SHARD_FILES", "2")
    write_drop(settings, "2026-01-05", files=5)
    jobs = find_drops()
    task, ingest = data_task("ingest")
    said = Template(task.partial_kwargs["map_index_template"])
    names = [said.render(task={"op_kwargs": job}) for job in json.loads(json.dumps(jobs))]
    assert names == ["2026-01-05 · 1 of 3", "2026-01-05 · 2 of 3", "2026-01-05 · 3 of 3"]
    assert task.partial_kwargs["max_active_tis_per_dagrun"] == 1
    for job, files in zip(jobs, (1, 2, 2), strict=True):
        Ti.told.clear()
        assert ingest({}, **job) == ""
        assert (Ti.told[-1]["unit"], Ti.told[-1]["done"], Ti.told[-1]["total"]) == ("files", files, files)
    assert data_task("validate")[1]({}, shards=jobs) == [jobs[0]["batch"]]
    with pytest.raises(AirflowSkipException):
        find_drops()


def test_a_drop_that_cannot_be_used_stops_no_other_and_ends_the_run_red_with_what_is_wrong(
    store, settings, data_task, find_drops, context, monkeypatch
):
    monkeypatch.setenv("CXR_INBOX__PATIENT_SALT", "")
    Path(settings.inbox.path, "a.zip").write_bytes(b"PK no archive")
    write_drop(settings, "b")
    for name, table in (("c", "filename,label\n0.png,NORMAL\n"), ("d", "filename,label,patient_id\n0.png,NORMAL,P7\n")):
        write_drop(settings, name)
        Path(settings.inbox.path, name, "labels.csv").write_text(
            table.replace("0.png", '"0"x.png') if name == "c" else table
        )
    jobs = json.loads(json.dumps(find_drops()))
    assert [job["drop"] for job in jobs] == ["a.zip", "b", "c", "d"]
    refusals = [data_task("ingest")[1]({}, **job) for job in jobs]
    assert refusals[1] == ""
    left_out = data_task("left_out")[0].python_callable
    with pytest.raises(AirflowFailException) as caught:
        left_out(refusals)
    lines = str(caught.value).splitlines()[1:]
    for line, words in zip(lines, ("a.zip: ", "c: labels.csv .* line 2", "d: .*CXR_INBOX__PATIENT_SALT"), strict=True):
        assert re.match(words, line)
    left_out(refusals[1:2])
    assert data_task("validate")[1]({}, shards=jobs) == [jobs[1]["batch"]]
    found = [ingest_drop.Shard(**job) for job in jobs]
    assert pipeline.list_left_out(store, found) == ["a.zip", "c", "d"]

    publish.publish_nothing_new(store, settings, "r", (), left_out=pipeline.list_left_out(store, found))
    assert "the drops a.zip, c, d." in store.get("reports/r/index.html").decode()


@pytest.mark.parametrize("data", [b"", b"PK no archive"])
def test_a_drop_that_the_form_names_and_that_cannot_be_used_stops_the_run(settings, data_task, find_drops, data):
    Path(settings.inbox.path, "a.zip").write_bytes(data)
    with pytest.raises(AirflowFailException, match=r"a\.zip"):
        find_drops(drop="a.zip")
    (job,) = find_drops()
    with pytest.raises(AirflowFailException, match=r"a\.zip"):
        data_task("ingest")[1]({"drop": "a.zip"}, **job)
    with pytest.raises(AirflowSkipException):  # and without any other, there is nothing to go on with
        data_task("validate")[1]({}, shards=[job])


def test_how_many_shards_are_ingested_at_once_is_a_setting(data_task, monkeypatch):
    monkeypatch.setenv("CXR_INBOX__INGEST_TASKS", "7")
    assert data_task("ingest")[0].partial_kwargs["max_active_tis_per_dagrun"] == 7


def test_drops_of_more_shards_than_airflow_maps_are_left_to_the_next_run(settings, find_drops, monkeypatch, capsys):
    from cxr_ml import pipeline

    monkeypatch.setattr(pipeline, "MAX_SHARDS", 4)
    monkeypatch.setenv("CXR_INBOX__SHARD_FILES", "1")
    for name, files in (("a", 3), ("b", 2), ("c", 1)):
        write_drop(settings, name, files)
    assert [job["drop"] for job in find_drops()] == ["a", "a", "a"]
    assert "The next run takes b, c." in capsys.readouterr().out


def test_a_suite_that_cannot_be_used_stops_the_run_before_anything_is_ingested(
    settings, find_drops, monkeypatch, tmp_path
):
    write_drop(settings, "2026-01-05")
    shutil.copytree(settings.validation.expectations, tmp_path / "expectations")
    (tmp_path / "expectations" / "classes.json").write_text('{"name": "classes",\n "expectations": [}')
    monkeypatch.setenv("CXR_VALIDATION__EXPECTATIONS", str(tmp_path / "expectations"))
    with pytest.raises(AirflowFailException, match=r"classes\.json, line 2, column 19"):
        find_drops()


@pytest.mark.parametrize("name", ["2026-01-19", "../2026-01-05", "2026-01-05/NORMAL", ".", "2026-01-05\n", "/etc"])
def test_a_name_that_is_no_drop_of_the_inbox_is_refused(settings, find_drops, name):
    write_drop(settings, "2026-01-05")
    with pytest.raises(AirflowFailException, match="no drop of that name"):
        find_drops(drop=name)


def test_an_empty_inbox_skips_the_run_unless_training_is_wanted_anyway(find_drops):
    with pytest.raises(AirflowSkipException, match="Nothing new"):
        find_drops()
    assert find_drops(train_anyway=True) == []


def test_a_run_with_nothing_new_leaves_a_report_that_says_so(store, find_drops):
    with pytest.raises(AirflowSkipException):
        find_drops()
    assert store.load("reports/manual-1/run.json", Run).seconds == {"data.ingest [0]": 12.3}
    page = store.get("reports/manual-1/index.html").decode()
    assert "NOTHING NEW" in page and "data.ingest [0]" in page
    assert 'href="https://airflow.example/dags/cxr_retraining/runs/manual__1"' in page


def test_a_drop_of_which_every_image_was_known_or_unfit_leaves_a_report_that_is_mailed(
    store, settings, data_task, context, monkeypatch
):
    batch = Batch(batch="b-1", drop="b", counts={"duplicate": {"NORMAL": 9}}, reasons={}, rejected_classes={})
    for name in ("images", "classes"):
        store.put_if_absent(f"batches/b-1/{name}.html", b"Data Docs")
    store.put_if_absent("batches/b-1/batch.json", batch.to_bytes())
    nothing = pd.DataFrame(columns=["file", "sha256", "label", "verdict", "reasons"])
    store.put_if_absent("batches/b-1/refused.parquet", tables.to_parquet(nothing))
    write_dataset(settings, 1)
    conclude(settings, dataset=1, number=1)
    stored = store.load("datasets/1/dataset.json", Dataset)
    monkeypatch.setattr("cxr_ml.dataset.build.build_dataset", lambda *_: (stored, False))
    with pytest.raises(AirflowSkipException, match="dataset 1 stays"):
        data_task("build_dataset")[1]({}, batches=["b-1"])
    assert "None of the 9 files" in store.get("reports/manual-1/index.html").decode()
    sent = []
    monkeypatch.setattr("cxr_ml.reporting.smtp.send", lambda message, *_: sent.append(message["Subject"]))
    mail_task()
    assert [subject.startswith("[cxr] NOTHING NEW: None of the 9 files") for subject in sent] == [True]


def mail_task():
    import cxr_retraining
    from cxr_airflow import form as form_module

    task = cxr_retraining.cxr_retraining().get_task("mail")
    return task.python_callable(params={name: param.value for name, param in form_module.make_form().items()})


def test_of_a_run_that_did_nothing_or_has_no_report_there_is_no_mail(settings, find_drops):
    with pytest.raises(AirflowSkipException, match="nothing to tell"):
        mail_task()
    with pytest.raises(AirflowSkipException, match="Nothing new"):
        find_drops()
    with pytest.raises(AirflowSkipException, match="nothing to tell"):
        mail_task()


def test_a_dataset_that_no_run_brought_before_the_gate_is_taken_up(store, settings, find_drops):
    # Its run was killed, or failed: its drop is no longer new, and without this nobody would ever train on it.
    write_dataset(settings, 1)
    assert find_drops() == []
    conclude(settings, dataset=1, number=1)
    with pytest.raises(AirflowSkipException):
        find_drops()
    # A ruling of a human makes the next dataset new, without any drop.
    ruling = Ruling(
        number=1, sha256="a", batch="b", file="f", action="release", label="NORMAL", by="a", why=".", at="2026-01-05"
    )
    store.put_if_absent("rulings/00001.json", ruling.to_bytes())
    assert find_drops() == []
    write_dataset(settings, 2)
    assert find_drops() == []


def test_a_store_that_cannot_be_used_fails_the_first_step_for_good(settings, find_drops, monkeypatch):
    monkeypatch.setenv("CXR_STORE__BUCKET", "no-such-bucket")
    with pytest.raises(AirflowFailException, match="no-such-bucket"):
        find_drops(train_anyway=True)
