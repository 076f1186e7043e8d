"""Starts the services of local/Procfile and waits until they can be used."""

import os
import subprocess
import sys
import time
from datetime import datetime
from importlib.metadata import version

import httpx
from botocore.exceptions import BotoCoreError, ClientError

from cxr_ml.store import ObjectStore
from local import airflow_api, state
from local.logs import tail
from local.session import Failed, Session, start_helper, wait_for_helper

START_SECONDS = 240.0  # longest start of all services; measured: 20 on 2 cores


def migrate_database(session: Session, env: dict[str, str]) -> None:
    """Brings Airflow's database to the installed version, unless the last start did."""
    mark = session.folder / "airflow" / "migrated"
    wanted = f"{version('apache-airflow-core')} {env['AIRFLOW__DATABASE__SQL_ALCHEMY_CONN']}\n"
    if mark.is_file() and mark.read_text() == wanted:
        return
    wait_for_helper(session, "migrate", start_helper(session, "migrate", ["airflow", "db", "migrate"], env))
    state.write_private_file(mark, wanted)
    session.note("Airflow's database is ready")


def start_services(session: Session, env: dict[str, str], lock: int) -> None:
    """Starts honcho with local/Procfile under the process guard, which holds the lock until all of them have ended."""
    honcho = [sys.executable, "-m", "honcho", "-e", os.devnull, "-d", str(state.REPOSITORY), "--no-colour"]
    with open(session.logs / "honcho.log", "wb") as log:
        session.guard = subprocess.Popen(
            [sys.executable, "-m", "local.process_guard", *honcho, "-f", "local/Procfile", "start"],
            cwd=state.REPOSITORY,
            env=env,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=[lock],
            start_new_session=True,  # Ctrl-C in the terminal is for this process alone
        )


def make_bucket(session: Session, store: ObjectStore) -> None:
    """Waits until the store answers, and makes the bucket."""
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            store.client.create_bucket(Bucket=store.bucket)
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
    store.check()
    session.note("The store is ready")


def wait_for_airflow(session: Session, address: str, password: str, since: datetime) -> httpx.Client:
    """Waits until Airflow's services are healthy and have read the DAG after `since`.

    Returns:
        A client for Airflow's API.
    """
    end = time.monotonic() + START_SECONDS
    while missing := airflow_api.list_unhealthy_services(address):
        if time.monotonic() > end:
            raise Failed(f"Not ready in time: {', '.join(missing)}. See {session.logs}.")
        session.pause(0.3)
    session.note("Airflow is ready")
    client = airflow_api.connect(address, password)
    airflow_api.make_gpu_pool(client)
    airflow_api.build_execution_api(address)
    while not airflow_api.is_parsed_since(client, since):
        if errors := airflow_api.list_import_errors(client, since):
            raise Failed("A DAG file cannot be imported:\n" + "\n".join(errors))
        if time.monotonic() > end:
            raise Failed(f"Airflow has not read dags/{airflow_api.DAG}.py. See {session.logs / 'dag-processor.log'}.")
        session.pause(0.3)
    return client
