"""What ties the library to Airflow, in this process: the form's values, retries, connections, mails about failures."""

import email
import email.policy
import json
import smtplib
import socket
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Message
from airflow.sdk import RetryAction
from airflow.sdk.exceptions import AirflowFailException, AirflowRuntimeError, AirflowTaskTimeout
from airflow.sdk.execution_time.comms import ErrorResponse
from botocore.exceptions import ClientError, EndpointConnectionError
from cxr_airflow import callbacks, context, form

from cxr_ml import settings as settings_module
from cxr_ml.errors import Refused
from cxr_ml.progress import counted
from cxr_ml.records import StepProgress

TEAM, CHIEF = "team@hospital.example", "chief@hospital.example"


@pytest.fixture(autouse=True)
def own_settings(settings, monkeypatch, tmp_path):
    for name in (
        "CXR_CONFIG",
        "CXR_MAIL__SMTP_HOST",
        "CXR_MAIL__SMTP_PORT",
        "CXR_MAIL__SMTP_CONN_ID",
        "CXR_STORE__AWS_CONN_ID",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CXR_MAIL__ALLOWED", json.dumps([TEAM, CHIEF]))
    monkeypatch.setenv("CXR_MAIL__RECIPIENTS", json.dumps([TEAM]))


def values(**changed):
    """The form's values as a task sees them."""
    return {name: param.value for name, param in form.make_form().items()} | changed


@contextmanager
def step(params):
    """A step of a run with these values of the form."""
    ti = SimpleNamespace(dag_id="cxr_retraining", run_id="manual__1", xcom_push=lambda **_: None)
    run = SimpleNamespace(triggering_user_name="ann", run_type="manual")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "get_current_context", lambda: {"ti": ti, "run_id": ti.run_id, "dag_run": run})
        with context.run_step(params) as made:
            yield made


# The form


def test_a_form_left_alone_changes_no_setting():
    assert form.read_overrides(values()) == {}


def test_only_what_the_form_changed_overrides_the_settings():
    changed = values(seed=7, architectures=["light"], recall_floor_COVID19=0.5, train_anyway=True, recipients=[CHIEF])
    changed["approval"] = True
    assert form.read_overrides(changed) == {
        "training.seed": 7,
        "gate.approval": True,
        "training.architectures": ("light",),
        "gate.recall_floors": {"COVID19": 0.5, "PNEUMONIA": 0.9, "NORMAL": 0.7},
    }
    with step(changed) as s:
        assert (
            s.settings.training.seed,
            s.settings.training.architectures,
            s.settings.gate.recall_floors["COVID19"],
            s.settings.training.batch_size,
        ) == (
            7,
            ("light",),
            0.5,
            128,
        )


def test_a_field_that_the_form_does_not_have_is_refused():
    # Airflow lets unknown names through: a misspelt one would be ignored, and the default trained.
    for name in ("seeed", "recall_floor_TUBERCULOSIS"):
        with pytest.raises(AirflowFailException, match=f"no field '{name}'"), step(values(**{name: 0})):
            pytest.fail("the step went on")


# Settings of a step


def test_what_is_refused_fails_the_step_without_retries_and_keeps_its_reason():
    with pytest.raises(AirflowFailException, match="Received: 3 images") as caught, step(values()):
        raise Refused("At least 50 are needed. Received: 3 images")
    assert isinstance(caught.value.__cause__, Refused)


def test_settings_that_do_not_exist_fail_the_step_without_retries(monkeypatch):
    monkeypatch.setenv("CXR_CONFIG", "/nowhere.toml")
    with pytest.raises(AirflowFailException, match="CXR_CONFIG"), step({}):
        pytest.fail("the step went on")


def test_other_errors_of_a_step_stay_what_they_are():
    with pytest.raises(ConnectionError, match="reset"), step(values()):
        raise ConnectionError("reset")


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("reset by peer"),
        TimeoutError("timed out"),
        socket.gaierror(-3, "name resolution"),
        smtplib.SMTPServerDisconnected("gone"),
        EndpointConnectionError(endpoint_url="http://store"),
        ClientError({"Error": {"Code": "503", "Message": "SlowDown"}}, "PutObject"),
    ],
)
def test_what_may_pass_is_tried_again(error):
    assert callbacks.RETRY_POLICY.evaluate(error, 1, 3).action == RetryAction.RETRY


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), MemoryError(), AirflowTaskTimeout(), SystemExit(1)])
def test_what_does_not_pass_by_itself_is_not_tried_again(error):
    assert callbacks.RETRY_POLICY.evaluate(error, 1, 3).action == RetryAction.FAIL


