"""`make run`: starts everything on this machine, runs one retraining through Airflow, shows the outcome.

Environment: DROP (folder of labelled X-rays, or a .zip, .tar or .tar.gz of one), ONCE=1 (end with the run),
PROFILE (name in profiles/, or `default`),
CXR_AIRFLOW_DB (SQLAlchemy URL of Airflow's database), CXR_LOCAL (state folder instead of .local), and every CXR_*
setting. Exit status: 0 the run did its job, 1 a task or a service failed, 2 refused,
130 or 143 interrupted before that was known.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import httpx
from botocore.exceptions import BotoCoreError, ClientError
from rich.console import Console
from rich.markup import escape

from cxr_ml import settings as settings_module
from cxr_ml import store
from cxr_ml.errors import Refused
from local import airflow_api, keeper, services, state
from local.drops import copy_drop
from local.logs import dead_service, tail
from local.outcome import mails, show
from local.preflight import check_drop, check_settings
from local.watch import show_failures, watch

DEMO = "demo-001"
START_SECONDS = 240.0  # longest start of all services; measured: 20 on 2 cores


class Stopped(BaseException):
    """A signal, or the end of the starter. Not an Exception: nothing on the way may swallow it."""


class Failed(Exception):
    """A service or a helper failed; the message says which and shows the end of its log."""


class Session:
    """One `make run`: its state folder, the processes it started, and the console."""

    def __init__(self, folder: Path, console: Console) -> None:
        self.folder = folder
        self.logs = folder / "logs"
        self.console = console
        self.parent = os.getppid()
        self.began = time.monotonic()
        self.keeper: subprocess.Popen[bytes] | None = None

    def pause(self, seconds: float) -> None:
        """Sleeps; raises Stopped when the starter (make) is gone, Failed when a service is."""
        if os.getppid() != self.parent:
            raise Stopped(143)
        if self.keeper and self.keeper.poll() is not None:
            raise Failed(dead_service(self.logs))
        time.sleep(seconds)

    def note(self, text: str) -> None:
        """One line with the seconds since the start."""
        self.console.print(f"[dim]{time.monotonic() - self.began:6.1f} s[/]  {text}", highlight=False, soft_wrap=True)


@contextmanager
def ending_everything(session: Session) -> Iterator[None]:
    """On the way out, however that happens, ends all processes of the session; a second signal ends them at once."""
    ending = False

    def on_signal(number: int, _frame: object) -> None:
        if not ending:
            raise Stopped(128 + number)
        if session.keeper and session.keeper.poll() is None:
            session.keeper.terminate()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, on_signal)
    keeper.adopt_orphans()
    try:
        yield
    finally:
        ending = True
        if session.keeper:
            session.note("Ending all services")
            assert session.keeper.stdin
            session.keeper.stdin.close()
            session.keeper.wait()
        # What is left was started beside the keeper, or by a keeper that somebody killed.
        keeper.sweep(set())


def helper(session: Session, name: str, command: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
    """Starts a command that ends by itself, with its output in logs/<name>.log."""
    with open(session.logs / f"{name}.log", "wb") as log:
        return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def finish(session: Session, name: str, process: subprocess.Popen[bytes]) -> None:
    """Waits for a helper. Raises Refused with its words where its status is 2, Failed where it failed otherwise."""
    while process.poll() is None:
        session.pause(0.1)
    log = session.logs / f"{name}.log"
    if process.returncode == 2:
        raise Refused(log.read_text(errors="replace").strip())
    if process.returncode:
        raise Failed(f"{name} failed. {log} ends with:\n{tail(log)}")


def migrate(session: Session, env: dict[str, str]) -> None:
    """Brings Airflow's database to the installed version, unless the last start did."""
    mark = session.folder / "airflow" / "migrated"
    wanted = f"{version('apache-airflow-core')} {env['AIRFLOW__DATABASE__SQL_ALCHEMY_CONN']}\n"
    if mark.is_file() and mark.read_text() == wanted:
        return
    finish(session, "migrate", helper(session, "migrate", ["airflow", "db", "migrate"], env))
    state.private_file(mark, wanted)
    session.note("Airflow's database is ready")


def start_services(session: Session, env: dict[str, str], lock: int) -> None:
    """Starts local/Procfile under honcho, and honcho under the keeper, which holds the lock until all has ended."""
    honcho = [sys.executable, "-m", "honcho", "-e", os.devnull, "-d", str(state.REPOSITORY), "--no-colour"]
    with open(session.logs / "honcho.log", "wb") as log:
        session.keeper = subprocess.Popen(
            [sys.executable, "-m", "local.keeper", *honcho, "-f", "local/Procfile", "start"],
            cwd=state.REPOSITORY,
            env=env,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=[lock],
            start_new_session=True,  # Ctrl-C in the terminal is for this process alone
        )


def make_bucket(session: Session, settings: settings_module.Settings) -> None:
    """Waits for the store and makes the bucket."""
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            store.client(settings.s3_endpoint_url).create_bucket(Bucket=settings.bucket)
            break
        except ClientError as error:
            if error.response["Error"]["Code"] in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                break
            problem: Exception = error
        except BotoCoreError as error:
            problem = error
        if time.monotonic() > end:
            raise Failed(f"The store does not answer: {problem}\n{tail(session.logs / 'store.log')}")
        session.pause(0.2)
    store.check(settings)
    session.note("The store is ready")


