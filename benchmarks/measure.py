"""Images measured per second: ours, CleanVision with all its checks, and merely decoding the same files in full.

    .venv/bin/python benchmarks/measure.py FOLDER [--rounds 3] [--files 0]

Each contestant is a process of its own and is timed from the first file to the last, without its imports; contestants
take turns, and the median of the rounds counts. Files that ours refuses (WebP, text) are left out for all. CleanVision
comes from PyPI into an environment of its own.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

CLEANVISION = "cleanvision==0.3.7"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def decode(path: str) -> None:
    """Pillow reads the whole file and hands its pixels over as an array, as ours does before it measures."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        image.load()
        np.asarray(image)


def measure(path: str) -> None:
    """Ours: read, refuse or decode, measure, clean."""
    from cxr_ml.imaging.measure import measure_image
    from cxr_ml.settings import Settings

    global _settings
    _settings = _settings or Settings()
    measure_image(Path(path).read_bytes(), _settings.images)


_settings = None


def one_thread() -> None:
    import cv2

    cv2.setNumThreads(1)


def cleanvision(paths: list[str]) -> tuple[float, float]:
    """Seconds by the clock and of the processor, of all checks of CleanVision on `paths`."""
    from cleanvision import Imagelab

    lab = Imagelab(filepaths=paths)
    start, busy = time.perf_counter(), time.process_time()
    lab.find_issues(n_jobs=1, verbose=False)
    return time.perf_counter() - start, time.process_time() - busy


def each(work: Callable[[str], None], paths: list[str]) -> tuple[float, float]:
    """Seconds by the clock and of the processor, of `work` on every path, after one of them to warm up."""
    one_thread()
    work(paths[0])
    start, busy = time.perf_counter(), time.process_time()
    for path in paths:
        work(path)
    return time.perf_counter() - start, time.process_time() - busy


def two(paths: list[str]) -> tuple[float, float]:
    """Seconds by the clock of ours in two processes, which are already running; those of the processor are NaN."""
    with ProcessPoolExecutor(2, initializer=one_thread) as pool:
        list(pool.map(measure, paths[:8]))
        start = time.perf_counter()
        list(pool.map(measure, paths, chunksize=8))
        return time.perf_counter() - start, math.nan


CONTESTANTS: dict[str, Callable[[list[str]], tuple[float, float]]] = {
    "decode only": lambda paths: each(decode, paths),
    "cxr-ml": lambda paths: each(measure, paths),
    "cxr-ml, 2 processes": two,
    "CleanVision": cleanvision,
}


def readable(folder: Path) -> list[str]:
    """The files below `folder` that ours does not refuse."""
    from cxr_ml.imaging.formats import BadImage

    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            measure(str(path))
        except BadImage:
            continue
        found.append(str(path))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=0, help="0: all; else so many, evenly spread")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        print(json.dumps(CONTESTANTS[options.contestant](json.load(sys.stdin))))
        return
    paths = readable(options.folder)
    if options.files:
        paths = paths[:: -(-len(paths) // options.files)]
    if not paths:
        sys.exit(f"A folder with PNG or JPEG files was expected. Received: {options.folder}")
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTESTANTS}
    for _ in range(options.rounds):
        for name in CONTESTANTS:
            taken[name].append(_run(name, options.folder, paths))
    middle = {n: [statistics.median(side) for side in zip(*t, strict=True)] for n, t in taken.items()}
    base = middle["decode only"]
    print(
        f"{len(paths)} files, {sum(os.path.getsize(p) for p in paths) / 1e6:.0f} MB, median of {options.rounds} rounds"
    )
    print(f"{'':20} {'images/s':>9} {'time / decode':>14} {'CPU ms/image':>13} {'CPU / decode':>13}")
    for name, (clock, busy) in middle.items():
        each_ms = busy / len(paths) * 1e3
        print(f"{name:20} {len(paths) / clock:9.0f} {clock / base[0]:14.2f} {each_ms:13.2f} {busy / base[1]:13.2f}")


def _run(name: str, folder: Path, paths: list[str]) -> tuple[float, float]:
    python = [sys.executable]
    if name == "CleanVision":
        uv = Path(sys.executable).with_name("uv")
        python = [str(uv), "run", "-q", "--isolated", "--no-project", "--with", CLEANVISION, "python"]
    done = subprocess.run(
        [*python, __file__, str(folder), "--contestant", name],
        input=json.dumps(paths), text=True, capture_output=True, check=True, env=os.environ | ONE_THREAD,
    )  # fmt: skip
    clock, busy = json.loads(done.stdout.strip().splitlines()[-1])
    return clock, busy


if __name__ == "__main__":
    main()
