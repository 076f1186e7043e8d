"""How long the console's pages take at the server with a large store, and what each of them reads of it.

    .venv/bin/python benchmarks/console.py

A SeaweedFS and Airflow's API server of their own, in a temporary folder. In the store: 300 evaluated models of 150
runs, 60 of them promoted; 50 datasets; 50 drops of 4,000 files each, every tenth refused; 2,000 rulings. Then the same
server on a store of one drop of 200,000 files. Times are taken by a client on the same machine, over HTTP, with login.
"First" is the first time since the server's start, in this order; then the median and the worst of ten. The overview
is asked for as soon as the server answers at all, while it still reads ahead, and the others once it has; of the one
drop all are asked for at once. Requests to the store and bytes of objects sent by it are SeaweedFS's own count, the
first time and per page afterwards; the first includes what is read ahead meanwhile. Linux.
"""

import argparse
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import boto3
import console_store
import httpx
from botocore.exceptions import BotoCoreError, ClientError

sys.path.insert(0, str(Path(__file__).parents[1]))
from cxr_ml.settings import Settings
from local import services, state

AGAIN = 10
_START_SECONDS = 120
_AHEAD_SECONDS = 20  # after which the server has read ahead what it does, also on a busy machine


@contextmanager
def started(command: Sequence[str], env: dict[str, str], log: Path) -> Iterator[None]:
    """A server with all that it starts; ended on the way out."""
    with log.open("ab") as file:
        server = subprocess.Popen(command, env=env, stdout=file, stderr=file, start_new_session=True)
    try:
        yield
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@contextmanager
def store(folder: Path, ports: dict[str, int], env: dict[str, str]) -> Iterator[None]:
    """SeaweedFS with an empty bucket."""
    command = [
        shutil.which("weed", path=sysconfig.get_path("scripts")) or "weed", "mini", f"-dir={folder / 'store'}",
        "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0",
        "-s3.port.lance=0", "-master.telemetry=false", f"-s3.port={ports['s3']}", f"-master.port={ports['master']}",
        f"-volume.port={ports['volume']}", f"-filer.port={ports['filer']}", f"-admin.port={ports['admin']}",
        f"-metricsPort={ports['metrics']}",
    ]  # fmt: skip
    with started(command, env, folder / "logs/store.log"):
        client, end = boto3.client("s3", endpoint_url=env["CXR_STORE__ENDPOINT_URL"]), time.monotonic() + _START_SECONDS
        while True:
            try:
                client.create_bucket(Bucket=env["CXR_STORE__BUCKET"])
                break
            except (BotoCoreError, ClientError):
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)
        yield


class Visitor:
    """A browser that is logged in, and notes how long an answer took and what the server read of the store for it."""

    def __init__(self, address: str, password: str, metrics: str) -> None:
        """Logs in; `metrics` is SeaweedFS's page of counters."""
        self._client = httpx.Client(base_url=address, timeout=120, trust_env=False)
        self._metrics = metrics
        answer = self._client.post("/auth/token", json={"username": "admin", "password": password}).raise_for_status()
        self._client.cookies["_token"] = answer.json()["access_token"]

    def read(self) -> tuple[int, int]:
        """Requests to the store, and bytes sent by it, since it was started."""
        lines = httpx.get(self._metrics, trust_env=False).text.splitlines()
        names = "SeaweedFS_s3_request_total{", "SeaweedFS_s3_bucket_traffic_sent_bytes_total{"
        sums = [sum(float(x.rpartition(" ")[2]) for x in lines if x.startswith(name)) for name in names]
        return int(sums[0]), int(sums[1])

    def ask(self, path: str, form: dict[str, object] | None = None) -> tuple[float, str]:
        """Milliseconds and body of an answer, which must be a page, or the way to one after a form."""
        begun = time.perf_counter()
        answer = self._client.post(path, data=form) if form else self._client.get(path)
        took = 1000 * (time.perf_counter() - begun)
        if answer.status_code not in (200, 303):
            raise SystemExit(f"{path}: {answer.status_code}\n{answer.text[-3000:]}")
        return took, answer.text

    def trigger(self, run: str) -> None:
        """A run that Airflow knows, and that nobody carries out."""
        body = {"logical_date": None, "dag_run_id": run, "conf": {}}
        self._client.post("/api/v2/dags/cxr_retraining/dagRuns", json=body).raise_for_status()


@contextmanager
def server(env: dict[str, str], folder: Path) -> Iterator[Visitor]:
    """Airflow's API server, and somebody who has logged in to it."""
    metrics = f"http://127.0.0.1:{env['LOCAL_PORT_METRICS']}/metrics"
    address, end = env["CXR_MAIL__UI_URL"], time.monotonic() + _START_SECONDS
    with started(["airflow", "api-server"], env, folder / "logs/api-server.log"):
        while True:
            try:
                visitor = Visitor(address, state.load_secrets(folder)["ui_password"], metrics)
                break
            except httpx.HTTPError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)
        yield visitor


def row(name: str, first: float, again: list[float], cost: Sequence[tuple[int, int]]) -> None:
    """A line of the table; `cost`: the store's counters before, between and after."""
    (r0, b0), (r1, b1), (r2, b2) = cost
    times = f"{statistics.median(again):>8.0f} {max(again):>8.0f}" if again else f"{'':>17}"
    later = f"{(r2 - r1) / len(again):>9.1f} {(b2 - b1) / len(again) / 1000:>9.1f}" if again else ""
    print(f"{name:<44} {first:>8.0f} {times} {r1 - r0:>9} {(b1 - b0) / 1000:>9.0f} {later}", flush=True)


