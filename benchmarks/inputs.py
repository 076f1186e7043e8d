"""What it takes to hand a data set to a training: the memory of a large one, and images per second beside the backbone.

    CXR_XRAYS=… CXR_WEIGHTS_DIR=… .venv/bin/python benchmarks/inputs.py [--images 100000]

Memory: so many generated images are put into a SeaweedFS of its own. A process of its own decodes them for 256 px, as
a first run does; another, with an empty cache folder, takes them from the store, as a second worker does; either then
takes an epoch of augmented batches and one of plain ones. Of each the largest memory of its own (RssAnon of Linux,
every 20 ms) is printed, and that with the pages of mapped files (VmHWM), which the system takes back when it needs
them; the same for a tenth of the images, for comparison.

Speed: real X-rays of 256 px through `AugmentedBatches` alone, in the threads that a training uses, and beside it what
InceptionV3 consumes: a pass of the frozen backbone, and a step of the fine-tuning, both in batches of 16.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import cv2
import ingest as bench_ingest
import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))
import hashlib

from cxr_ml import layout
from cxr_ml.dataset import versions
from cxr_ml.ingest.process_file import image_key
from cxr_ml.ingest.tables import to_parquet
from cxr_ml.records import Dataset
from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore

SIZE, BATCH = 256, 16
SIDE = 128  # px of a generated image


def put_images(settings: Settings, number: int, images: int) -> None:
    """A dataset of so many generated pictures, as `build_dataset` would leave one."""
    noise = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), dtype=np.uint8), (9, 9), 3)

    def put(n: int) -> str:
        picture = noise.copy()
        picture[0, :8] = np.frombuffer(n.to_bytes(8, "big"), np.uint8)
        data = cv2.imencode(".png", picture)[1].tobytes()
        digest = hashlib.sha256(data).hexdigest()
        ObjectStore(settings.store).put_if_absent(image_key(digest, "png"), data, "image/png")
        return digest

    with ThreadPoolExecutor(16) as pool:
        shas = list(pool.map(put, range(images)))
    table = pd.DataFrame({"sha256": shas, "format": "png", "label": "NORMAL", "split": "train", "source": ""})
    table = table.assign(group="image:" + table["sha256"], batch=[f"week-{n * 10 // images}" for n in range(images)])
    data = to_parquet(table.sort_values("sha256", ignore_index=True).astype("string")[list(versions.MANIFEST_COLUMNS)])
    record = Dataset(
        dataset=number, parent=None, batches=(), counts={}, manifest_sha256=hashlib.sha256(data).hexdigest()
    )
    ObjectStore(settings.store).put_if_absent(layout.manifest(number), data)
    ObjectStore(settings.store).put_if_absent(layout.dataset_record(number), record.to_bytes())


def _status(name: str) -> int:
    """Bytes of this process by that line of /proc/self/status."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":")]
    return int(line.split()[1]) * 1024


def take(number: int) -> None:
    """In a process of its own: takes a dataset, an epoch of augmented and one of plain batches; prints what it took."""
    from cxr_ml import settings as all_settings
    from cxr_ml.training import inputs

    settings, peak, done = all_settings.load(), [0], threading.Event()
    before = _status("RssAnon")

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], _status("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    begun = time.perf_counter()
    images, _ = inputs.load(
        ObjectStore(settings.store),
        settings.cache_dir,
        versions.load_dataset(ObjectStore(settings.store), number),
        SIZE,
    )
    loaded = time.perf_counter() - begun
    rows = np.arange(len(images))
    ones = np.ones(len(images))
    for batches in (inputs.AugmentedBatches(images, rows, rows, ones, 128, 0, 0.5), inputs.Batches(images, rows, 32)):
        for i in range(len(batches)):
            batches[i]
    done.set()
    watcher.join()
    found = {"seconds": loaded, "before": before, "own": peak[0], "with mapped": _status("VmHWM")}
    print(json.dumps(found))


def memory(settings: Settings, folder: Path, images: int) -> None:
    for number, n in ((1, images // 10), (2, images)):
        begun = time.perf_counter()
        put_images(settings, number, n)
        print(f"{n} images generated and stored in {time.perf_counter() - begun:.0f} s", flush=True)
        for worker in ("first", "second"):
            cache = folder / f"{worker}-{number}"
            done = subprocess.run(
                [sys.executable, __file__, "--take", str(number)],
                env=os.environ | {"CXR_CACHE_DIR": str(cache)}, capture_output=True, text=True, check=True,
            )  # fmt: skip
            found = json.loads(done.stdout.strip().splitlines()[-1])
            size = sum(p.stat().st_size for p in cache.iterdir())
            print(
                f"{n} images, {worker} worker: ready in {found['seconds']:.0f} s, {size / 1e9:.2f} GB on disk; memory "
                f"of its own at most {found['own'] / 1e6:.0f} MB ({found['before'] / 1e6:.0f} MB before it began), "
                f"with pages of mapped files {found['with mapped'] / 1e6:.0f} MB",
                flush=True,
            )
            for path in cache.iterdir():
                path.unlink()


def speed(folder: Path) -> None:
    import keras
    from augment import xrays

    from cxr_ml.training import architectures, inputs

    weights = os.environ.get("CXR_WEIGHTS_DIR")
    settings = Settings(
        weights_dir=weights, training={"weights": "imagenet" if weights else "none", "image_size": SIZE}
    )
    images = xrays(folder / "drops", 640)
    rows, y = np.arange(len(images)), np.arange(len(images)) % 3
    batches = inputs.AugmentedBatches(
        images, rows, y, np.ones(len(images)), BATCH, 0, settings.training.corrupted_share
    )
    with ThreadPoolExecutor(batches.workers) as pool:
        list(pool.map(batches.__getitem__, range(4)))
        begun = time.perf_counter()
        list(pool.map(batches.__getitem__, range(len(batches))))
        alone = len(images) / (time.perf_counter() - begun)
    classifier = architectures.build_classifier(
        architectures.build_backbone(settings.training, settings.weights_dir, "inception_v3"), 3, 0.5
    )
    classifier.compile(keras.optimizers.Adam(1e-5), "sparse_categorical_crossentropy")
    some, rates = images[:128], {}
    for name, work in {
        "forward": lambda: classifier.predict(some, batch_size=BATCH, verbose=0),
        "training step": lambda: classifier.fit(some, y[:128], batch_size=BATCH, verbose=0),
    }.items():
        work()
        begun = time.perf_counter()
        work()
        rates[name] = len(some) / (time.perf_counter() - begun)
    print(f"AugmentedBatches alone, {SIZE} px, {os.cpu_count()} cores: {alone:.0f} images/s")
    for name, rate in rates.items():
        print(f"InceptionV3, {name}: {rate:.1f} images/s; the inputs deliver {alone / rate:.0f} times as many")


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000, help="generated images; 0: no memory is measured")
    parser.add_argument("--take", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.take:
        return take(given.take)
    if xrays := os.environ.get("CXR_XRAYS"):
        speed(Path(xrays))
    else:
        print("CXR_XRAYS names no folder of X-rays: no speed is measured.")
    if given.images:
        with tempfile.TemporaryDirectory() as name:
            (Path(name) / "store").mkdir()
            with bench_ingest.store(Path(name) / "store") as settings:
                memory(settings, Path(name), given.images)


if __name__ == "__main__":
    main()
