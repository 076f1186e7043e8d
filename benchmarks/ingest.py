"""How fast a drop is ingested, what it costs to ingest it again, and how much memory it takes at most.

    CXR_XRAYS=… .venv/bin/python benchmarks/ingest.py [--files 20000] [--large 40]

On the real X-rays of `CXR_XRAYS`/drops: images per second with 1 and with 2 processes, and the time of a second run as
a share of the first. On a drop of copies of one phantom, between them pictures of 50 megapixels: the largest memory of
the whole tree of processes (PSS: pages that several share are counted once). Into a SeaweedFS of its own.
"""

import argparse
import os
import secrets
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

import boto3
import numpy as np
import psutil
from botocore.exceptions import BotoCoreError, ClientError
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from cxr_ml.imaging import phantoms
from cxr_ml.ingest import inbox, ingest_drop
from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore
from local.services import choose_ports

SIDE = 7071  # px; squared, 50 megapixels
DRIVER = """
import sys
from cxr_ml import settings
from cxr_ml.ingest import ingest_drop
from cxr_ml.store import ObjectStore
s = settings.load()
ingest_drop.ingest(ObjectStore(s.store), s, sys.argv[1])
"""


@contextmanager
def store(folder: Path) -> Iterator[Settings]:
    """An empty SeaweedFS; the variables by which other processes reach it are set too."""
    ports = choose_ports()
    keys = {"AWS_ACCESS_KEY_ID": secrets.token_hex(10), "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20)}
    endpoint = f"http://127.0.0.1:{ports['s3']}"
    os.environ |= keys | {
        "AWS_DEFAULT_REGION": "us-east-1",
        "CXR_STORE__ENDPOINT_URL": endpoint,
        "CXR_STORE__BUCKET": "bench",
    }
    weed = shutil.which("weed", path=sysconfig.get_path("scripts")) or "weed"
    command = [
        weed, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-webdav=false", "-admin.ui=false",
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false", f"-s3.port={ports['s3']}",
        f"-master.port={ports['master']}", f"-volume.port={ports['volume']}", f"-filer.port={ports['filer']}",
        f"-admin.port={ports['admin']}",
    ]  # fmt: skip
    with (folder / "weed.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        client, end = boto3.client("s3", endpoint_url=endpoint), time.monotonic() + 60
        while True:
            try:
                client.create_bucket(Bucket="bench")
                break
            except (BotoCoreError, ClientError):
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)
        yield Settings(store={"bucket": "bench", "endpoint_url": endpoint}, inbox={"patient_salt": "benchmark"})
    finally:
        server.terminate()
        server.wait()


def timed(settings: Settings, drop: str, processes: int) -> float:
    """Seconds of one ingest."""
    begun = time.perf_counter()
    ingest_drop.ingest(ObjectStore(settings.store), settings, drop, workers=processes)
    return time.perf_counter() - begun


def speed(settings: Settings) -> None:
    for drop in inbox.list_drops(ObjectStore(settings.store), settings.inbox):
        images = len(inbox.list_files(ObjectStore(settings.store), settings.inbox, drop))
        timed(settings.replace(store={"prefix": f"warm/{drop}/"}), drop, 2)  # the disk's cache, for all alike
        for processes in (1, 2):
            own = settings.replace(store={"prefix": f"{drop}/{processes}/"})
            first, again = timed(own, drop, processes), timed(own, drop, processes)
            print(
                f"{drop}: {images} files, {processes} process{'es' * (processes - 1)}: {images / first:.0f} files/s "
                f"({first:.2f} s); again {again * 1000:.0f} ms, {again / first:.2%} of the first time"
            )


def write_drop(folder: Path, files: int, large: int) -> None:
    """Copies of one phantom that differ in one pixel, and `large` pictures of 50 megapixels spread among them."""
    phantom = phantoms.draw_phantom("NORMAL", np.random.default_rng(0))
    (folder / "NORMAL").mkdir(parents=True)
    for n in range(files):
        phantom[n // 256 % 256, n % 256] ^= 1
        Image.fromarray(phantom).save(folder / f"NORMAL/{n:07d}.png", compress_level=1)
    write_large(folder / "NORMAL", large, files // max(1, large))


def write_large(folder: Path, large: int, apart: int = 1) -> None:
    """Pictures of 50 megapixels, each another, grey and colour; their names are `apart` numbers apart."""
    grey = np.kron(phantoms.draw_phantom("NORMAL", np.random.default_rng(0)), np.ones((28, 28), np.uint8))[:SIDE, :SIDE]
    for n in range(large):
        name = folder / f"{n * apart:07d}-large"
        grey[0, n] ^= 255
        kinds = (grey, np.dstack([grey, grey, grey]), np.dstack([grey, grey, grey, grey]))
        if n % 4 == 3:
            Image.fromarray(kinds[1]).save(f"{name}.jpg", quality=90)
        else:
            Image.fromarray(kinds[n % 4]).save(f"{name}.png", compress_level=1)


def pss(process: psutil.Process) -> int:
    """Bytes of a process and all below it."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.Error):
            total += one.memory_full_info().pss
    return total


def watched(script: str, *arguments: str) -> tuple[float, float]:
    """(MB, seconds): the largest PSS of a program and all its processes together."""
    begun = time.perf_counter()
    driver = subprocess.Popen([sys.executable, "-c", script, *arguments])
    process, peak, done = psutil.Process(driver.pid), [0], Event()

    def watch() -> None:
        while not done.wait(0.05):
            with suppress(psutil.Error):
                peak[0] = max(peak[0], pss(process))

    watcher = Thread(target=watch)
    watcher.start()
    try:
        if driver.wait():
            raise SystemExit("The ingest failed.")
    finally:
        done.set()
        watcher.join()
    return peak[0] / 1e6, time.perf_counter() - begun


def memory(folder: Path, files: int, large: int) -> None:
    inbox = folder / "inbox"
    write_drop(inbox / "many", files, large)
    os.environ["CXR_INBOX__PATH"] = str(inbox)
    peak, seconds = watched(DRIVER, "many")
    print(f"{files} files and {large} of 50 megapixels: at most {peak:.0f} MB over all processes, {seconds:.0f} s")


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000, help="small files of the drop that memory is measured on")
    parser.add_argument("--large", type=int, default=40, help="pictures of 50 megapixels among them")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "store").mkdir()
        with store(folder / "store") as settings:
            if xrays := os.environ.get("CXR_XRAYS"):
                speed(settings.replace(inbox={"path": f"{xrays}/drops"}))
            else:
                print("CXR_XRAYS names no folder of X-rays: no speed is measured.")
            memory(folder, given.files, given.large)


if __name__ == "__main__":
    main()
