"""Shows a run of the DAG while it goes on."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import httpx
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from cxr_ml.records import StepProgress
from cxr_ml.reporting import formatting
from local import airflow_api
from local.airflow_api import Json

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

LOOK = 2.0  # seconds after which the progress of running tasks is asked for again
SAID = 10.0  # seconds between two lines about the progress of one task, at least
IDLE = (None, "scheduled", "queued", "skipped", "upstream_failed")  # no work was or is done, whatever the dates say


Key = tuple[str, int]


def key(task: Json) -> Key:
    """Which task of the run it is. Not its label: a mapped task gets its name only when it runs."""
    return task["task_id"], task["map_index"]


def label(task: Json) -> str:
    """What a person calls this task: its id, and which of the mapped ones."""
    if task["map_index"] < 0:
        return task["task_id"]
    return f"{task['task_id']} [{task['rendered_map_index'] or task['map_index']}]"


def seconds(task: Json, now: datetime) -> float | None:
    """How long the task has run so far; None before its start."""
    if not task["start_date"]:
        return None
    end = datetime.fromisoformat(task["end_date"]) if task["end_date"] else now
    return max(0.0, (end - datetime.fromisoformat(task["start_date"])).total_seconds())


def _in_words(task: Json) -> str:
    return WORDS.get(task["state"], task["state"])


def _duration(task: Json, now: datetime) -> str:
    taken = seconds(task, now)
    return "" if taken is None or task["state"] in IDLE else f"{taken:.1f} s"


def table(tasks: list[Json], state: str, now: datetime, progress: dict[Key, StepProgress] | None = None) -> Table:
    """The tasks as they are now, with the progress of those that run."""
    told = progress or {}
    shown = Table("Task", "State", box=None, pad_edge=False, caption=f"run {state}", caption_justify="left")
    shown.add_column("Time", justify="right")
    shown.add_column("Progress")
    for task in tasks:
        style = STYLES.get(task["state"], "")
        shown.add_row(
            escape(label(task)),
            f"[{style}]{_in_words(task)}[/]" if style else _in_words(task),
            _duration(task, now),
            escape(formatting.progress(told[key(task)])) if task["state"] == "running" and key(task) in told else "",
        )
    return shown


def changes(tasks: list[Json], known: dict[Key, str], now: datetime) -> list[str]:
    """One line for each task whose state changed since the last call; `known` keeps the states between calls."""
    lines = []
    for task in tasks:
        state = _in_words(task)
        if state != known.get(key(task), "waiting"):
            taken = _duration(task, now) if task["end_date"] else ""
            lines.append(_line(task, f"{state}{f' ({taken})' if taken else ''}", now))
        known[key(task)] = state
    return lines


def _line(task: Json, text: str, now: datetime) -> str:
    return f"{now.astimezone():%H:%M:%S}  {label(task):<34} {text}"


def progress_lines(
    tasks: list[Json], progress: dict[Key, StepProgress], said: dict[Key, tuple[datetime, StepProgress]], now: datetime
) -> list[str]:
    """A line for each running task that came on, SAID seconds or more after its last; `said` is kept between calls."""
    lines = []
    for task in tasks:
        told = progress.get(key(task)) if task["state"] == "running" else None
        at, before = said.get(key(task), (None, None))
        if told and told != before and (at is None or (now - at).total_seconds() >= SAID):
            lines.append(_line(task, formatting.progress(told), now))
            said[key(task)] = now, told
    return lines


def watch(
    client: httpx.Client, run_id: str, console: Console, pause: Callable[[float], None]
) -> tuple[str, list[Json]]:
    """Shows the run until it has ended: a live table on a terminal, else one line for each change.

    Returns:
        The run's state, success or failed, and its tasks.
    """
    order = airflow_api.task_order(client)

    def look() -> tuple[str, list[Json]]:
        # The state first: when it says that the run ended, the tasks read after it are the last word.
        state = airflow_api.run_state(client, run_id, pause)
        tasks = airflow_api.task_instances(client, run_id, pause)
        return state, sorted(tasks, key=lambda t: (order.get(t["task_id"], len(order)), t["map_index"]))

    known: dict[Key, str] = {}
    said: dict[Key, tuple[datetime, StepProgress]] = {}
    progress: dict[Key, StepProgress] = {}
    looked = -LOOK
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    if live:
        live.start()
    try:
        while True:
            state, tasks = look()
            if time.monotonic() - looked >= LOOK:
                running = [task for task in tasks if task["state"] == "running"]
                found = {key(task): airflow_api.progress(client, run_id, task) for task in running}
                progress, looked = {k: told for k, told in found.items() if told}, time.monotonic()
            now = datetime.now(UTC)
            if live:
                live.update(table(tasks, state, now, progress), refresh=True)
            else:
                for line in [*changes(tasks, known, now), *progress_lines(tasks, progress, said, now)]:
                    console.print(line, markup=False, highlight=False, soft_wrap=True)
            if state in ("success", "failed"):
                return state, tasks
            pause(1.0)
    finally:
        if live:
            live.stop()


def show_failures(client: httpx.Client, run_id: str, tasks: list[Json], logs: Path, console: Console) -> None:
    """Prints each failed task with the end of its log; `logs` is the folder of Airflow's task logs."""
    for task in tasks:
        if task["state"] != "failed":
            continue
        console.print(f"\n[bold red]Task {escape(label(task))} failed.[/] The end of its log:")
        try:
            lines = airflow_api.log_lines(client, run_id, task)
        except httpx.HTTPError as error:
            lines = [f"(the log cannot be read through the API: {error})"]
        for line in lines:
            console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    if any(task["state"] == "failed" for task in tasks):
        where = logs / f"dag_id={airflow_api.DAG}" / f"run_id={run_id}"
        console.print(f"\nWhole logs: {where}", markup=False, highlight=False, soft_wrap=True)
