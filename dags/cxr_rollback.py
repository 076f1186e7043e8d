"""
### Rollback of the chest X-ray classifier

Makes an earlier champion champion again. Trigger it by hand, with the reason: it goes into the history with your name,
and to the team by mail. Nothing is trained and nothing is deleted; the model rolled back from can be named later.

DAGs that follow the asset `cxr_champion` are told, as after a promotion.
"""

from typing import Any

from airflow.sdk import Param, dag, task
from airflow.sdk.exceptions import AirflowSkipException
from cxr_airflow import callbacks
from cxr_airflow.context import run_step


@task(outlets=[callbacks.CHAMPION])
def roll_back(params: dict, outlet_events: Any = None) -> None:  # noqa: ANN401
    """Moves the champion pointer to the earlier model, and tells the history by whom and why."""
    with run_step() as step:
        from cxr_ml.registry import promotion

        entry = promotion.rollback(step.store, params["to"], step.by, params["why"], step.run)
    print(entry.model_dump_json(indent=2))
    callbacks.announce(outlet_events, entry.model, entry.version)


@task(**callbacks.TELLING)
def tell() -> None:
    """Mails the team which model is champion again, by whom and why. Red in a green run: only the mail failed."""
    with run_step() as step:
        from cxr_ml.reporting import notify

        recipients = step.settings.mail.recipients
        if not notify.mail_rollback(step.store, step.settings.mail, step.run, recipients, step.link):
            raise AirflowSkipException("There is nothing to tell, or nobody to tell it to.")


@dag(
    schedule=None,
    max_active_runs=1,
    # Whoever needs it needs it at once.
    is_paused_upon_creation=False,
    params={
        "to": Param(
            None,
            type=["null", "string"],
            maxLength=255,
            title="To which model",
            description="A model that was champion once, or its version, such as v1. "
            "Empty: the one that the present champion was promoted over.",
        ),
        "why": Param(
            type="string", minLength=1, maxLength=2000, pattern=r"\S", title="Why", description="For the history."
        ),
    },
    doc_md=__doc__,
    tags=["chest X-ray"],
    default_args=callbacks.TASKS,
    on_failure_callback=callbacks.mail_silent_failures,
    dag_display_name="Chest X-ray rollback",
)
def cxr_rollback() -> None:
    roll_back() >> tell().as_teardown()


cxr_rollback()
