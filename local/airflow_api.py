"""Airflow's REST API, as far as `make run` needs it. Functions take the client that `connect` returns.

All of them raise httpx.HTTPError where the server does not answer or refuses.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from graphlib import TopologicalSorter
from typing import Any, TypedDict
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from cxr_ml.records import StepProgress

DAG = "cxr_retraining"
PROGRESS = "progress"  # key of the XCom in which a task reports how far it has come: dags/cxr_airflow/context.py
TEARDOWN = "mail"  # the step that Airflow runs whatever became of the others: dags/cxr_retraining.py
FINISHED = ("success", "failed", "skipped", "upstream_failed", "removed")
GPU_POOL = {"name": "gpu", "slots": 1, "description": "One training at a time", "include_deferred": False}
Json = dict[str, Any]


class DagRun(TypedDict):
    """A run of the DAG, as far as it is used here. Times are ISO 8601."""

    dag_run_id: str
    run_after: str
    queued_at: str | None


class TaskInstance(TypedDict):
    """A task of a run, as far as it is used here. Times are ISO 8601; None: not yet."""

    id: str
    task_id: str
    map_index: int  # -1: not mapped
    rendered_map_index: str | None
    try_number: int
    state: str | None
    start_date: str | None
    end_date: str | None


def connect(address: str, password: str) -> httpx.Client:
    """Returns a client with a token of the user admin."""
    # trust_env: no proxy between this machine and itself.
    client = httpx.Client(base_url=address, timeout=30, trust_env=False)
    response = client.post("/auth/token", json={"username": "admin", "password": password}).raise_for_status()
    client.headers["Authorization"] = f"Bearer {response.json()['access_token']}"
    return client


def get(client: httpx.Client, path: str, pause: Callable[[float], None] = time.sleep, **params: object) -> Json:
    """Returns the answer to a GET below /api/v2.

    Asks again for up to a minute: training on all cores can make the server slow to answer.
    """
    end = time.monotonic() + 60
    while True:
        try:
            response = client.get(f"/api/v2/{path}", params=params)  # type: ignore[arg-type]  # httpx takes any value
            if response.status_code < 500 or time.monotonic() > end:
                return response.raise_for_status().json()
        except httpx.TransportError:
            if time.monotonic() > end:
                raise
        pause(2)


def list_unhealthy_services(address: str) -> list[str]:
    """Returns the services that Airflow's health page does not call healthy yet; all while it does not answer."""
    services = ["metadatabase", "scheduler", "dag_processor", "triggerer"]
    try:
        health = httpx.get(f"{address}/api/v2/monitor/health", timeout=10, trust_env=False).raise_for_status().json()
    except httpx.HTTPError:
        return ["api-server"]
    return [name for name in services if (health.get(name) or {}).get("status") != "healthy"]


def build_execution_api(address: str) -> None:
    """Makes the server build the API that tasks use; it does so with the first request, which takes seconds."""
    # The first step of a run would wait for it; here the DAG is read meanwhile.
    httpx.get(f"{address}/execution/health", timeout=120, trust_env=False)


def is_parsed_since(client: httpx.Client, since: datetime) -> bool:
    """Returns whether the DAG's file was read after `since`, so that what runs is what the file says now."""
    response = client.get(f"/api/v2/dags/{DAG}")
    if response.status_code == 404:
        return False
    parsed = response.raise_for_status().json()["last_parsed_time"]
    return bool(parsed) and datetime.fromisoformat(parsed) > since


def list_import_errors(client: httpx.Client, since: datetime) -> list[str]:
    """Returns the stack traces of DAG files that could not be imported after `since`."""
    errors = get(client, "importErrors")["import_errors"]
    return [e["stack_trace"] for e in errors if datetime.fromisoformat(e["timestamp"]) > since]


def make_gpu_pool(client: httpx.Client) -> None:
    """Makes the pool of the trainings, or brings it up to date."""
    if client.post("/api/v2/pools", json=GPU_POOL).status_code == 409:
        body = {("pool" if field == "name" else field): value for field, value in GPU_POOL.items()}
        client.patch(f"/api/v2/pools/{GPU_POOL['name']}", json=body).raise_for_status()


def list_active_runs(client: httpx.Client) -> list[DagRun]:
    """Returns the runs of the DAG that are queued or running, oldest first."""
    return get(client, f"dags/{DAG}/dagRuns", state=["queued", "running"], order_by="run_after")["dag_runs"]


