"""What a step knows of its run, and how it says how far it has come."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from airflow.sdk import get_current_context
from airflow.sdk.exceptions import AirflowFailException

from cxr_airflow.run_settings import load_settings, open_store
from cxr_ml.errors import Refused
from cxr_ml.progress import OnProgress
from cxr_ml.records import StepProgress
from cxr_ml.settings import MailSettings, Settings

if TYPE_CHECKING:
    from cxr_ml.pipeline import Answer
    from cxr_ml.store import ObjectStore

APPROVE = "Approve"
PROGRESS = "progress"  # key of the XCom that says how far a step has come; the console and `make run` read it
_log = logging.getLogger(__name__)


class Step(NamedTuple):
    """What a step works with."""

    store: "ObjectStore"
    settings: Settings
    on_progress: OnProgress
    run: str  # its name in the store
    by: str  # who started it
    link: str  # address of the run in the UI, "" where the UI's address is not known
    ti: Any  # the task instance


@contextmanager
def run_step(params: dict[str, Any] | None = None) -> Iterator[Step]:
    """Yields what a step works with. What is refused fails the step for good: a retry cannot help.

    Args:
        params: the form of a retraining, whose fields override settings; None: the run has another form.
    """
    context = get_current_context()
    ti = context["ti"]
    try:
        settings = load_settings(params)
        with report_progress(ti) as on_progress:
            store = open_store(settings)
            yield Step(
                store, settings, on_progress, name_run(context), name_actor(context), link_to_run(settings.mail, ti), ti
            )
    except Refused as error:
        raise AirflowFailException(str(error)) from error


@contextmanager
def report_progress(ti: Any) -> Iterator[OnProgress]:  # noqa: ANN401
    """Yields a callback for the progress of a step, the newest of which is the step's XCom PROGRESS while it goes on.

    The step's log is never silent for long, either; so what a step imports, it imports within: on a busy machine that
    takes seconds, too. A step does not fail because its progress cannot be shown.
    """
    from cxr_ml.reporting import follow

    failed = False

    def push(progress: StepProgress) -> None:
        nonlocal failed
        try:
            ti.xcom_push(key=PROGRESS, value=progress.model_dump(mode="json"))
        except Exception as error:
            if not failed:
                _log.warning("The progress of this step cannot be shown, and the step goes on: %s", error)
            failed = True

    with follow.followed(push) as on_progress:
        yield on_progress


def name_run(context: Any) -> str:  # noqa: ANN401 - Airflow's context is a mapping of many types
    """Returns the name of this run as it is used in the store."""
    from cxr_ml.registry.promotion import slug

    return slug(context["run_id"])


def name_actor(context: Any) -> str:  # noqa: ANN401
    """Returns who started the run: a user of Airflow, or the schedule."""
    return context["dag_run"].triggering_user_name or f"airflow ({context['dag_run'].run_type})"


def link_to_run(settings: MailSettings, ti: Any) -> str:  # noqa: ANN401
    """Returns the address of the run of a task instance in the UI, "" where the UI's address is not known."""
    return f"{settings.ui_url.rstrip('/')}/dags/{ti.dag_id}/runs/{quote(ti.run_id)}" if settings.ui_url else ""


def name_step(task_id: str, map_index: int) -> str:
    """Returns the name of a step, with its map index where it is mapped: "learn.train [1]"."""
    return task_id + (f" [{map_index}]" if map_index >= 0 else "")


def measure_seconds(ti: Any) -> dict[str, float]:  # noqa: ANN401
    """Returns step -> wall time of its last try, of all steps of the run that have ended and did run."""
    steps = ti.get_task_breadcrumbs(dag_id=ti.dag_id, run_id=ti.run_id)
    ended = [s for s in steps if s["state"] not in ("skipped", "upstream_failed", "removed") and s["duration"]]
    return {name_step(s["task_id"], s["map_index"]): round(s["duration"], 1) for s in ended}


def list_left_out(step: Step) -> list[str]:
    """Returns the drops that this run found and could not use."""
    from cxr_ml import pipeline
    from cxr_ml.ingest.ingest_drop import Shard

    shards = step.ti.xcom_pull(task_ids="data.find_drops") or ()
    return pipeline.list_left_out(step.store, [Shard(**shard) for shard in shards])


def report_nothing_new(step: Step, batches: list[str] | None = None) -> None:
    """Leaves a report that says that nothing was trained, because nothing was new."""
    from cxr_ml.reporting import publish

    seconds, left_out = measure_seconds(step.ti), list_left_out(step)
    publish.publish_nothing_new(step.store, step.settings, step.run, batches or (), seconds, step.link, left_out)


def read_answer(response: dict[str, Any] | None) -> "Answer | None":
    """Returns what a human answered to the question of approval; None where nobody was asked.

    Args:
        response: the XCom of the HITLOperator.
    """
    from cxr_ml.pipeline import Answer

    if not response:
        return None
    human = (response["responded_by_user"] or {}).get("name") or ""
    why = (response.get("params_input") or {}).get("why", "").strip()
    return Answer(bool(human) and response["chosen_options"] == [APPROVE], human, why)
