"""Shows a run of the DAG while it goes on."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import httpx
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from cxr_ml.records import StepProgress
from cxr_ml.reporting import formatting
from local import airflow_api
from local.airflow_api import TaskInstance

STYLES = {
    "success": "green",
    "failed": "bold red",
    "upstream_failed": "red",
    "skipped": "dim",
    "running": "bold cyan",
    "queued": "cyan",
    "up_for_retry": "yellow",
    "awaiting_input": "bold yellow",
    "deferred": "yellow",
}
WORDS = {
    None: "waiting",
    "scheduled": "waiting",
    "up_for_retry": "failed, tried again soon",
    "upstream_failed": "not run, an earlier task failed",
    "awaiting_input": "waits for an approval in the UI",
}

PROGRESS_SECONDS = 2.0  # after which the progress of running tasks is asked for again
MIN_LINE_SECONDS = 10.0  # between two lines about the progress of one task
# No work was or is done in these, whatever the dates say.
IDLE_STATES = (None, "scheduled", "queued", "skipped", "upstream_failed")


class TaskKey(NamedTuple):
    """Which task of a run it is. Not its label: a mapped task gets its name only when it runs."""

    task_id: str
    map_index: int


class ProgressLine(NamedTuple):
    """The last line that was printed about the progress of a task."""

    at: datetime
    progress: StepProgress


Progress = dict[TaskKey, StepProgress]


def key_of(task: TaskInstance) -> TaskKey:
    """Returns the key of a task."""
    return TaskKey(task["task_id"], task["map_index"])


def label_of(task: TaskInstance) -> str:
    """Returns what a person calls this task: its id, and which of the mapped ones."""
    if task["map_index"] < 0:
        return task["task_id"]
    return f"{task['task_id']} [{task['rendered_map_index'] or task['map_index']}]"


def seconds_of(task: TaskInstance, now: datetime) -> float | None:
    """Returns how long the task has run so far; None before its start."""
    if not task["start_date"]:
        return None
    end = datetime.fromisoformat(task["end_date"]) if task["end_date"] else now
    return max(0.0, (end - datetime.fromisoformat(task["start_date"])).total_seconds())


def _describe_state(task: TaskInstance) -> str:
    return WORDS.get(task["state"]) or task["state"] or "waiting"


def _format_duration(task: TaskInstance, now: datetime) -> str:
    seconds = seconds_of(task, now)
    return "" if seconds is None or task["state"] in IDLE_STATES else f"{seconds:.1f} s"


def build_table(tasks: list[TaskInstance], state: str, now: datetime, progress: Progress | None = None) -> Table:
    """Returns the tasks as they are now, with the progress of those that run."""
    progress = progress or {}
    table = Table("Task", "State", box=None, pad_edge=False, caption=f"run {state}", caption_justify="left")
    table.add_column("Time", justify="right")
    table.add_column("Progress")
    for task in tasks:
        style = STYLES.get(task["state"] or "", "")
        step = progress.get(key_of(task)) if task["state"] == "running" else None
        table.add_row(
            escape(label_of(task)),
            f"[{style}]{_describe_state(task)}[/]" if style else _describe_state(task),
            _format_duration(task, now),
            escape(formatting.progress(step)) if step else "",
        )
    return table


def list_changes(tasks: list[TaskInstance], known: dict[TaskKey, str], now: datetime) -> list[str]:
    """Returns a line for each task whose state changed since the last call; `known` keeps states between calls."""
    lines = []
    for task in tasks:
        state = _describe_state(task)
        if state != known.get(key_of(task), "waiting"):
            duration = _format_duration(task, now) if task["end_date"] else ""
            lines.append(_format_line(task, f"{state}{f' ({duration})' if duration else ''}", now))
        known[key_of(task)] = state
    return lines


def _format_line(task: TaskInstance, text: str, now: datetime) -> str:
    return f"{now.astimezone():%H:%M:%S}  {label_of(task):<34} {text}"


def list_progress(
    tasks: list[TaskInstance], progress: Progress, printed: dict[TaskKey, ProgressLine], now: datetime
) -> list[str]:
    """Returns a line for each running task that has come further, at least MIN_LINE_SECONDS after its last line.

    Args:
        tasks: of the run.
        progress: how far the running ones have come.
        printed: the last line of each; kept up to date, and handed in again at the next call.
        now: the time.
    """
    lines = []
    for task in tasks:
        step = progress.get(key_of(task)) if task["state"] == "running" else None
        last = printed.get(key_of(task))
        if step and (last is None or _is_new(step, last, now)):
            lines.append(_format_line(task, formatting.progress(step), now))
            printed[key_of(task)] = ProgressLine(now, step)
    return lines


def _is_new(step: StepProgress, last: ProgressLine, now: datetime) -> bool:
    return step != last.progress and (now - last.at).total_seconds() >= MIN_LINE_SECONDS


def _read_progress(client: httpx.Client, run_id: str, tasks: list[TaskInstance]) -> Progress:
    running = [task for task in tasks if task["state"] == "running"]
    steps = {key_of(task): airflow_api.get_progress(client, run_id, task) for task in running}
    return {key: step for key, step in steps.items() if step}


def watch_run(
    client: httpx.Client, run_id: str, console: Console, pause: Callable[[float], None]
) -> tuple[str, list[TaskInstance]]:
    """Shows the run until it has ended: a live table on a terminal, else one line for each change.

    Returns:
        The run's state, success or failed, and its tasks.
    """
    order = airflow_api.get_task_order(client)
    known: dict[TaskKey, str] = {}
    printed: dict[TaskKey, ProgressLine] = {}
    progress: Progress = {}
    progress_read_at = -PROGRESS_SECONDS
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    if live:
        live.start()
    try:
        while True:
            # The state first: when it says that the run ended, the tasks read after it are the last word.
            state = airflow_api.get_run_state(client, run_id, pause)
            tasks = airflow_api.list_task_instances(client, run_id, pause)
            tasks.sort(key=lambda t: (order.get(t["task_id"], len(order)), t["map_index"]))
            if time.monotonic() - progress_read_at >= PROGRESS_SECONDS:
                progress, progress_read_at = _read_progress(client, run_id, tasks), time.monotonic()
            now = datetime.now(UTC)
            if live:
                live.update(build_table(tasks, state, now, progress), refresh=True)
            else:
                for line in [*list_changes(tasks, known, now), *list_progress(tasks, progress, printed, now)]:
                    console.print(line, markup=False, highlight=False, soft_wrap=True)
            if state in ("success", "failed"):
                return state, tasks
            pause(1.0)
    finally:
        if live:
            live.stop()


def print_failures(client: httpx.Client, run_id: str, tasks: list[TaskInstance], logs: Path, console: Console) -> None:
    """Prints each failed task with the end of its log; `logs` is the folder of Airflow's task logs."""
    for task in tasks:
        if task["state"] != "failed":
            continue
        console.print(f"\n[bold red]Task {escape(label_of(task))} failed.[/] The end of its log:")
        try:
            lines = airflow_api.get_log_lines(client, run_id, task)
        except httpx.HTTPError as error:
            lines = [f"(the log cannot be read through the API: {error})"]
        for line in lines:
            console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    if any(task["state"] == "failed" for task in tasks):
        folder = logs / f"dag_id={airflow_api.DAG}" / f"run_id={run_id}"
        console.print(f"\nWhole logs: {folder}", markup=False, highlight=False, soft_wrap=True)
