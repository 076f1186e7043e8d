"""`make run`: starts everything on this machine, runs one retraining through Airflow, shows the outcome.

Environment: DROP (folder of labelled X-rays, or a .zip, .tar or .tar.gz of one), ONCE=1 (end with the run),
PROFILE (name in profiles/, or `default`),
CXR_AIRFLOW_DB (SQLAlchemy URL of Airflow's database), CXR_LOCAL (state folder instead of .local), and every CXR_*
setting. Exit status: 0 the run did its job, 1 a task or a service failed, 2 refused,
130 or 143 interrupted before that was known.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import httpx
from rich.console import Console
from rich.markup import escape

from cxr_ml import settings as settings_module
from cxr_ml.errors import Refused
from cxr_ml.settings import MailSettings
from cxr_ml.store import ObjectStore
from local import airflow_api, services, startup, state, watch
from local.drops import copy_drop
from local.preflight import check_drop, check_settings
from local.session import Failed, Session, Stopped, ending_everything, start_helper, wait_for_helper
from local.summary import print_summary, read_subjects

DEMO = "demo-001"


def follow(session: Session, client: httpx.Client, store: ObjectStore, settings: MailSettings, run_id: str) -> bool:
    """Shows a run until it has ended, and then what became of it. Returns whether all of its tasks did their job."""
    console = session.console
    known_mails = set(read_subjects(session.folder / "maildir"))
    session.note(f"Run {escape(run_id)}: {settings.ui_url}/dags/{airflow_api.DAG}/runs/{escape(run_id)}")
    began = time.monotonic()
    run_state, tasks = watch.watch_run(client, run_id, console, session.pause)
    session.note(f"The run ended after {time.monotonic() - began:.0f} s: {run_state}")
    watch.print_failures(client, run_id, tasks, session.folder / "airflow" / "logs", console)
    print_summary(store, run_id, session.folder, known_mails, console)
    return run_state == "success" and not any(task["state"] in ("failed", "upstream_failed") for task in tasks)


def end_interrupted_runs(session: Session, client: httpx.Client, since: datetime) -> None:
    """Ends the runs that an interrupted `make run` left unfinished: those begun before `since`."""
    for run in airflow_api.list_active_runs(client):
        begun = datetime.fromisoformat(run["queued_at"] or run["run_after"])
        if begun < since:
            airflow_api.fail_run(client, run["dag_run_id"], "`make run` was interrupted before this run had ended.")
            session.note(
                f"The run {escape(run['dag_run_id'])} of {begun.astimezone():%Y-%m-%d %H:%M} was interrupted; it was "
                "ended as failed. What it finished is kept: with the same settings, a training goes on from its last "
                "finished epoch."
            )


def retrain(
    session: Session,
    client: httpx.Client,
    store: ObjectStore,
    settings: MailSettings,
    drop: str,
    since: datetime,
    weekly: bool,
) -> bool:
    """Ends what an earlier `make run` left unfinished, lets an overdue weekly run go first, then runs ours.

    Args:
        session: this `make run`.
        client: for Airflow's API.
        store: the object store.
        settings: of the run.
        drop: name of the only drop to take in; "": all new ones.
        since: when this `make run` began.
        weekly: whether weekly runs are made.

    Returns:
        Whether all tasks of our run did their job.
    """
    end_interrupted_runs(session, client, since)
    if weekly and airflow_api.is_weekly_run_overdue(client):
        # Airflow starts it as soon as it may, before ours: it must not take our drop away unseen.
        airflow_api.set_paused(client, False)
        end = time.monotonic() + 60
        while airflow_api.is_weekly_run_overdue(client) and time.monotonic() < end:
            session.pause(0.5)
    for run in airflow_api.list_active_runs(client):
        session.note(f"Run {escape(run['dag_run_id'])} has just begun by schedule and goes first")
        follow(session, client, store, settings, run["dag_run_id"])
    run_id = airflow_api.trigger_run(client, {"drop": drop} if drop else {})
    airflow_api.set_paused(client, False)
    return follow(session, client, store, settings, run_id)


@contextmanager
def pausing_when_stopped(session: Session, client: httpx.Client) -> Iterator[None]:
    """When a signal comes, pauses the DAG: the next start decides what runs first, not what is left or due by then."""
    try:
        yield
    except Stopped:
        try:
            airflow_api.set_paused(client, True)
        except httpx.HTTPError:
            session.note("The DAG could not be paused")
        raise


def stay(session: Session) -> None:
    """Leaves everything up until a signal comes."""
    session.console.print("\nEverything stays up. Ctrl-C ends it.")
    while True:
        session.pause(0.5)


def run(session: Session, lock: int) -> int:
    """Starts everything, retrains, and stays up unless ONCE is set. Returns the exit status."""
    folder, console = session.folder, session.console
    once = os.environ.get("ONCE", "").lower() not in ("", "0", "no", "false")
    drop = os.environ.get("DROP", "")
    since = datetime.now(UTC)
    secrets = state.load_secrets(folder)
    env = services.take_environment(folder, secrets, schedule=not once)
    settings = settings_module.load()
    store = ObjectStore(settings.store)
    sources = [env[name] for name in ("CXR_PROFILE", "CXR_CONFIG") if name in env]
    session.note(f"State in {folder}, settings from {', '.join(sources) or 'their defaults'}")

    demo = None
    check_settings(settings)
    suites = start_helper(session, "suites", [sys.executable, "-m", "local.preflight"], env)
    if drop:
        drop, new = copy_drop(Path(drop), folder / "inbox", folder / "copying", partial(check_drop, store, settings))
        session.note(f"The drop {escape(drop)} is in the inbox" + ("" if new else " already"))
    elif not (folder / "inbox" / DEMO).exists():
        demo = start_helper(session, "demo-data", ["cxr-ml", "demo-data", str(folder / "copying" / DEMO)], env)
    startup.migrate_database(session, env)
    wait_for_helper(session, "suites", suites)
    startup.start_services(session, env, lock)
    startup.make_bucket(session, store)
    if demo:
        wait_for_helper(session, "demo-data", demo)
        (folder / "copying" / DEMO).rename(folder / "inbox" / DEMO)
        session.note(f"The demonstration drop {DEMO} is in the inbox")
    address, password = settings.mail.ui_url, secrets["ui_password"]
    login = f"UI        {address}   user admin   password {password}"
    client = startup.wait_for_airflow(session, address, password, since)
    console.print(f"        {login}", markup=False, highlight=False, soft_wrap=True)
    with pausing_when_stopped(session, client):
        succeeded = retrain(session, client, store, settings.mail, drop, since, weekly=not once)
    if not once:
        console.print(login, markup=False, highlight=False, soft_wrap=True)
        with suppress(Stopped), pausing_when_stopped(session, client):
            stay(session)
    return 0 if succeeded else 1


def main() -> int:
    """Runs, ends everything, and says in people's words what went wrong."""
    os.umask(0o077)
    console = Console()
    try:
        folder = state.folder()
        lock = state.hold(folder)
        session = Session(folder, console)
        with ending_everything(session):
            return run(session, lock)
    except Refused as error:
        print(error, file=sys.stderr)
        return 2
    except (Failed, httpx.HTTPError) as error:
        print(error, file=sys.stderr)
        return 1
    except Stopped as stopped:
        return int(stopped.args[0])


if __name__ == "__main__":
    sys.exit(main())
