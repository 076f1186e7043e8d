"""What Airflow's own database knows of our two DAGs, and what the console asks Airflow to do."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from airflow.api.common.trigger_dag import trigger_dag
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.core_api.datamodels.hitl import UpdateHITLDetailPayload
from airflow.api_fastapi.core_api.routes.public.hitl import update_hitl_detail
from airflow.exceptions import DagNotFound
from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.models.hitl import HITLDetail
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from airflow.utils.types import DagRunTriggeredByType
from fastapi import HTTPException
from sqlalchemy import select

from cxr_console.access import RETRAINING, ROLLBACK
from cxr_ml.errors import Refused
from cxr_ml.records import StepProgress
from cxr_ml.registry.promotion import slug

QUESTION = "decide.approval"  # the step that waits for a human
_NAMES = {RETRAINING: "retraining", ROLLBACK: "rollback"}
_GOING_ON = ("queued", "running")  # states of a run that has not ended
_PROGRESS = "progress"  # key of the XCom in which a step tells how far it has come: dags/cxr_airflow/context.py
_LATER = datetime.max.replace(tzinfo=UTC)
_WORDS = {
    None: "waiting",
    "scheduled": "waiting",
    "queued": "queued",
    "success": "done",
    "up_for_retry": "failed, tried again soon",
    "upstream_failed": "not run, an earlier step failed",
    "awaiting_input": "waits for an answer",
}
_ENDED = ("success", "failed", "skipped", "upstream_failed", "removed")
# What looks alike is one line: of 200 parts of a drop 190 may be waiting.
_ALIKE = (None, "scheduled", "queued", "success", "skipped", "upstream_failed")


class AirflowRun(NamedTuple):
    """A run of one of the two DAGs."""

    dag: str
    kind: str  # retraining or rollback
    id: str  # as Airflow calls it
    name: str  # as the store calls it
    state: str
    began: datetime | None
    ended: datetime | None
    by: str


class Step(NamedTuple):
    """A step of a run, or several parts of one that are in the same state."""

    name: str  # of the task, with what it works on where it is one of several
    state: str  # in words
    active: bool  # somebody or something works on it, or waits for a worker or a human
    since: datetime | None  # it is in this state; None: not known, or nothing to do yet
    seconds: float | None  # that it took; None: it has not ended, or did nothing
    progress: StepProgress | None  # of one that runs, once it has told


class Schedule(NamedTuple):
    """When the next weekly run comes."""

    known: bool  # whether Airflow has read the DAG yet
    paused: bool
    next: datetime | None


def schedule() -> Schedule:
    """The schedule of the retraining."""
    with create_session() as session:
        found = session.get(DagModel, RETRAINING)
        if found is None:
            return Schedule(False, False, None)
        return Schedule(True, bool(found.is_paused), found.next_dagrun_create_after)


def runs(limit: int, offset: int = 0) -> list[AirflowRun]:
    """Runs of both DAGs, newest first."""
    newest = (
        select(DagRun)
        .where(DagRun.dag_id.in_(_NAMES))
        .order_by(DagRun.run_after.desc(), DagRun.id.desc())
        .limit(limit)
        .offset(offset)
    )
    with create_session() as session:
        return [_run(found) for found in session.scalars(newest)]


def run(name: str) -> AirflowRun | None:
    """The run that the store calls `name`; None where Airflow has forgotten it, or it was none of Airflow's."""
    with create_session() as session:
        ids = session.execute(select(DagRun.id, DagRun.run_id).where(DagRun.dag_id.in_(_NAMES))).all()
        hit = next((key for key, run_id in ids if slug(run_id) == name), None)
        return _run(session.get(DagRun, hit)) if hit is not None else None


def _run(found: DagRun) -> AirflowRun:
    by = found.triggering_user_name or f"airflow ({found.run_type})"
    return AirflowRun(
        found.dag_id, _NAMES[found.dag_id], found.run_id, slug(found.run_id), str(found.state), found.start_date,
        found.end_date, by,
    )  # fmt: skip


def going_on(run: AirflowRun) -> bool:
    """Whether a run has not ended yet."""
    return run.state in _GOING_ON


