"""Small datasets in a store, for the tests of training and evaluation."""

import hashlib
import io

import numpy as np
import pandas as pd
from PIL import Image
from settings_samples import changed

from cxr_ml.dataset import versions
from cxr_ml.ingest.process_file import image_key
from cxr_ml.ingest.tables import to_parquet
from cxr_ml.records import Dataset
from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore

CLASSES = ("NORMAL", "COVID19", "PNEUMONIA")
COUNTS = {"train": 12, "validation": 4, "test": 5}

# The quickest training that has both stages.
QUICK = {
    "architectures": ("light",),
    "weights": "none",
    "image_size": 32,
    "batch_size": 8,
    "head_epochs": 2,
    "fine_tune_epochs": 1,
    "fine_tune_learning_rate": 1e-4,
    "dropout": 0.2,
}


def quick(settings: Settings, **changes) -> Settings:
    return changed(settings, **QUICK | changes)


def picture(label: str, number: int, side: int = 40) -> np.ndarray:
    """Noise around a level that tells the class, uint8 (side, side)."""
    level = {"NORMAL": 40, "COVID19": 120, "PNEUMONIA": 200}.get(label, 80)
    noise = np.random.default_rng([7, number]).normal(level, 15, (side, side))
    return noise.clip(0, 255).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def put_dataset(
    settings: Settings, number: int = 1, counts: dict[str, int] = COUNTS, labels=CLASSES, seed: int = 0
) -> Dataset:
    """A committed dataset with so many images of each label in each split, as `build_dataset` leaves one."""
    rows, serial = [], 10_000 * seed
    for split, n in counts.items():
        for label in labels:
            for _ in range(n):
                serial += 1
                data = png(picture(label, serial))
                digest = hashlib.sha256(data).hexdigest()
                ObjectStore(settings.store).put_if_absent(image_key(digest, "png"), data, "image/png")
                rows.append((digest, "png", label, split, f"image:{digest}", "", "week-0a1b2c3d"))
    manifest = (
        pd.DataFrame(rows, columns=versions.MANIFEST_COLUMNS).sort_values("sha256", ignore_index=True).astype("string")
    )
    data = to_parquet(manifest)
    measured = manifest[["sha256"]].assign(view="PA", width=40, height=40)
    key = "batches/week-0a1b2c3d/measurements.parquet"
    found = ObjectStore(settings.store).get_or_none(key)
    known = [pd.read_parquet(io.BytesIO(found[0]))] if found else []
    overwrite(settings, key, to_parquet(pd.concat([*known, measured]).drop_duplicates("sha256")))
    record = Dataset(
        dataset=number,
        parent=number - 1 or None,
        batches=("week-0a1b2c3d",),
        counts={split: {label: n for label in labels} for split, n in counts.items()},
        manifest_sha256=hashlib.sha256(data).hexdigest(),
    )
    ObjectStore(settings.store).put_if_absent(f"datasets/{number}/manifest.parquet", data)
    ObjectStore(settings.store).put_if_absent(f"datasets/{number}/dataset.json", record.to_bytes())
    return record


def overwrite(settings: Settings, key: str, data: bytes) -> None:
    """What the project itself never does: changes an object."""
    ObjectStore(settings.store).client.put_object(
        Bucket=settings.store.bucket, Key=settings.store.prefix + key, Body=data
    )