def wait_for_airflow(session: Session, address: str, password: str, since: datetime) -> httpx.Client:
    """Waits until Airflow's services are healthy and have read the DAG, with a client for its API."""
    end = time.monotonic() + START_SECONDS
    while missing := airflow_api.unhealthy(address):
        if time.monotonic() > end:
            raise Failed(f"Not ready in time: {', '.join(missing)}. See {session.logs}.")
        session.pause(0.3)
    session.note("Airflow is ready")
    client = airflow_api.connect(address, password)
    airflow_api.set_pool(client, "gpu", 1, "One training at a time")
    airflow_api.build_execution_api(address)
    while not airflow_api.parsed_since(client, since):
        if errors := airflow_api.import_errors(client, since):
            raise Failed("A DAG file cannot be imported:\n" + "\n".join(errors))
        if time.monotonic() > end:
            raise Failed(f"Airflow has not read dags/{airflow_api.DAG}.py. See {session.logs / 'dag-processor.log'}.")
        session.pause(0.3)
    return client


def run_once(
    session: Session,
    client: httpx.Client,
    settings: settings_module.Settings,
    conf: airflow_api.Json | None,
    run_id: str,
) -> bool:
    """Watches a run (starting one with `conf` when given) and shows its outcome. Whether no task of it failed."""
    console = session.console
    before = set(mails(session.folder / "maildir"))
    if conf is not None:
        run_id = airflow_api.trigger(client, conf)
        airflow_api.set_paused(client, False)
    session.note(f"Run {escape(run_id)}: {settings.ui_url}/dags/{airflow_api.DAG}/runs/{escape(run_id)}")
    began = time.monotonic()
    run_state, tasks = watch(client, run_id, console, session.pause)
    session.note(f"The run ended after {time.monotonic() - began:.0f} s: {run_state}")
    show_failures(client, run_id, tasks, session.folder / "airflow" / "logs", console)
    show(settings, run_id, session.folder, before, console)
    return run_state == "success" and not any(task["state"] in ("failed", "upstream_failed") for task in tasks)


def retrain(
    session: Session, client: httpx.Client, settings: settings_module.Settings, drop: str, since: datetime, weekly: bool
) -> bool:
    """Clears what an earlier `make run` left unfinished, lets an overdue weekly run go first, then runs ours."""
    for run in airflow_api.active_runs(client):
        if datetime.fromisoformat(run["queued_at"] or run["run_after"]) < since:
            airflow_api.fail_run(client, run["dag_run_id"], "Its services were ended before it was.")
            session.note(f"Run {escape(run['dag_run_id'])} was cut off by the end of `make run`: marked as failed")
    if weekly and airflow_api.overdue(client):
        # Airflow starts it as soon as it may, before ours: it must not take our drop away unseen.
        airflow_api.set_paused(client, False)
        end = time.monotonic() + 60
        while airflow_api.overdue(client) and time.monotonic() < end:
            session.pause(0.5)
    for run in airflow_api.active_runs(client):
        session.note(f"Run {escape(run['dag_run_id'])} has just begun by schedule and goes first")
        run_once(session, client, settings, None, run["dag_run_id"])
    return run_once(session, client, settings, {"drop": drop} if drop else {}, "")


def stay(session: Session, client: httpx.Client) -> None:
    """Leaves everything up until a signal comes."""
    session.console.print("\nEverything stays up. Ctrl-C ends it.")
    try:
        while True:
            session.pause(0.5)
    except Stopped:
        # The next start decides what runs first, not a weekly run that became due meanwhile.
        try:
            airflow_api.set_paused(client, True)
        except httpx.HTTPError:
            session.note("The DAG could not be paused")


def run(session: Session, lock: int) -> int:
    """The whole of it. Returns the exit status."""
    folder, console = session.folder, session.console
    once = os.environ.get("ONCE", "").lower() not in ("", "0", "no", "false")
    drop = os.environ.get("DROP", "")
    since = datetime.now(UTC)
    secrets = state.load_secrets(folder)
    config = services.find_config(os.environ)
    ports = services.choose_ports()
    variables = services.library_environment(folder, ports, secrets, config, os.environ)
    env = services.environment(folder, ports, secrets, config, schedule=not once)
    services.write_files(folder, ports, secrets, variables)
    for name in [name for name in os.environ if name not in env]:
        del os.environ[name]
    os.environ.update(env)
    settings = settings_module.load()
    session.note(f"State in {folder}, settings from {config or 'their defaults'}")

    demo = None
    check_settings(settings)
    suites = helper(session, "suites", [sys.executable, "-m", "local.preflight"], env)
    if drop:
        drop, new = copy_drop(Path(drop), folder / "inbox", folder / "copying", partial(check_drop, settings))
        session.note(f"The drop {escape(drop)} is in the inbox" + ("" if new else " already"))
    elif not (folder / "inbox" / DEMO).exists():
        demo = helper(session, "demo-data", ["cxr-ml", "demo-data", str(folder / "copying" / DEMO)], env)
    migrate(session, env)
    finish(session, "suites", suites)
    start_services(session, env, lock)
    make_bucket(session, settings)
    if demo:
        finish(session, "demo-data", demo)
        (folder / "copying" / DEMO).rename(folder / "inbox" / DEMO)
        session.note(f"The demonstration drop {DEMO} is in the inbox")
    address, password = settings.ui_url, secrets["ui_password"]
    login = f"UI        {address}   user admin   password {password}"
    client = wait_for_airflow(session, address, password, since)
    console.print(f"        {login}", markup=False, highlight=False, soft_wrap=True)
    succeeded = retrain(session, client, settings, drop, since, weekly=not once)
    if not once:
        console.print(login, markup=False, highlight=False, soft_wrap=True)
        stay(session, client)
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
