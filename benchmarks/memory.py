"""How much memory a large drop takes at most, from its listing to its verdicts: `python benchmarks/memory.py [FILES]`.

A drop of so many empty files and a labels.csv of as many rows, each of another patient, as a folder, .zip and .tar.gz:
listed and cut into shards; the labels matched for the first shard; that shard ingested, with pictures of 50 megapixels
in it. Then a batch of as many rows is judged: its shards are made up here, of 100 images 94 accepted, and there are
pictures of 50 megapixels among the copies and the refused. Every step is a process of its own. MB are of its largest
resident set, of the ingest of the largest PSS of all its processes. Linux.
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

import ingest as ingest_benchmark
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from cxr_ml.imaging import phantoms
from cxr_ml.ingest import process_file, tables
from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore

PICTURES = 4_000  # in the store at most; rows that are refused or copies show one of them
MEASURED = {"mode": "L", "bytes": 60_000, "width": 1024, "height": 1024, "bits": 8}
TAKE = """
from pathlib import Path
from cxr_ml import settings
from cxr_ml.ingest import inbox, ingest_drop, labels
from cxr_ml.store import ObjectStore
from cxr_ml.validation import judge_batch
s = settings.load()
store = ObjectStore(s.store)
{step}
# Not getrusage's: that begins with the size of the process which started this one.
print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e6)
"""
PLAN = "ingest_drop.plan_shards(store, s, {drop!r})"
LABELS = """
with inbox.open_drop(store, s, {drop!r}) as (_, entries):
    assert len(labels.read_labels(store, s, {drop!r}, entries, range(min(s.inbox.shard_files, len(entries)))))
"""
SHARD = """
from cxr_ml import settings
from cxr_ml.ingest import ingest_drop
from cxr_ml.store import ObjectStore
s = settings.load()
store = ObjectStore(s.store)
ingest_drop.ingest_shard(store, s, ingest_drop.plan_shards(store, s, "listed")[0])
"""
JUDGE = "judge_batch.validate_batch(store, s, {batch!r})"


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


def write_zip(folder: Path, files: int) -> None:
    """The same as listed.zip."""
    with zipfile.ZipFile(folder / "listed.zip", "w") as packed:
        for name in names(files):
            packed.writestr(name, b"")
        packed.writestr("labels.csv", table(files))


def write_tar(folder: Path, files: int) -> None:
    """The same as listed.tar.gz."""
    with tarfile.open(folder / "listed.tar.gz", "w:gz", compresslevel=1) as packed:
        for name in names(files):
            packed.addfile(tarfile.TarInfo(name))
            packed.members.clear()
        info = tarfile.TarInfo("labels.csv")
        info.size = len(table(files))
        packed.addfile(info, io.BytesIO(table(files)))


def write_pictures(settings: Settings, number: int, large: int) -> list[tuple[str, str]]:
    """Small pictures in the store that differ in a pixel, behind some of 50 megapixels; (sha256, format) of each."""
    found = []

    def put(data: bytes, kind: str) -> None:
        found.append((hashlib.sha256(data).hexdigest(), kind))
        ObjectStore(settings.store).put_if_absent(process_file.image_key(*found[-1]), data)

    with tempfile.TemporaryDirectory() as folder:
        ingest_benchmark.write_large(Path(folder), large)
        for path in sorted(Path(folder).iterdir()):
            put(path.read_bytes(), "jpeg" if path.suffix == ".jpg" else "png")
    phantom = phantoms.draw_phantom("NORMAL", np.random.default_rng(0))[::2, ::2].copy()
    for n in range(number):
        phantom[divmod(n, phantom.shape[1])] ^= 255
        buffer = io.BytesIO()
        Image.fromarray(phantom).save(buffer, "PNG", compress_level=1)
        put(buffer.getvalue(), "png")
    return found


def write_shards(settings: Settings, batch: str, rows: int, large: int = 0) -> None:
    """A batch as ingest leaves it: of 100 rows 94 are of images like no other, 2 unreadable, 2 unfit, 2 near copies.

    Unfit ones and copies show pictures that are in the store, so many that no cache holds all; `large` each are of 50
    megapixels.
    """
    rng, of = np.random.default_rng(0), -(-rows // settings.inbox.shard_files)
    pictures = write_pictures(settings, min(PICTURES, rows // 50), 2 * large)
    unfit, copies = pictures[::2], pictures[1::2]
    labels, hashes = ("NORMAL", "COVID19", "PNEUMONIA"), {}
    for number in range(of):
        found = []
        for n in range(number * rows // of, (number + 1) * rows // of):
            block, k = divmod(n, 100)
            label = labels[block % (len(copies) // 2) % 3]
            said = {"file": f"images/{n:08d}.png", "label": label, "label_raw": label, "patient": rng.bytes(8).hex()}
            if k < 2:
                found.append(said | {"bytes": 0, "unread": ["empty_file"]})
                continue
            measures = {"mean": 125 + n % 7, "std": 55, "p01": 0, "p99": 220, "saturation": 0, "sharpness": 120}
            borders = {"black_border": 0.01, "white_border": 0, "white_box": 0.1 if 2 <= k < 4 else 0}
            hashes = {"phash": rng.bytes(8).hex(), "fine_hash": rng.bytes(128).hex()} if k != 5 else hashes
            hashes["inner_hash"] = rng.bytes(136).hex() if k % 8 == 0 else ""  # of real films one in nine has it
            shown = {"sha256": rng.bytes(32).hex(), "format": "png", "ring": rng.bytes(448).hex(), "view": "PA"}
            if k < 6:
                some = unfit if k < 4 else copies
                shown["sha256"], shown["format"] = some[(2 * block + k % 2) % len(some)]
            found.append(said | MEASURED | measures | borders | hashes | shown)
        tables.put_shard(ObjectStore(settings.store), batch, number, of, tables.make_table(found))


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=int, nargs="?", default=499_999, help="beside labels.csv")
    files = parser.parse_args().files
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "store").mkdir()
        os.environ |= {"CXR_INBOX__PATH": str(folder / "inbox"), "CXR_CACHE_DIR": str(folder / "cache")}
        os.environ["CXR_INBOX__PATIENT_SALT"] = "benchmark"
        with ingest_benchmark.store(folder / "store") as settings:
            write_folder(folder / "inbox/listed", files)
            write_zip(folder / "inbox", files)
            write_tar(folder / "inbox", files)
            for drop in ("listed", "listed.zip", "listed.tar.gz"):
                for what, step in (("listed", PLAN), ("again", PLAN), ("labels matched", LABELS), ("again", LABELS)):
                    mb, seconds = peak(step.format(drop=drop))
                    print(f"{drop}, {files:,} files, {what}: {mb:.0f} MB, {seconds:.1f} s", flush=True)
            ingest_benchmark.write_large(folder / "inbox/listed/images/00", 12)
            mb, seconds = ingest_benchmark.watched(SHARD)
            print(f"listed, first shard ingested: {mb:.0f} MB over all processes, {seconds:.1f} s", flush=True)
            write_shards(settings, "judged-00000000", files, 12)
            mb, seconds = peak(JUDGE.format(batch="judged-00000000"))
            print(f"{files:,} rows judged: {mb:.0f} MB, {seconds:.1f} s")


if __name__ == "__main__":
    main()
