"""
### Rollback of the chest X-ray classifier

Makes an earlier champion champion again. Trigger it by hand, with the reason: it goes into the history with your name,
and to the team by mail. Nothing is trained and nothing is deleted; the model rolled back from can be named later.

DAGs that follow the asset `cxr_champion` are told, as after a promotion.
"""

import cxr_wiring as wiring
from airflow.sdk import Param, dag, get_current_context, task, teardown
from airflow.sdk.exceptions import AirflowSkipException


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
    default_args=wiring.TASKS,
    on_failure_callback=wiring.mail_silent_failures,
    dag_display_name="Chest X-ray rollback",
)
def cxr_rollback() -> None:
    @task(outlets=[wiring.CHAMPION])
    def roll_back(params: dict, outlet_events: object = None) -> None:
        """Moves the champion pointer to the earlier model, and tells the history by whom and why."""
        context = get_current_context()
        with wiring.settings() as s, wiring.progress(context["ti"]):
            from cxr_ml.registry import promotion

            entry = promotion.rollback(s, params["to"], wiring.actor(context), params["why"], wiring.run_name(context))
        print(entry.model_dump_json(indent=2))
        wiring.announce(outlet_events, entry.model, entry.version)

    @teardown
    @task(**wiring.TELLING)
    def tell() -> None:
        """Mails the team which model is champion again, by whom and why. Red in a green run: only the mail failed."""
        context = get_current_context()
        with wiring.settings() as s, wiring.progress(context["ti"]):
            from cxr_ml.reporting import notify

            link = wiring.run_link(s, context["ti"])
            if not notify.mail_rollback(s, wiring.run_name(context), s.mail_to, link):
                raise AirflowSkipException("There is nothing to tell, or nobody to tell it to.")

    roll_back() >> tell()


cxr_rollback()
