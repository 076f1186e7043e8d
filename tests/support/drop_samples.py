"""Small handmade drops, and what a store holds, shared by the tests of ingest, validation and dataset."""

import hashlib
import io
import json
import os
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image

from cxr_ml.dataset import build, versions
from cxr_ml.imaging import phantoms
from cxr_ml.ingest import ingest_drop, tables
from cxr_ml.records import Batch
from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore
from cxr_ml.validation import committed_batches, judge_batch

SHIPPED = Path(__file__).parents[2] / "expectations"
LABELS = ("NORMAL", "COVID19", "PNEUMONIA")


@lru_cache(maxsize=256)
def film(number: int, label: str = "NORMAL") -> np.ndarray:
    """Another phantom for each number, uint8 [256, 256]."""
    picture = phantoms.draw_phantom(label, np.random.default_rng([20, number]))
    picture.flags.writeable = False
    return picture


def encoded(picture: np.ndarray, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format, **options)
    return buffer.getvalue()


@lru_cache(maxsize=256)
def png(number: int, label: str = "NORMAL") -> bytes:
    return encoded(film(number, label), compress_level=1)


def resized(number: int, side: int = 200) -> bytes:
    """The same film, smaller and as a JPEG."""
    return encoded(cv2.resize(film(number), (side, side), interpolation=cv2.INTER_AREA), "JPEG", quality=85)


def boxed(number: int) -> bytes:
    """The film with a solid white box over it."""
    picture = film(number).copy()
    picture[190:230, 40:120] = 255
    return encoded(picture)


def csv(*rows: str, header: str = "filename,label") -> bytes:
    return "\n".join([header, *rows, ""]).encode()


def put_drop(settings: Settings, name: str, files: dict[str, bytes]) -> Path:
    """Lays a drop into an inbox that is a folder."""
    root = Path(settings.inbox.path) / name
    root.mkdir()
    for file, data in files.items():
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, (1_700_000_000, 1_700_000_000))
    return root


def take(settings: Settings, name: str, files: dict[str, bytes] | None = None) -> Batch:
    """A drop on its whole way to a committed batch."""
    if files is not None:
        put_drop(settings, name, files)
    return judge_batch.validate_batch(
        ObjectStore(settings.store), settings, ingest_drop.ingest(ObjectStore(settings.store), settings, name)
    )


def ingested(settings: Settings, batch: str) -> pd.DataFrame:
    return tables.read_batch(ObjectStore(settings.store), batch).set_index("file")


def judged(settings: Settings, batch: str) -> pd.DataFrame:
    return committed_batches.read_measurements(ObjectStore(settings.store), batch).set_index("file")


def verdicts(table: pd.DataFrame) -> dict[str, tuple]:
    """File -> (verdict, *reasons)."""
    return {f: (v, *r) for f, v, r in zip(table.index, table["verdict"], table["reasons"], strict=True)}


def snapshot(settings: Settings) -> dict[str, bytes]:
    """Every object below the prefix."""
    return {key: ObjectStore(settings.store).get(key) for key in ObjectStore(settings.store).keys("")}


def elsewhere(settings: Settings) -> Settings:
    """The same settings on a store that is still empty."""
    return settings.replace(store={"prefix": f"{settings.store.prefix}elsewhere/"})


def overwrite(settings: Settings, key: str, data: bytes) -> None:
    """What the project itself never does: changes an object."""
    ObjectStore(settings.store).client.put_object(
        Bucket=settings.store.bucket, Key=settings.store.prefix + key, Body=data
    )


def loosened(settings: Settings, folder: Path, suite: str = "dataset", **limits: dict) -> Settings:
    """Settings with a copy of the shipped suites in which the limits of the named columns are others."""
    folder.mkdir(exist_ok=True)
    for path in SHIPPED.glob("*.json"):
        content = json.loads(path.read_text())
        if path.stem == suite:
            for column, kwargs in limits.items():
                (entry,) = [e for e in content["expectations"] if e["kwargs"]["column"] == column]
                entry["kwargs"] |= kwargs
        (folder / path.name).write_text(json.dumps(content))
    return settings.replace(validation={"expectations": folder})


class Died(Exception):
    """Stands for a process that was killed."""


def die_at_write(monkeypatch, number: int) -> None:
    """From its call `number` on, counted from 1, the store writes nothing and raises."""
    calls, put = [], ObjectStore.put_if_absent

    def dying(*args, **kwargs):
        calls.append(args[1])
        if len(calls) >= number:
            raise Died(args[1])
        return put(*args, **kwargs)

    monkeypatch.setattr(ObjectStore, "put_if_absent", dying)


SPLITS = {"train": 2, "validation": 1, "test": 1}
HEADER = "filename,label,patient_id,split"


def week(first, splits=SPLITS, labels=LABELS):
    """A drop with class folders: new films from the number `first` on, so many per class and split."""
    files, number = {}, first
    for split, count in splits.items():
        for label in labels:
            for _ in range(count):
                files[f"{split}/{label}/{number}.png"] = png(number)
                number += 1
    return files


def listed(*rows):
    """A drop with labels.csv: a row and its film for each (number, label, patient, split)."""
    files = {f"{number}.png": png(number) for number, *_ in rows}
    lines = [f"{number}.png,{label},{patient},{split}" for number, label, patient, split in rows]
    return files | {"labels.csv": csv(*lines, header=HEADER)}


def built(settings) -> pd.DataFrame:
    record, new = build.build_dataset(ObjectStore(settings.store), settings)
    assert new
    return versions.load_manifest(ObjectStore(settings.store), record)


def sha(number: int) -> str:
    return hashlib.sha256(png(number)).hexdigest()


def split_of(table: pd.DataFrame) -> dict[str, str]:
    return dict(zip(table["sha256"], table["split"], strict=True))
