"""Retries, and what is told when a step fails or the champion changes."""

import logging
from datetime import timedelta
from typing import Any

from airflow.sdk import Asset, ExceptionRetryPolicy, RetryAction, RetryRule
from airflow.sdk.exceptions import AirflowRuntimeError
from botocore.exceptions import BotoCoreError, ClientError

from cxr_airflow.context import link_to_run, name_step
from cxr_airflow.run_settings import load_settings, open_store
from cxr_ml.errors import Refused

# Other teams' DAGs can be scheduled on it: `@dag(schedule=[Asset("cxr_champion")])`.
CHAMPION = Asset("cxr_champion")
OUTCOME = {"action", "model", "version"}  # fields of a history entry that the steps after it need
MAILED = "failure_mailed"  # key of the XCom of a failed step that has mailed about it
# Network, store, mail server and Airflow's API may answer the next time; nothing else gets better by itself. A killed
# process raises nothing, so it is retried without being asked about.
_PASSING: list[type[BaseException] | str] = [OSError, BotoCoreError, ClientError, AirflowRuntimeError]
RETRY_POLICY = ExceptionRetryPolicy([RetryRule(_PASSING)], default=RetryAction.FAIL)
_KILLED = RuntimeError("The step's process was killed from outside; see its log and the scheduler's.")
_log = logging.getLogger(__name__)


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

    settings = load_settings()
    ti = context["ti"]
    step = name_step(task_id, map_index)
    run = link_to_run(settings.mail, ti)
    log = f"{run}/tasks/{task_id}" + (f"/mapped/{map_index}" if map_index >= 0 else "") if run else ""
    failed = failures.describe_failure(settings, ti.run_id, step, error, log, run)
    store = open_store(settings)
    try:
        page = f"s3://{store.bucket}/{store.prefix}{failures.save_failure(store, settings.mail, failed)}"
    except (BotoCoreError, ClientError, Refused) as trouble:
        # The store may be why the step failed: the mail must go all the same.
        _log.error("No page about the failure of %s: the store says %s", task_id, trouble)
        page = ""
    to = messages.allowed(
        tuple((context.get("params") or {}).get("recipients") or settings.mail.recipients), settings.mail
    )
    if not to:
        _log.warning("No mail about the failure of %s: there are no recipients.", task_id)
        return
    notify.mail_failure(store, settings, failed, to, page)


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
