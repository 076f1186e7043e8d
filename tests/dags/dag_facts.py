"""Reads the DAG as Airflow's dag-processor does and prints what it found as JSON. Run with a PYTHONPATH of dags/."""

import json
import sys
from datetime import timedelta

from airflow.dag_processing.dagbag import DagBag


def plain(value):
    return value.total_seconds() if isinstance(value, timedelta) else value


def names(callbacks):
    return [call.__name__ for call in (callbacks if isinstance(callbacks, list | tuple) else [callbacks])]


def facts(task):
    operator = getattr(task, "operator_class", type(task))
    return {
        "kind": operator.__name__,
        "mapped": task.is_mapped,
        "downstream": sorted(task.downstream_task_ids),
        "rule": task.trigger_rule.value,
        "pool": task.pool,
        "queue": task.queue,
        "retries": task.retries,
        "timeout": plain(task.execution_timeout),
        "response_timeout": plain(getattr(task, "response_timeout", None)),
        "defaults": getattr(task, "defaults", None),
        "doc": task.doc_md,
        "callbacks": names(task.on_failure_callback),
        "policy": None if task.retry_policy is None else task.retry_policy.serialize(),
    }


def main(folder):
    bag = DagBag(dag_folder=folder)
    dag = bag.dags.get("cxr_retraining")
    found = {"errors": bag.import_errors, "dags": sorted(bag.dags), "modules": sorted(sys.modules)}
    if dag is not None:
        found["dag"] = {
            "timetable": dag.timetable.__class__.__name__,
            "cron": dag.timetable.expression,
            "timezone": str(dag.timetable.timezone),
            "run_immediately": plain(dag.timetable.run_immediately),
            "start_date": str(dag.start_date) if dag.start_date else None,
            "catchup": dag.catchup,
            "max_active_runs": dag.max_active_runs,
            "doc": dag.doc_md,
            "callbacks": names(dag.on_failure_callback),
            "groups": {name: group.tooltip for name, group in dag.task_group.get_task_group_dict().items() if name},
            "tasks": {task.task_id: facts(task) for task in dag.tasks},
            "form": {name: dag.params.get_param(name).serialize() for name in dag.params},
        }
    print("FACTS" + json.dumps(found))


main(sys.argv[1])
