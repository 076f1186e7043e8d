"""Airflow's REST API, as far as `make run` needs it. Functions take the client that `connect` returns."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from graphlib import TopologicalSorter
from typing import Any
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from cxr_ml.records import StepProgress

DAG = "cxr_retraining"
PROGRESS = "progress"  # key of the XCom in which a task tells how far it has come: dags/cxr_wiring.py
Json = dict[str, Any]


def connect(address: str, password: str) -> httpx.Client:
    """A client with a token of the user admin. Raises httpx.HTTPError where the server does not answer."""
    # trust_env: no proxy between this machine and itself.
    client = httpx.Client(base_url=address, timeout=30, trust_env=False)
    answer = client.post("/auth/token", json={"username": "admin", "password": password}).raise_for_status()
    client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
    return client


def get(client: httpx.Client, path: str, pause: Callable[[float], None] = time.sleep, **params: object) -> Json:
    """GET below /api/v2. Asks again for up to a minute: training on all cores can make the server slow to answer.

    Raises:
        httpx.HTTPError: still no answer, or a refusal.
    """
    end = time.monotonic() + 60
    while True:
        try:
            answer = client.get(f"/api/v2/{path}", params=params)  # type: ignore[arg-type]
            if answer.status_code < 500 or time.monotonic() > end:
                return answer.raise_for_status().json()
        except httpx.TransportError:
            if time.monotonic() > end:
                raise
        pause(2)


def unhealthy(address: str) -> list[str]:
    """The services that Airflow's health page does not call healthy yet; all of them while it does not answer."""
    services = ["metadatabase", "scheduler", "dag_processor", "triggerer"]
    try:
        health = httpx.get(f"{address}/api/v2/monitor/health", timeout=10, trust_env=False).raise_for_status().json()
    except httpx.HTTPError:
        return ["api-server"]
    return [name for name in services if (health.get(name) or {}).get("status") != "healthy"]


def build_execution_api(address: str) -> None:
    """Has the server build the API that tasks use: it does so with the first request, which takes seconds."""
    # The first step of a run would wait for it; here the DAG is read meanwhile.
    httpx.get(f"{address}/execution/health", timeout=120, trust_env=False)


def parsed_since(client: httpx.Client, since: datetime) -> bool:
    """Whether the DAG's file was read after `since`, so that what runs is what the file says now."""
    answer = client.get(f"/api/v2/dags/{DAG}")
    if answer.status_code == 404:
        return False
    parsed = answer.raise_for_status().json()["last_parsed_time"]
    return bool(parsed) and datetime.fromisoformat(parsed) > since


def import_errors(client: httpx.Client, since: datetime) -> list[str]:
    """Stack traces of DAG files that could not be imported after `since`."""
    errors = get(client, "importErrors")["import_errors"]
    return [e["stack_trace"] for e in errors if datetime.fromisoformat(e["timestamp"]) > since]


def set_pool(client: httpx.Client, name: str, slots: int, description: str) -> None:
    """Makes or updates a pool."""
    body = {"name": name, "slots": slots, "description": description, "include_deferred": False}
    if client.post("/api/v2/pools", json=body).status_code == 409:
        body = {"pool": name, "slots": slots, "description": description, "include_deferred": False}
        client.patch(f"/api/v2/pools/{name}", json=body).raise_for_status()


def active_runs(client: httpx.Client) -> list[Json]:
    """Runs of the DAG that are queued or running, oldest first."""
    return get(client, f"dags/{DAG}/dagRuns", state=["queued", "running"], order_by="run_after")["dag_runs"]


def fail_run(client: httpx.Client, run_id: str, note: str) -> None:
    """Marks a run and its unfinished tasks as failed."""
    body = {"state": "failed", "note": note}
    client.patch(f"/api/v2/dags/{DAG}/dagRuns/{run_id}", json=body).raise_for_status()


def set_paused(client: httpx.Client, paused: bool) -> None:
    """Pauses the DAG or lets it run."""
    client.patch(f"/api/v2/dags/{DAG}", json={"is_paused": paused}, timeout=5).raise_for_status()


def overdue(client: httpx.Client) -> bool:
    """Whether a weekly run is due that Airflow has not made yet; it does so once the DAG is not paused."""
    due = get(client, f"dags/{DAG}")["next_dagrun_run_after"]
    return bool(due) and datetime.fromisoformat(due) <= datetime.now(UTC)


def trigger(client: httpx.Client, conf: Json) -> str:
    """Starts a run by hand with `conf` for the DAG's form. Returns its run id."""
    body = {"logical_date": None, "conf": conf}
    return client.post(f"/api/v2/dags/{DAG}/dagRuns", json=body).raise_for_status().json()["dag_run_id"]


def task_order(client: httpx.Client) -> dict[str, int]:
    """Task id -> place in the DAG's order of work."""
    tasks = get(client, f"dags/{DAG}/tasks")["tasks"]
    graph: dict[str, set[str]] = {task["task_id"]: set() for task in tasks}
    for task in tasks:
        for downstream in task["downstream_task_ids"] or ():
            graph[downstream].add(task["task_id"])
    return {task: place for place, task in enumerate(TopologicalSorter(graph).static_order())}


def run_state(client: httpx.Client, run_id: str, pause: Callable[[float], None]) -> str:
    """queued, running, success or failed."""
    return get(client, f"dags/{DAG}/dagRuns/{run_id}", pause)["state"]


def task_instances(client: httpx.Client, run_id: str, pause: Callable[[float], None]) -> list[Json]:
    """Every task of a run, mapped ones one by one."""
    found: list[Json] = []
    while True:  # the server gives 100 at once
        path = f"dags/{DAG}/dagRuns/{run_id}/taskInstances"
        page = get(client, path, pause, limit=100, offset=len(found), order_by="id")
        found += page["task_instances"]
        if len(found) >= page["total_entries"] or not page["task_instances"]:
            return found


def progress(client: httpx.Client, run_id: str, task: Json) -> StepProgress | None:
    """How far a running task says it has come; None where it said nothing, or the server does not answer now."""
    run = quote(run_id, safe="")
    path = f"/api/v2/dags/{DAG}/dagRuns/{run}/taskInstances/{task['task_id']}/xcomEntries/{PROGRESS}"
    try:
        answer = client.get(path, params={"map_index": task["map_index"]}, timeout=5)
        return StepProgress.model_validate(answer.json()["value"]) if answer.status_code == 200 else None
    except (httpx.TransportError, ValidationError):
        return None


def log_lines(client: httpx.Client, run_id: str, task: Json, last: int = 25) -> list[str]:
    """The last lines of a task's newest log, with exceptions as `Type: message`; only errors where there are any."""
    path = f"dags/{DAG}/dagRuns/{run_id}/taskInstances/{task['task_id']}/logs/{task['try_number']}"
    entries = get(client, path, map_index=task["map_index"])["content"]
    entries = [{"event": entry} if isinstance(entry, str) else entry for entry in entries]
    errors = [entry for entry in entries if entry.get("level") in ("error", "critical")]
    texts: list[str] = []
    for entry in errors or entries:
        texts.append(entry["event"])
        texts += [f"{error['exc_type']}: {error['exc_value']}" for error in entry.get("error_detail") or ()]
    return [line for text in texts for line in text.splitlines()][-last:]
