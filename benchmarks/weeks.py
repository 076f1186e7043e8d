"""Three weekly runs of real X-rays through the real Airflow, the last with swapped labels: what the gate makes of them.

    CXR_XRAYS=… CXR_WEIGHTS_DIR=… PROFILE=cpu .venv/bin/python benchmarks/weeks.py FOLDER [--kept 60]

Week 1 is the first drop without `--kept` training images of each class, week 2 the second drop, week 3 those that were
kept, with a third of the COVID19 labels swapped for NORMAL and PNEUMONIA. Each is a `make run ONCE=1` with the same
state, FOLDER/state, and prints its decision; settings come from CXR_* variables as always. Afterwards
`CXR_LOCAL=FOLDER/state make run` shows all of it in Airflow, and `cxr-ml` can roll back and verify.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
CLASSES = ("NORMAL", "COVID19", "PNEUMONIA")
FIRST, SECOND, THIRD = "2026-01-05", "2026-01-12", "2026-01-19"


def prepare(drops: Path, folder: Path, kept: int) -> None:
    """Lays the three drops out below `folder`: the first two are copies, the third is cut from the first."""
    chosen = random.Random(0)
    shutil.copytree(drops / FIRST, folder / FIRST)
    shutil.copytree(drops / SECOND, folder / SECOND)
    for label in CLASSES:
        files = chosen.sample(sorted((folder / FIRST / "train" / label).iterdir()), kept)
        swapped = kept // 3 if label == "COVID19" else 0
        for n, file in enumerate(files):
            said = ("NORMAL", "PNEUMONIA")[n % 2] if n < swapped else label
            (folder / THIRD / said).mkdir(parents=True, exist_ok=True)
            # Two classes may have files of the same name.
            shutil.move(file, folder / THIRD / said / f"{label.lower()}-{file.name}")


def main() -> None:
    """Runs the weeks, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="new or empty")
    parser.add_argument("--kept", type=int, default=60, help="training images of each class kept for the third week")
    given = parser.parse_args()
    folder = given.folder.resolve()
    if "CXR_XRAYS" not in os.environ:
        sys.exit("CXR_XRAYS must name the folder of X-rays.")
    if folder.exists() and any(folder.iterdir()):
        sys.exit(f"A new or empty folder was expected. Received: {given.folder}")
    prepare(Path(os.environ["CXR_XRAYS"]) / "drops", folder / "drops", given.kept)
    for name in (FIRST, SECOND, THIRD):
        print(f"\n== {name}", flush=True)
        run = {"CXR_LOCAL": str(folder / "state"), "DROP": str(folder / "drops" / name), "ONCE": "1"}
        if code := subprocess.run([sys.executable, "-m", "local.run"], cwd=REPOSITORY, env=os.environ | run).returncode:
            sys.exit(f"The run of {name} failed with code {code}; see above.")


if __name__ == "__main__":
    main()
