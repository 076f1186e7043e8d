"""Reads a DAG as Airflow's dag-processor does and prints what it found as JSON. Run with a PYTHONPATH of dags/.

Arguments: the file, and a JSON list of environments. Each is read in a fork of its own, which imports Airflow no more.
"""

import json
import multiprocessing
import os
import sys
from datetime import timedelta
from pathlib import Path

from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.definitions._internal.types import NOTSET


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
        "harmless": task.is_teardown and not task.on_failure_fail_dagrun,
        "outlets": [asset.name for asset in task.outlets],
        "policy": None if task.retry_policy is None else task.retry_policy.serialize(),
    }


def field(param):
    """The field as JSON, without a value where it has to be filled in."""
    return {name: value for name, value in param.serialize().items() if value is not NOTSET}


def read(file, variables):
    os.environ.update(variables)
    bag = DagBag(dag_folder=file)
    dag = bag.dags.get(Path(file).stem)
    found = {"errors": bag.import_errors, "dags": sorted(bag.dags), "modules": sorted(sys.modules)}
    if dag is not None:
        found["dag"] = {
            "timetable": dag.timetable.__class__.__name__,
            "cron": getattr(dag.timetable, "expression", None),
            "timezone": str(getattr(dag.timetable, "timezone", None)),
            "run_immediately": plain(getattr(dag.timetable, "run_immediately", None)),
            "paused": dag.is_paused_upon_creation,
            "start_date": str(dag.start_date) if dag.start_date else None,
            "catchup": dag.catchup,
            "max_active_runs": dag.max_active_runs,
            "doc": dag.doc_md,
            "callbacks": names(dag.on_failure_callback),
            "groups": {name: group.tooltip for name, group in dag.task_group.get_task_group_dict().items() if name},
            "tasks": {task.task_id: facts(task) for task in dag.tasks},
            "form": {name: field(dag.params.get_param(name)) for name in dag.params},
        }
    return found


if __name__ == "__main__":
    jobs = [(sys.argv[1], variables) for variables in json.loads(sys.argv[2])]
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        print("FACTS" + json.dumps(pool.starmap(read, jobs, chunksize=1)))
