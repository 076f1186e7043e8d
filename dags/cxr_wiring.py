"""What ties the library to Airflow: the trigger form, settings of a run, connections, what a failed step tells."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import quote

from airflow.sdk import Asset, Connection, ExceptionRetryPolicy, Param, RetryAction, RetryRule
from airflow.sdk.exceptions import AirflowFailException, AirflowRuntimeError
from botocore.exceptions import BotoCoreError, ClientError

from cxr_ml import settings as settings_module
from cxr_ml.errors import Refused
from cxr_ml.progress import OnProgress
from cxr_ml.records import StepProgress
from cxr_ml.settings import Settings
from cxr_ml.training.backbones import ARCHITECTURES

# Fields of the form that are settings of the same name; the floors are spread over one field per class.
_SAME = (
    "architectures", "image_size", "batch_size", "head_epochs", "fine_tune_epochs", "head_learning_rate",
    "fine_tune_learning_rate", "patience", "seed", "warm_start", "macro_f1_floor", "floors_on_lower_bound", "approval",
)  # fmt: skip
APPROVE = "Approve"
# Network, store, mail server and Airflow's API may answer the next time; nothing else gets better by itself. A killed
# process raises nothing, so it is retried without being asked about.
_PASSING: list[type[BaseException] | str] = [OSError, BotoCoreError, ClientError, AirflowRuntimeError]
RETRY_POLICY = ExceptionRetryPolicy([RetryRule(_PASSING)], default=RetryAction.FAIL)
_log = logging.getLogger(__name__)
# Other teams' DAGs can be scheduled on it: `@dag(schedule=[Asset("cxr_champion")])`.
CHAMPION = Asset("cxr_champion")
OUTCOME = {"action", "model", "version"}  # fields of a history entry that the steps after it need
MAILED = "failure_mailed"
PROGRESS = "progress"  # key of the XCom that says how far a step has come; the console and `make run` read it
_KILLED = RuntimeError("The step's process was killed from outside; see its log and the scheduler's.")
_FLOORS = {"recall_floor_": "recall_floors", "f1_floor_": "f1_floors"}


def form() -> dict[str, Param]:
    """The trigger form. Defaults come from the settings, so that a scheduled run uses them."""
    s = settings_module.load()
    from_settings = Settings.model_fields

    def number(name: str, kind: str, section: str, about: str, high: float, low: int = 0) -> Param:
        rule = {"exclusiveMinimum": 0} if kind == "number" else {"minimum": low}
        value = getattr(s, name)
        return Param(value, type=kind, maximum=high, section=section, description=about, title=_title(name), **rule)

    def floor(value: float, title: str) -> Param:
        return Param(value, type="number", minimum=0, maximum=1, section="Gate", title=title, description="0 to 1")

    known = list(ARCHITECTURES)
    form = {
        "drop": Param(
            None,
            type=["null", "string"],
            maxLength=255,
            title="Drop",
            description="Name of one drop in the inbox. Empty: all new ones.",
        ),
        "train_anyway": Param(False, type="boolean", title="Train even if nothing is new"),
        "architectures": Param(
            list(s.architectures),
            type="array",
            items={"enum": known},
            examples=known,
            minItems=1,
            uniqueItems=True,
            title="Architectures",
            section="Training",
        ),
        "image_size": number("image_size", "integer", "Training", "Pixels, square", 1024, 32),
        "head_epochs": number("head_epochs", "integer", "Training", "With the backbone frozen, at most", 1000, 1),
        "fine_tune_epochs": number("fine_tune_epochs", "integer", "Training", "With everything trained", 1000),
        "batch_size": number("batch_size", "integer", "Training", "Images per step", 4096, 1),
        "head_learning_rate": number("head_learning_rate", "number", "Training", "Frozen stage", 1),
        "fine_tune_learning_rate": number("fine_tune_learning_rate", "number", "Training", "Fine-tuning", 1),
        "patience": number(
            "patience", "integer", "Training", "Epochs without a better loss, while the rate stays", 1000, 1
        ),
        "seed": number("seed", "integer", "Training", "Same data and seed, same model", 2**31 - 1),
        "warm_start": Param(
            s.warm_start,
            type="boolean",
            section="Training",
            title="Warm start",
            description="Begin with the champion's weights instead of ImageNet's, where it is of the same architecture",
        ),
    }
    form |= {f"recall_floor_{c}": floor(v, f"Recall of {c} at least") for c, v in s.recall_floors.items()}
    form |= {f"f1_floor_{c}": floor(v, f"F1 of {c} at least") for c, v in s.f1_floors.items()}
    form["macro_f1_floor"] = floor(s.macro_f1_floor, "Macro F1 at least")
    floors = [*(f"recall {c}" for c in s.recall_floors), *(f"F1 {c}" for c in s.f1_floors), "macro F1"]
    form["floors_on_lower_bound"] = Param(
        list(s.floors_on_lower_bound),
        type="array",
        items={"enum": floors},
        examples=floors,
        uniqueItems=True,
        section="Gate",
        title="Floors on the lower bound",
        description="Of these, the lower end of the 95 % interval must meet the floor",
    )
    form["approval"] = Param(
        s.approval,
        type="boolean",
        section="Gate",
        title="Ask a human before promotion",
        description="The run waits up to three days under Required Actions; silence means no.",
    )
    form["recipients"] = Param(
        list(s.mail_to),
        type="array",
        items={"enum": list(s.mail_allowed)},
        examples=list(s.mail_allowed),
        uniqueItems=True,
        section="Report",
        title="E-mail recipients",
        description="From mail_allowed in the settings.",
    )
    assert set(_SAME) <= set(from_settings)
    return form


def ingest_tasks() -> int:
    """How many shards a run ingests at the same time."""
    return settings_module.load().ingest_tasks


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def overrides(params: dict[str, Any]) -> dict[str, Any]:
    """The settings that this run's form changed, by name.

    Raises:
        Refused: `params` has a field that the form does not have; Airflow itself lets it through.
    """
    if unknown := set(params) - set(form()):
        raise Refused(f"The form has no field {', '.join(map(repr, sorted(unknown)))}. It has: {', '.join(form())}")
    plain = settings_module.load()
    values: dict[str, Any] = {name: params[name] for name in _SAME}
    for prefix, setting in _FLOORS.items():
        values[setting] = {k.removeprefix(prefix): v for k, v in params.items() if k.startswith(prefix)}
    values |= {name: tuple(values[name]) for name in ("architectures", "floors_on_lower_bound")}
    return {k: v for k, v in values.items() if v != getattr(plain, k)}


@contextmanager
def progress(ti: Any) -> Iterator[OnProgress]:  # noqa: ANN401
    """A callback for the step of a task instance, whose newest progress is its XCom PROGRESS while it goes on.

    The step's log is never silent for long, either; so what a step imports, it imports within: on a busy machine that
    takes seconds, too. That nobody can be told fails no step.
    """
    from cxr_ml.reporting import follow

    failed = False

    def push(told: StepProgress) -> None:
        nonlocal failed
        try:
            ti.xcom_push(key=PROGRESS, value=told.model_dump(mode="json"))
        except Exception as error:
            if not failed:
                _log.warning("The progress of this step cannot be shown, and the step goes on: %s", error)
            failed = True

    with follow.followed(push) as on_progress:
        yield on_progress


@contextmanager
def settings(params: dict[str, Any] | None = None) -> Iterator[Settings]:
    """Settings for a step of this run. What is refused fails the step for good: a retry cannot help.

    Args:
        params: the form of a retraining, whose fields override settings; None: the run has another form.
    """
    try:
        yield _with_connections(settings_module.load(**overrides(params) if params is not None else {}))
    except Refused as error:
        raise AirflowFailException(str(error)) from error


def _with_connections(s: Settings) -> Settings:
    """Credentials from the Airflow connections that the settings name, if they name any."""
    if s.aws_conn_id:
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        from cxr_ml import store

        hook = S3Hook(aws_conn_id=s.aws_conn_id)
        store.use(hook.get_conn(), hook.get_credentials())
    if s.smtp_conn_id:
        connection = Connection.get(s.smtp_conn_id)
        if connection.port == 465:
            raise Refused(
                f"The Airflow connection {s.smtp_conn_id!r} must name a port for STARTTLS, usually 587. Received: 465, "
                "which speaks TLS from the first byte."
            )
        given = {"smtp_host": connection.host or "localhost", "smtp_port": connection.port or 25}
        given |= {"smtp_user": connection.login or "", "smtp_password": connection.password or ""}
        given["smtp_starttls"] = not connection.extra_dejson.get("disable_tls", False)
        s = s.model_copy(update=given)
    return s


def run_name(context: Any) -> str:  # noqa: ANN401 - Airflow's context is a mapping of many types
    """The name of this run as it is used in the store."""
    from cxr_ml.registry.promotion import slug

    return slug(context["run_id"])


def run_link(s: Settings, ti: Any) -> str:  # noqa: ANN401
    """Address of the run of a task instance in the UI, "" where the UI's address is not known."""
    return f"{s.ui_url.rstrip('/')}/dags/{ti.dag_id}/runs/{quote(ti.run_id)}" if s.ui_url else ""


