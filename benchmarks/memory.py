"""How much memory a large drop takes at most, from its listing to the verdicts: `python benchmarks/memory.py [FILES]`.

A drop of so many files with a labels.csv of as many rows, as a folder and as archives, is planned, and one shard of it is
ingested. Then a batch of as many rows is judged whose shards are made up here, most of them accepted. Each step runs in a
process of its own, against a SeaweedFS of its own; the figure is the largest resident set of that process, or, of the
ingest, the largest PSS over all its processes.
"""

import argparse
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from cxr_ml import store
from cxr_ml.data import ingest, synthetic, tables
from cxr_ml.settings import Settings

PICTURES = 200  # that are in the store; rows that are refused show one of them, for whose thumbnail it is read
MEASURED = {"format": "png", "mode": "L", "bytes": 60_000, "width": 1024, "height": 1024, "bits": 8}
TAKE = """
import resource, sys
from cxr_ml import settings
from cxr_ml.data import batches, ingest
s = settings.load()
{step}
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
PLAN = "ingest.plan(s, {drop!r})"
JUDGE = "batches.judge(s, {batch!r})"


def peak(step: str) -> tuple[float, float]:
    """(MB, seconds): the largest resident set of a process that does this step, with what it has to import."""
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", TAKE.format(step=step)], stdout=subprocess.PIPE, check=True)
    return float(done.stdout.split()[-1]), time.perf_counter() - begun


def table(files: int) -> bytes:
    """A labels.csv for `names(files)`, each of another patient."""
    labels = ("Normal", "COVID-19", "Pneumonia")
    lines = (f"{name},{labels[n % 3]},MRN-{n:08d},PA" for n, name in enumerate(names(files)))
    return "\n".join(["filename,label,patient_id,view", *lines, ""]).encode()


def names(files: int) -> list[str]:
    """As long as those of public collections."""
    return [f"images/{n % 100:02d}/{n:08d}_{n * 2654435761 % 2**32:08x}.png" for n in range(files)]


def write_folder(root: Path, files: int) -> None:
    """A drop of empty files."""
    for part in range(100):
        (root / f"images/{part:02d}").mkdir(parents=True, exist_ok=True)
    for name in names(files):
        (root / name).touch()
    (root / "labels.csv").write_bytes(table(files))


def write_archives(folder: Path, files: int) -> None:
    """The same as listed.zip and as listed.tar.gz."""
    with zipfile.ZipFile(folder / "listed.zip", "w") as packed:
        for name in names(files):
            packed.writestr(name, b"")
        packed.writestr("labels.csv", table(files))
    with tarfile.open(folder / "listed.tar.gz", "w:gz", compresslevel=1) as packed:
        for name in names(files):
            packed.addfile(tarfile.TarInfo(name))
        info = tarfile.TarInfo("labels.csv")
        info.size = len(table(files))
        packed.addfile(info, io.BytesIO(table(files)))


def write_pictures(settings: Settings) -> list[str]:
    """Pictures in the store; their hashes."""
    phantom, found = synthetic.phantom("NORMAL", np.random.default_rng(0)), []
    for n in range(PICTURES):
        phantom[0, n] ^= 255
        buffer = io.BytesIO()
        Image.fromarray(phantom).save(buffer, "PNG")
        found.append(hashlib.sha256(buffer.getvalue()).hexdigest())
        store.put_if_absent(settings, ingest.image_key(found[-1], "png"), buffer.getvalue())
    return found


def write_shards(settings: Settings, batch: str, rows: int, seed: int = 0) -> None:
    """A batch as ingest leaves it: of 100 rows 94 are of images like no other, 2 unreadable, 2 unfit, 2 copies."""
    rng, pictures, of = np.random.default_rng(seed), write_pictures(settings), -(-rows // settings.shard_files)
    for number in range(of):
        first, last = number * rows // of, (number + 1) * rows // of
        kind = np.arange(first, last) % 100
        found = []
        for n, k in zip(range(first, last), kind, strict=True):
            said = {
                "file": f"images/{n:08d}.png",
                "label": "NORMAL",
                "label_raw": "Normal",
                "patient": rng.bytes(8).hex(),
            }
            if k < 2:
                found.append(said | {"bytes": 0, "unread": ["empty_file"]})
                continue
            half = PICTURES // 2
            shown = pictures[n // 100 % half] if k < 4 else pictures[half + n // 100 % half] if k < 6 else ""
            measures = {"mean": 125 + n % 7, "std": 55, "p01": 0, "p99": 220, "saturation": 0, "sharpness": 120}
            borders = {"black_border": 0.01, "white_border": 0, "white_box": 0.1 if 2 <= k < 4 else 0}
            hashes = {"phash": rng.bytes(8).hex(), "fine_hash": rng.bytes(128).hex(), "ring": rng.bytes(448).hex()}
            found.append(
                said | MEASURED | measures | borders | hashes | {"sha256": shown or rng.bytes(32).hex(), "view": "PA"}
            )
        tables.put_shard(settings, batch, number, of, ingest.table(found))
