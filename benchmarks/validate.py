"""Seconds to judge images and classes of a batch, with both Data Docs: `python benchmarks/validate.py [ROWS]`."""

import resource
import sys
import time

import numpy as np
import pandas as pd

from cxr_ml.settings import Settings
from cxr_ml.validation import verdicts


def films(rows: int) -> pd.DataFrame:
    """Rows as ingest leaves them, one in fifty with a white box, one in a hundred too small."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "file": [f"{i}.png" for i in range(rows)],
            "label": rng.choice(["NORMAL", "COVID19", "PNEUMONIA"], rows),
            "width": np.where(rng.random(rows) < 0.01, 64, 1024).astype("int32"),
            "height": np.int32(1024),
            "bits": np.int16(8),
            "mean": rng.normal(125, 15, rows),
            "std": rng.normal(55, 5, rows),
            "p01": 0.0,
            "p99": 220.0,
            "saturation": 0.0,
            "sharpness": rng.normal(120, 20, rows),
            "black_border": 0.01,
            "white_border": 0.0,
            "white_box": np.where(rng.random(rows) < 0.02, 0.1, 0.0),
            "verdict": "accepted",
        }
    )
    return frame.assign(reasons=[[] for _ in range(rows)])


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    folder, table = Settings().expectations, films(count)
    verdicts.judge_images(films(100), folder)  # what is loaded once
    for attempt in range(2):
        start = time.perf_counter()
        judged, _, image_page = verdicts.judge_images(table, folder)
        between = time.perf_counter()
        _, _, _, class_page = verdicts.judge_classes(judged, folder)
        end = time.perf_counter()
        print(
            f"{count:,} rows, time {attempt + 1}: "
            f"images.json {between - start:.1f} s, classes.json {end - between:.1f} s; "
            f"{(judged['verdict'] == 'quarantined').sum():,} quarantined; pages {len(image_page) // 1024} and "
            f"{len(class_page) // 1024} KiB; peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB"
        )