def seconds(ti: Any) -> dict[str, float]:  # noqa: ANN401
    """Step -> wall time of its last try, of all steps of the run that have ended and did run."""
    found = ti.get_task_breadcrumbs(dag_id=ti.dag_id, run_id=ti.run_id)
    ended = [f for f in found if f["state"] not in ("skipped", "upstream_failed", "removed") and f["duration"]]
    return {_step(f["task_id"], f["map_index"]): round(f["duration"], 1) for f in ended}


def _step(task_id: str, map_index: int) -> str:
    return task_id + (f" [{map_index}]" if map_index >= 0 else "")


def actor(context: Any) -> str:  # noqa: ANN401
    """Who started the run: a user of Airflow, or the schedule."""
    return context["dag_run"].triggering_user_name or f"airflow ({context['dag_run'].run_type})"


def answered(answer: dict[str, Any]) -> tuple[bool, str, str]:
    """Whether a human approved the promotion, who ("": nobody did in time), and the answer in words for the history."""
    human = (answer["responded_by_user"] or {}).get("name") or ""
    why = (answer.get("params_input") or {}).get("why", "").strip()
    if not human:
        return False, "", "Nobody approved it in time."
    if answer["chosen_options"] != [APPROVE]:
        return False, human, f"Not approved by {human}: {why}" if why else f"Not approved by {human}."
    return True, human, f"approved by {human} ({why})" if why else f"approved by {human}"