def heading(title: str) -> None:
    """Begins a table."""
    print(f"\n{title}\n{'':<44} {'ms':>8} {'ms,':>8} {'ms,':>8} {'requests':>9} {'kB':>9} {'requests':>9} {'kB':>9}")
    print(f"{'page':<44} {'first':>8} {'median':>8} {'worst':>8} {'first':>9} {'first':>9} {'later':>9} {'later':>9}")


def measure(visitor: Visitor, pages: dict[str, str]) -> dict[str, str]:
    """A line per page. Returns page -> its HTML."""
    bodies = {}
    for name, path in pages.items():
        cost = [visitor.read()]
        first, bodies[name] = visitor.ask(f"/cxr{path}")
        cost.append(visitor.read())
        again = [visitor.ask(f"/cxr{path}")[0] for _ in range(AGAIN)]
        row(name, first, again, [*cost, visitor.read()])
    return bodies


def rule(visitor: Visitor) -> None:
    """Releases two files of the wall, one after the other, then all of its next page at once, as its form does."""
    pages = [visitor.ask(f"/cxr/quarantine?reason=near_duplicate&page={page}")[1] for page in (1, 2)]
    token = re.findall(r'name="token" value="([^"]+)"', pages[0])[0]
    files, more = (re.findall(r'name="files" value="([^"]+)"', page) for page in pages)
    for some in (files[:1], files[1:2], more):
        form = {"token": token, "action": "release", "why": "Seen by two.", "files": some, "sure": "true"}
        before = visitor.read()
        took, _ = visitor.ask("/cxr/quarantine", form)
        row(f"POST release of {len(some)}", took, [], [before, visitor.read(), (0, 0)])


def wall(batch: str, page: int) -> dict[str, str]:
    """Pages of the wall."""
    return {
        "wall": "/quarantine",
        "wall, of a reason": "/quarantine?reason=near_duplicate",
        "wall, of a class": "/quarantine?label=TUBERCULOSIS",
        "wall, of a drop": f"/quarantine?drop={batch}",
        f"wall, page {page}": f"/quarantine?page={page}",
        f"wall, of a class, page {page // 3}": f"/quarantine?label=TUBERCULOSIS&page={page // 3}",
        "a refused file": f"/quarantine/{batch}/7",
    }


def main() -> None:
    """Fills the stores, starts the servers and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=300)
    parser.add_argument("--drops", type=int, default=50, help="of 4,000 files each; as many datasets")
    given = parser.parse_args()
    usual = {name: random.randrange(12_000, 20_000) for name in (*services.USUAL_PORTS, "metrics")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ports, secrets = services.choose_ports(usual_ports=usual), state.load_secrets(folder)
        env = services.environment(folder, ports, secrets, None, schedule=False)
        services.write_files(folder, ports, secrets, {})
        os.environ.update({k: v for k, v in env.items() if k.startswith(("AWS_", "CXR_", "GX_"))})
        with store(folder, ports, env):
            many, one = Settings(store={"prefix": "many/"}), Settings(store={"prefix": "one/"})
            begun = time.monotonic()
            names = console_store.write_batches(many, given.drops, 4_000)
            console_store.write_rulings(many, names, 2_000)
            console_store.write_datasets(many, names, given.drops)
            runs = console_store.write_models(many, given.models)
            (whole,) = console_store.write_batches(one, 1, 4_000 * given.drops)
            print(f"The stores were filled in {time.monotonic() - begun:.0f} s.", flush=True)
            for command in ("db migrate", "dags reserialize"):
                subprocess.run(["airflow", *command.split()], env=env, check=True, capture_output=True)
            with server(env | {"CXR_STORE__PREFIX": "many/"}, folder) as visitor:
                for run in runs[-60:]:
                    visitor.trigger(run)
            with server(env | {"CXR_STORE__PREFIX": "many/"}, folder) as visitor:
                show_many(visitor, names, runs)
            with server(env | {"CXR_STORE__PREFIX": "one/"}, folder) as visitor:
                heading(f"One drop of {4_000 * given.drops:,} files, at once after the start")
                measure(visitor, wall(whole, 50) | {"the drop": f"/data/drops/{whole}"})
                rule(visitor)


def show_many(visitor: Visitor, names: list[str], runs: list[str]) -> None:
    """The table of all pages."""
    heading(f"{len(names)} drops of 4,000 files")
    measure(visitor, {"overview, the first request of all": "/"})
    time.sleep(_AHEAD_SECONDS)
    pages = {
        "overview": "/",
        "models": "/models",
        "models, sorted": "/models?sort=COVID19&order=up",
        "models, refused ones": "/models?outcome=refused&sort=macro_f1",
    }
    found = measure(visitor, pages)["models"]
    one, two = re.findall(r'name="model" value="([^"]+)"', found)[10:12]
    # An odd drop has a rejected class with examples.
    pages = {
        "a model": f"/models/{one}",
        "two models compared": f"/models/compare?model={one}&model={two}",
        "data": "/data",
        "a dataset": f"/data/datasets/{len(names) // 2}",
        "a drop with a rejected class": f"/data/drops/{names[-1]}",
        **wall(names[-1], 50),
        "runs": "/runs",
        "a run": f"/runs/{runs[-1]}",
        "a report": f"/runs/{runs[-1]}/report/index.html",
        "rollback": "/rollback",
    }
    bodies = measure(visitor, pages)
    pictures = re.findall(r'src="/cxr(/thumbnails/[^"]+)"', bodies["wall"])
    measure(visitor, {"a thumbnail": pictures[0]})
    times = [visitor.ask(f"/cxr{path}")[0] for path in pictures[1:]]
    print(f"{len(times)} thumbnails one after the other: {sum(times):.0f} ms, at most {max(times):.0f} each")
    rule(visitor)


if __name__ == "__main__":
    main()
