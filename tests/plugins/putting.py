"""Reads the DAGs, then puts a run and its tasks into states, in one process: to import Airflow takes seconds.

Each line of standard input is a JSON object with the run, its state, the states of its tasks and what they have told.
Makes the run where there is none. Says `put` after each.
"""

import gc
import json
import sys
from datetime import UTC, datetime, timedelta

gc.set_threshold(100_000)  # else a quarter of the time goes into looking through what imports make

DAG = "cxr_retraining"


def put(given):
    from airflow.api.common.trigger_dag import trigger_dag
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from airflow.utils.types import DagRunTriggeredByType
    from sqlalchemy import select, update

    if not DagRun.find(dag_id=DAG, run_id=given["run"]):
        trigger_dag(DAG, triggered_by=DagRunTriggeredByType.TEST, run_id=given["run"], triggering_user_name="ann")
    now = datetime.now(UTC)
    with create_session() as session:
        run = session.scalar(select(DagRun).where(DagRun.dag_id == DAG, DagRun.run_id == given["run"]))
        run.start_date = now - timedelta(minutes=10)
        run.end_date = None if given["state"] == "running" else now
        run.set_state(given["state"])
        for name, (state, index, minutes) in given["tasks"].items():
            one = (TaskInstance.dag_id == DAG, TaskInstance.run_id == given["run"], TaskInstance.task_id == name)
            began = now - timedelta(minutes=minutes)
            values = {"state": state, "map_index": index, "start_date": began, "queued_dttm": began}
            session.execute(update(TaskInstance).where(*one).values(values))
        for name, index, value in given["told"]:
            XComModel.set(
                "progress", value, dag_id=DAG, task_id=name, run_id=given["run"], map_index=index, serialize=False,
                session=session,
            )  # fmt: skip


if __name__ == "__main__":
    from airflow.__main__ import main

    sys.argv[1:] = ["dags", "reserialize"]
    main()
    for line in sys.stdin:
        put(json.loads(line))
        print("put", flush=True)