# What a step tells while it goes on


class Pushing:
    """A task instance whose XComs can be seen, or cannot be pushed."""

    def __init__(self, broken=False):
        self.broken, self.tries, self.pushed = broken, 0, []

    def xcom_push(self, key, value):
        self.tries += 1
        if self.broken:
            raise AirflowRuntimeError(ErrorResponse(detail={"status_code": 503}))
        self.pushed.append((key, json.loads(json.dumps(value))))


def go_on(ti, steps=500):
    with context.report_progress(ti) as on_progress:
        tell = counted(on_progress, "files")
        tell(0, steps)
        end = time.monotonic() + 60
        while not ti.tries and time.monotonic() < end:
            time.sleep(0.01)
        for n in range(1, steps + 1):
            tell(n, steps)


def test_the_progress_of_a_step_is_its_xcom_pushed_seldom_and_at_last_with_the_last():
    go_on(ti := Pushing())
    assert [key for key, _ in ti.pushed] == ["progress", "progress"]
    assert [StepProgress.model_validate(value).done for _, value in ti.pushed] == [0, 500]


def test_progress_that_cannot_be_pushed_fails_no_step_and_is_said_once(caplog):
    go_on(ti := Pushing(broken=True))
    assert ti.tries == 2
    (said,) = [record for record in caplog.records if record.name == context.__name__]
    assert "cannot be shown, and the step goes on" in said.getMessage()


# Connections of Airflow


def test_the_mail_server_comes_from_the_airflow_connection_that_the_settings_name(monkeypatch):
    given = {"conn_type": "smtp", "host": "mail.example", "port": 587, "login": "cxr", "password": "pass word/+"}
    monkeypatch.setenv("AIRFLOW_CONN_HOSPITAL_MAIL", json.dumps(given))
    monkeypatch.setenv("CXR_MAIL__SMTP_CONN_ID", "hospital_mail")
    with step(values()) as s:
        assert (
            s.settings.mail.smtp_host,
            s.settings.mail.smtp_port,
            s.settings.mail.smtp_user,
            s.settings.mail.smtp_password,
        ) == (
            "mail.example",
            587,
            "cxr",
            "pass word/+",
        )
        assert s.settings.mail.smtp_starttls is True


def test_a_connection_may_switch_starttls_off(monkeypatch):
    given = {"conn_type": "smtp", "host": "127.0.0.1", "extra": {"disable_tls": True}}
    monkeypatch.setenv("AIRFLOW_CONN_SINK", json.dumps(given))
    monkeypatch.setenv("CXR_MAIL__SMTP_CONN_ID", "sink")
    with step(values()) as s:
        assert (
            s.settings.mail.smtp_host,
            s.settings.mail.smtp_port,
            s.settings.mail.smtp_user,
            s.settings.mail.smtp_starttls,
        ) == (
            "127.0.0.1",
            25,
            "",
            False,
        )


def test_a_connection_that_cannot_work_is_refused_before_anything_is_done(monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_SSL", json.dumps({"conn_type": "smtp", "host": "mail.example", "port": 465}))
    monkeypatch.setenv("CXR_MAIL__SMTP_CONN_ID", "ssl")
    with pytest.raises(AirflowFailException, match=r"STARTTLS.*Received: 465"), step(values()):
        pytest.fail("the step went on")


def test_the_store_is_reached_with_the_airflow_connection_that_the_settings_name(
    settings, seaweed, monkeypatch, forget_credentials
):
    given = {
        "conn_type": "aws",
        "login": seaweed["AWS_ACCESS_KEY_ID"],
        "password": seaweed["AWS_SECRET_ACCESS_KEY"],
        "extra": {"endpoint_url": seaweed["CXR_STORE__ENDPOINT_URL"], "region_name": "us-east-1"},
    }
    monkeypatch.setenv("AIRFLOW_CONN_HOSPITAL_STORE", json.dumps(given))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "wrong")
    forget_credentials()
    with pytest.raises(AirflowFailException, match="cannot be used"), step(values()) as s:
        s.store.check()
    monkeypatch.setenv("CXR_STORE__AWS_CONN_ID", "hospital_store")
    with step(values()) as s:
        s.store.check()
        assert s.store.put_if_absent("a", b"b")


