"""Pictures like chest films, changed copies of them, and the search for copies asked about both."""

import cv2
import numpy as np
import pandas as pd

from cxr_ml.imaging import hashes
from cxr_ml.settings import Settings
from cxr_ml.validation.duplicates import hash_columns, search

SETTINGS = Settings()
SIZE = 320
NO_MARGINS = hash_columns.parse_inner_hashes(pd.Series([], dtype=object))


def film(seed):
    """A chest-like picture: the same large shapes for all, ribs, vessels and grain of its own."""
    rng = np.random.default_rng(seed)
    picture = np.full((SIZE, SIZE), 30, np.float32)
    cv2.ellipse(picture, (160, 220), (130, 190), 0, 0, 360, 180, -1)
    for x in (105, 215):
        centre = (x + int(rng.integers(-8, 9)), 160 + int(rng.integers(-8, 9)))
        cv2.ellipse(picture, centre, (int(rng.integers(30, 42)), 90), 0, 0, 360, 60, -1)
    for _ in range(30):
        centre = tuple(int(v) for v in rng.integers(20, 300, 2))
        axes = tuple(int(v) for v in rng.integers(8, 70, 2))
        cv2.ellipse(picture, centre, axes, float(rng.uniform(0, 180)), 0, 200, float(rng.uniform(60, 220)), 3)
    picture = cv2.GaussianBlur(picture, (0, 0), 1.5) + rng.normal(0, 2, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)


def asked(pictures, known=(), index=None, settings=SETTINGS):
    """Finds duplicates among pictures by name; returns the answer by row of the batch."""
    everything = {**dict(known), **dict(pictures)}

    def rows(named):
        return pd.DataFrame(
            {
                "sha256": [n for n, _ in named],
                "phash": [hashes.perceptual_hash(p) for _, p in named],
                "fine_hash": [hashes.fine_hash(p) for _, p in named],
                "inner_hash": [hashes.inner_hash(p) for _, p in named],
                "label": "NORMAL",
                "format": "png",
            },
            columns=["sha256", *hash_columns.HASHES, "label", "format"],
        )

    frame = rows(pictures)
    if index is not None:
        frame.index = index
    return search.find_duplicates(frame, rows(list(known)), everything.__getitem__, settings.validation)


def jpeg(picture, quality):
    return cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 0)


def crop(picture, top, bottom, left, right):
    height, width = picture.shape
    return np.ascontiguousarray(
        picture[round(height * top) : round(height * (1 - bottom)), round(width * left) : round(width * (1 - right))]
    )


CHANGES = {
    "half the size": lambda p: cv2.resize(p, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "half as large again": lambda p: cv2.resize(p, None, fx=1.5, fy=1.5),
    "JPEG 50": lambda p: jpeg(p, 50),
    "brighter": lambda p: np.clip(p.astype(int) + 25, 0, 255).astype(np.uint8),
    "less contrast": lambda p: (128 + (p.astype(float) - 128) * 0.9).astype(np.uint8),
    "mirrored": lambda p: p[:, ::-1].copy(),
    "cropped": lambda p: p[6:-4, 9:-2],
    "cropped by 3 % at all sides": lambda p: jpeg(crop(p, 0.03, 0.03, 0.03, 0.03), 90),
    "cropped by 3 % at a corner": lambda p: jpeg(crop(p, 0.03, 0, 0.03, 0), 90),
    "cropped by 3 % at the opposite corner": lambda p: jpeg(crop(p, 0, 0.03, 0, 0.03), 90),
    "cropped, small and JPEG 60": lambda p: jpeg(
        cv2.resize(p[5:-5, 5:-5], (200, 200), interpolation=cv2.INTER_AREA), 60
    ),
}