def nothing_new(s: Settings, context: Any, batches: Sequence[str] = ()) -> None:  # noqa: ANN401
    """Leaves a report that says that nothing was trained, because nothing was new."""
    from cxr_ml.reporting import publish

    ti = context["ti"]
    publish.publish_nothing_new(s, run_name(context), batches, seconds(ti), run_link(s, ti), left_out(s, ti))


def left_out(s: Settings, ti: Any) -> list[str]:  # noqa: ANN401
    """The drops that this run found and could not use."""
    from cxr_ml import pipeline
    from cxr_ml.ingest.ingest_drop import Shard

    return pipeline.left_out(s, [Shard(**shard) for shard in ti.xcom_pull(task_ids="data.find_drops") or ()])


def announce(outlet_events: Any, model: str, version: int) -> None:  # noqa: ANN401
    """Puts into the event of `CHAMPION`, which the task emits when it succeeds, who is champion from now on."""
    outlet_events[CHAMPION].extra = {"model": model, "version": version}


def mail_failure(context: Any) -> None:  # noqa: ANN401
    """Tells which step failed, why, and what to do, on the run's page and by mail.

    For a task's `on_failure_callback`: called after the last try.
    """
    ti = context["ti"]
    # Before the mail, which takes seconds: mail_silent_failures may look at any moment now.
    ti.xcom_push(key=MAILED, value=True)
    error = context.get("exception") or _KILLED
    _tell_failure(context, ti.task_id, ti.map_index, error)


def mail_silent_failures(context: Any) -> None:  # noqa: ANN401
    """Mails about failed steps that could not do so themselves. For the DAG's `on_failure_callback`.

    A step whose process is killed, as happens when memory runs out, calls no callback of its own.
    """
    ti = context["ti"]
    states = ti.get_task_states(dag_id=ti.dag_id, run_ids=[ti.run_id])[ti.run_id]
    for name in sorted(name for name, state in states.items() if state == "failed"):
        # Airflow calls the third instance of a mapped task x "x_2", which may be the id of a task, too.
        task_id, index = name, -1
        if name not in context["dag"].task_ids:
            task_id, _, number = name.rpartition("_")
            index = int(number)
        if not ti.xcom_pull(task_ids=task_id, key=MAILED, map_indexes=index):
            _tell_failure(context, task_id, index, _KILLED)


def _tell_failure(context: Any, task_id: str, map_index: int, error: BaseException) -> None:  # noqa: ANN401
    """Writes the page of the run, and mails."""
    from cxr_ml.reporting import failures, messages, notify

    s = _with_connections(settings_module.load())
    ti = context["ti"]
    step = _step(task_id, map_index)
    run = run_link(s, ti)
    log = f"{run}/tasks/{task_id}" + (f"/mapped/{map_index}" if map_index >= 0 else "") if run else ""
    failed = failures.describe_failure(s, ti.run_id, step, error, log, run)
    try:
        page = f"s3://{s.bucket}/{s.prefix}{failures.save_failure(s, failed)}"
    except (BotoCoreError, ClientError, Refused) as trouble:
        # The store may be why the step failed: the mail must go all the same.
        _log.error("No page about the failure of %s: the store says %s", task_id, trouble)
        page = ""
    to = messages.allowed(tuple((context.get("params") or {}).get("recipients") or s.mail_to), s)
    if not to:
        _log.warning("No mail about the failure of %s: there are no recipients.", task_id)
        return
    notify.mail_failure(s, failed, to, page)


# Of a teardown that mails: Airflow tries again after 1, 2, 4, 8 and 16 minutes, longer than greylisting takes.
TELLING = {
    "retries": 5,
    "retry_delay": timedelta(minutes=1),
    "max_retry_delay": timedelta(minutes=30),
    "execution_timeout": timedelta(minutes=20),
    "on_failure_callback": None,
}
TASKS = {
    "retries": 2,
    "retry_delay": timedelta(seconds=20),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(minutes=5),
    "retry_policy": RETRY_POLICY,
    "execution_timeout": timedelta(hours=1),
    "on_failure_callback": mail_failure,
}