def steps(runs: Iterable[AirflowRun]) -> dict[str, list[Step]]:
    """Of each run that has not ended, by its id: its steps, those that began in order of time, then the others."""
    ids = [run.id for run in runs if going_on(run)]
    if not ids:
        return {}
    tasks = select(TaskInstance).where(TaskInstance.dag_id.in_(_NAMES), TaskInstance.run_id.in_(ids))
    told = select(XComModel.run_id, XComModel.task_id, XComModel.map_index, XComModel.value).where(
        XComModel.dag_id.in_(_NAMES), XComModel.run_id.in_(ids), XComModel.key == _PROGRESS
    )
    with create_session() as session:
        progress = {tuple(key): value for *key, value in session.execute(told)}
        # Airflow gives each task more weight than all that come after it.
        found = sorted(
            session.scalars(tasks), key=lambda t: (t.start_date or _LATER, -(t.priority_weight or 0), t.map_index)
        )
        alike: dict[tuple[Any, ...], list[TaskInstance]] = {}
        for task in found:
            which = None if task.state in _ALIKE else task.map_index
            alike.setdefault((task.run_id, task.task_id, task.state, which), []).append(task)
        return {run_id: [_step(parts, progress) for of, parts in alike.items() if of[0] == run_id] for run_id in ids}


def _step(parts: list[TaskInstance], progress: dict[tuple[Any, ...], Any]) -> Step:
    task, state = parts[0], parts[0].state
    name = task.task_id
    if len(parts) > 1:
        name += f" ({len(parts)} parts)"
    elif task.map_index >= 0:
        name += f" [{task.rendered_map_index}]"
    since = {"scheduled": task.scheduled_dttm, "queued": task.queued_dttm, "up_for_retry": task.end_date}
    took = [part.duration for part in parts if part.duration is not None and state in ("success", "failed")]
    return Step(
        name=name,
        state=_WORDS.get(state, state),
        active=state is not None and state != "scheduled" and state not in _ENDED,
        since=None if state is None else since.get(state, task.start_date),
        seconds=max(took, default=None),
        progress=_told(progress.get((task.run_id, task.task_id, task.map_index))) if state == "running" else None,
    )


def _told(value: Any) -> StepProgress | None:  # noqa: ANN401 - JSON
    """What a step told; None where it told nothing, or is of another version."""
    try:
        told = StepProgress.model_validate(value)
        datetime.fromisoformat(told.at)
    except ValueError:
        return None
    return told


def waiting() -> list[AirflowRun]:
    """Runs that wait for a human to approve a promotion, oldest first."""
    question = (
        select(DagRun)
        .join(TaskInstance, (TaskInstance.dag_id == DagRun.dag_id) & (TaskInstance.run_id == DagRun.run_id))
        .join(HITLDetail, HITLDetail.ti_id == TaskInstance.id)
        .where(DagRun.dag_id == RETRAINING, TaskInstance.task_id == QUESTION, HITLDetail.responded_at.is_(None))
        .where(DagRun.state == "running")
        .order_by(DagRun.run_after)
    )
    with create_session() as session:
        return [_run(found) for found in session.scalars(question).unique()]


def answer(run_id: str, approve: bool, why: str, user: BaseUser) -> None:
    """Answers the question of a waiting run, as Airflow's own page does.

    Raises:
        HTTPException: no such question, it is answered already, or the user is not among those asked.
    """
    body = UpdateHITLDetailPayload(chosen_options=["Approve" if approve else "Reject"], params_input={"why": why})
    with create_session() as session:
        update_hitl_detail(RETRAINING, run_id, QUESTION, body, user, session, -1)


def roll_back(to: str, why: str, user: BaseUser) -> str:
    """Triggers the rollback DAG, which tells the history, the mail and the asset. Returns the id of its run.

    Raises:
        Refused: Airflow does not know the DAG.
    """
    conf: dict[str, Any] = {"to": to, "why": why}
    try:
        with create_session() as session:
            found = session.get(DagModel, ROLLBACK)
            paused = found is not None and found.is_paused
        run = trigger_dag(
            ROLLBACK, triggered_by=DagRunTriggeredByType.UI, triggering_user_name=user.get_name(), conf=conf
        )
    except DagNotFound:
        raise Refused(f"Airflow does not know the DAG {ROLLBACK}. Is dags/ its DAG folder?") from None
    if run is None:
        raise HTTPException(500, "Airflow made no run of the rollback.")
    if paused:
        raise Refused(f"The rollback waits: its DAG is paused. Unpause {ROLLBACK} in Airflow; its run is there.")
    return run.run_id