# Mails about failures


class Sink(Message):
    """Keeps the mails it gets."""

    def __init__(self):
        super().__init__()
        self.mails = []

    def prepare_message(self, session, envelope):
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        self.mails.append((tuple(envelope.rcpt_tos), message))
        return message

    def handle_message(self, message):
        pass


@pytest.fixture
def sink(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    handler = Sink()
    server = Controller(handler, hostname="127.0.0.1", port=port)
    server.start()
    monkeypatch.setenv("CXR_MAIL__SMTP_HOST", "127.0.0.1")
    monkeypatch.setenv("CXR_MAIL__SMTP_PORT", str(port))
    yield handler
    server.stop()


class Ti(SimpleNamespace):
    """As much of a task instance as the callbacks use; `others` are the states and XComs of the run's other tasks."""

    def __init__(self, task_id="learn.train", map_index=1, states=None, marks=()):
        super().__init__(dag_id="cxr_retraining", run_id="manual__1", task_id=task_id, map_index=map_index)
        self.states, self.marks = states or {}, set(marks)

    def xcom_push(self, key, value):
        self.marks.add((self.task_id, self.map_index, key))

    def xcom_pull(self, task_ids, key, map_indexes):
        return True if (task_ids, map_indexes, key) in self.marks else None

    def get_task_states(self, dag_id, run_ids):
        return {run_ids[0]: self.states} if dag_id == self.dag_id else {}


def body(message):
    return message.get_body(("plain",)).get_content()


def test_a_failed_step_sends_one_mail_with_step_reason_and_what_to_do(sink, monkeypatch):
    monkeypatch.setenv("CXR_MAIL__UI_URL", "https://airflow.example/")
    error = AirflowFailException("Each class needs images. Received: none of PNEUMONIA")
    callbacks.mail_failure({"ti": Ti(), "params": values(), "exception": error})
    ((to, message),) = sink.mails
    assert to == (TEAM,)
    assert message["Subject"] == "[cxr] FAILED at learn.train [1]: Each class needs images. Received: none of PNEUMONIA"
    text = body(message)
    assert "none of PNEUMONIA" in text
    assert "says what was expected and what to do" in text
    assert "https://airflow.example/dags/cxr_retraining/runs/manual__1/tasks/learn.train" in text


def test_the_page_of_the_run_says_so_too_and_the_mail_tells_where_it_is(sink, store, settings):
    error = AirflowFailException("The loss exploded in epoch 3.\nStart a new run with a smaller learning rate.")
    callbacks.mail_failure({"ti": Ti(), "params": values(), "exception": error})
    page = store.get("reports/manual-1/index.html").decode()
    for said in ("FAILED at learn.train [1]", "The loss exploded in epoch 3.", "with a smaller learning rate."):
        assert said in page
    ((_, message),) = sink.mails
    assert f"Report: s3://{settings.store.bucket}/reports/manual-1/index.html" in body(message)


def test_a_run_without_recipients_has_its_page_all_the_same(store, monkeypatch):
    monkeypatch.setenv("CXR_MAIL__RECIPIENTS", "[]")
    callbacks.mail_failure({"ti": Ti(), "params": values(recipients=[]), "exception": ValueError("x")})
    assert store.exists("reports/manual-1/index.html")


def test_a_store_that_cannot_be_written_does_not_keep_the_mail_back(sink, monkeypatch, caplog):
    monkeypatch.setenv("CXR_STORE__BUCKET", "no-such-bucket")
    callbacks.mail_failure({"ti": Ti(), "params": values(), "exception": ValueError("x")})
    ((_, message),) = sink.mails
    assert "Report:" not in body(message)
    assert "No page about the failure of learn.train: the store says" in caplog.text


def test_the_mail_goes_to_the_recipients_of_the_form_and_to_the_team_where_it_names_none(sink):
    for recipients in ([CHIEF], []):
        callbacks.mail_failure({"ti": Ti(), "params": values(recipients=recipients), "exception": ValueError("x")})
    assert [to for to, _ in sink.mails] == [(CHIEF,), (TEAM,)]


def test_a_step_that_the_scheduler_gave_up_is_mailed_without_an_exception_at_hand(sink):
    callbacks.mail_failure({"ti": Ti("report", -1)})
    ((_, message),) = sink.mails
    assert message["Subject"].startswith("[cxr] FAILED at report: The step's process was killed")
    assert "memory" in body(message)


def test_without_any_recipient_nothing_is_sent_and_nothing_breaks(sink, monkeypatch, caplog):
    monkeypatch.setenv("CXR_MAIL__RECIPIENTS", "[]")
    callbacks.mail_failure({"ti": Ti(), "params": values(recipients=[]), "exception": ValueError("x")})
    assert sink.mails == []
    assert "no recipients" in caplog.text


def test_the_dag_mails_only_about_failed_steps_that_could_not_do_so_themselves(sink):
    states = {
        "data.ingest": "success",
        "learn.train_0": "failed",
        "learn.train_12": "failed",
        "learn.evaluate": "upstream_failed",
        "report": "failed",
        "task_1": "failed",
        "promote": None,
    }
    ti = Ti("report", -1, states, marks=[("learn.train", 0, callbacks.MAILED)])
    dag = SimpleNamespace(task_ids=[*(name for name in states if "train" not in name), "learn.train"])
    callbacks.mail_silent_failures({"ti": ti, "dag": dag, "params": values(recipients=[CHIEF])})
    steps = [message["Subject"].split(": ")[0].removeprefix("[cxr] FAILED at ") for _, message in sink.mails]
    assert steps == ["learn.train [12]", "report", "task_1"]
    assert {to for to, _ in sink.mails} == {(CHIEF,)}


def test_a_step_leaves_its_mark_before_it_mails(monkeypatch):
    # The DAG's callback runs in another process and may look while the mail is still on its way.
    ti, marks = Ti(), []
    monkeypatch.setattr("cxr_ml.reporting.smtp.send", lambda *_: marks.append(set(ti.marks)))
    callbacks.mail_failure({"ti": ti, "params": values(), "exception": ValueError("x")})
    assert marks == [{("learn.train", 1, callbacks.MAILED)}]


def test_the_run_has_a_name_that_fits_into_keys():
    assert context.name_run({"run_id": "manual__2026-01-05T03:00:00+00:00"}) == "manual-2026-01-05T03-00-00-00-00"


def test_who_started_a_run_is_a_user_or_the_schedule():
    def started_by(user, kind):
        return {"dag_run": SimpleNamespace(triggering_user_name=user, run_type=kind)}

    assert context.name_actor(started_by("dr.who", "manual")) == "dr.who"
    assert context.name_actor(started_by(None, "scheduled")) == "airflow (scheduled)"


def test_the_settings_of_this_process_are_not_changed_by_a_form():
    with step(values(seed=3)):
        pass
    assert settings_module.load().training.seed == 0


@pytest.mark.parametrize(
    ("user", "chosen", "params", "expected"),
    [
        ("dr.a", "Approve", {"why": " looked at "}, (True, "dr.a", "looked at")),
        ("dr.a", "Approve", {}, (True, "dr.a", "")),
        ("dr.a", "Reject", {"why": "too few"}, (False, "dr.a", "too few")),
        ("dr.a", "Reject", None, (False, "dr.a", "")),
        (None, "Approve", {"why": "x"}, (False, "", "x")),
    ],
)
def test_an_answer_counts_as_approval_only_if_a_human_gave_it(user, chosen, params, expected):
    who = {"name": user} if user else None
    assert (
        context.read_answer({"responded_by_user": who, "chosen_options": [chosen], "params_input": params}) == expected
    )


def test_without_an_answer_nobody_was_asked():
    assert context.read_answer(None) is None