def fail_run(client: httpx.Client, run_id: str, note: str) -> None:
    """Ends a run as failed: its running tasks fail, those that have not begun are skipped."""
    run = f"/api/v2/dags/{DAG}/dagRuns/{quote(run_id, safe='')}"
    # While the teardown is unfinished, Airflow 3.3 leaves it and the run's state as they are: the scheduler would run
    # the teardown and then take the run's state from it.
    for task in list_task_instances(client, run_id, time.sleep):
        if task["task_id"] == TEARDOWN and task["state"] not in FINISHED:
            client.patch(f"{run}/taskInstances/{TEARDOWN}", json={"new_state": "skipped"}).raise_for_status()
    client.patch(run, json={"state": "failed", "note": note}).raise_for_status()


def set_paused(client: httpx.Client, paused: bool) -> None:
    """Pauses the DAG or lets it run."""
    client.patch(f"/api/v2/dags/{DAG}", json={"is_paused": paused}, timeout=5).raise_for_status()


def is_weekly_run_overdue(client: httpx.Client) -> bool:
    """Returns whether a weekly run is due that Airflow has not made yet; it does so once the DAG is not paused."""
    due = get(client, f"dags/{DAG}")["next_dagrun_run_after"]
    return bool(due) and datetime.fromisoformat(due) <= datetime.now(UTC)


def trigger_run(client: httpx.Client, conf: Json) -> str:
    """Starts a run by hand with `conf` for the DAG's form. Returns its run id."""
    body = {"logical_date": None, "conf": conf}
    return client.post(f"/api/v2/dags/{DAG}/dagRuns", json=body).raise_for_status().json()["dag_run_id"]


def get_task_order(client: httpx.Client) -> dict[str, int]:
    """Returns task id -> place in the DAG's order of work."""
    tasks = get(client, f"dags/{DAG}/tasks")["tasks"]
    graph: dict[str, set[str]] = {task["task_id"]: set() for task in tasks}
    for task in tasks:
        for downstream in task["downstream_task_ids"] or ():
            graph[downstream].add(task["task_id"])
    return {task: place for place, task in enumerate(TopologicalSorter(graph).static_order())}


def get_run_state(client: httpx.Client, run_id: str, pause: Callable[[float], None]) -> str:
    """Returns queued, running, success or failed."""
    return get(client, f"dags/{DAG}/dagRuns/{run_id}", pause)["state"]


def list_task_instances(client: httpx.Client, run_id: str, pause: Callable[[float], None]) -> list[TaskInstance]:
    """Returns every task of a run, mapped ones one by one."""
    instances: list[TaskInstance] = []
    while True:  # the server gives 100 at once
        path = f"dags/{DAG}/dagRuns/{run_id}/taskInstances"
        page = get(client, path, pause, limit=100, offset=len(instances), order_by="id")
        instances += page["task_instances"]
        if len(instances) >= page["total_entries"] or not page["task_instances"]:
            return instances


def get_progress(client: httpx.Client, run_id: str, task: TaskInstance) -> StepProgress | None:
    """Returns how far a running task has come; None where it reports nothing or the server does not answer now."""
    run = quote(run_id, safe="")
    path = f"/api/v2/dags/{DAG}/dagRuns/{run}/taskInstances/{task['task_id']}/xcomEntries/{PROGRESS}"
    try:
        response = client.get(path, params={"map_index": task["map_index"]}, timeout=5)
        return StepProgress.model_validate(response.json()["value"]) if response.status_code == 200 else None
    except (httpx.TransportError, ValidationError):
        return None


def get_log_lines(client: httpx.Client, run_id: str, task: TaskInstance, max_lines: int = 25) -> list[str]:
    """Returns the last lines of a task's newest log: only its errors where there are any, `Type: message`."""
    path = f"dags/{DAG}/dagRuns/{run_id}/taskInstances/{task['task_id']}/logs/{task['try_number']}"
    entries = get(client, path, map_index=task["map_index"])["content"]
    entries = [{"event": entry} if isinstance(entry, str) else entry for entry in entries]
    errors = [entry for entry in entries if entry.get("level") in ("error", "critical")]
    texts: list[str] = []
    for entry in errors or entries:
        texts.append(entry["event"])
        texts += [f"{error['exc_type']}: {error['exc_value']}" for error in entry.get("error_detail") or ()]
    return [line for text in texts for line in text.splitlines()][-max_lines:]
