"""A store as runs leave it, with real hashes from the champion's pointer to the images."""

import hashlib

import pandas as pd
import report_samples as samples

from cxr_ml import pipeline
from cxr_ml.evaluation import stored_evaluations
from cxr_ml.ingest import tables
from cxr_ml.records import Dataset, HistoryEntry
from cxr_ml.registry import promotion
from cxr_ml.store import ObjectStore

SOURCES = {"NORMAL": "Kermany", "PNEUMONIA": "Kermany", "COVID19": "armiro [adults]"}
BEST = ((88, 1, 1), (0, 89, 1), (1, 1, 88))


def put_dataset(settings, number=1, images_per_class=2, parent=None, seed=0) -> Dataset:
    """A dataset of so many test images of each class, with one batch of its own more than its parent has."""
    rows = []
    for label in samples.CLASSES:
        for n in range(images_per_class):
            data = f"film {n} of {label} in {number}, {seed}".encode()
            sha = hashlib.sha256(data).hexdigest()
            ObjectStore(settings.store).put_if_absent(f"images/{sha[:2]}/{sha}.png", data)
            rows.append((sha, "png", label, "test", f"g{n}", SOURCES[label], f"b{number}"))
    frame = pd.DataFrame(rows, columns=["sha256", "format", "label", "split", "group", "source", "batch"])
    data = tables.to_parquet(frame.astype("string"))
    ObjectStore(settings.store).put_if_absent(f"datasets/{number}/manifest.parquet", data)
    batch = samples.batch(f"drop-{number}", batch=f"b{number}")
    nothing = pd.DataFrame(columns=["file", "sha256", "label", "verdict", "reasons"])
    ObjectStore(settings.store).put_if_absent(f"batches/b{number}/refused.parquet", tables.to_parquet(nothing))
    ObjectStore(settings.store).put_if_absent(f"batches/b{number}/batch.json", batch.to_bytes())
    for name in ("images", "classes"):
        ObjectStore(settings.store).put_if_absent(f"batches/b{number}/{name}.html", b"<p>Data Docs</p>")
    record = Dataset(
        dataset=number, parent=parent.dataset if parent else None, batches=(*(parent.batches if parent else ()),
        f"b{number}"), counts={"test": dict.fromkeys(samples.CLASSES, images_per_class)},
        manifest_sha256=hashlib.sha256(data).hexdigest(),
    )  # fmt: skip
    ObjectStore(settings.store).put_if_absent(f"datasets/{number}/dataset.html", b"<p>Data Docs</p>")
    ObjectStore(settings.store).put_if_absent(f"datasets/{number}/dataset.json", record.to_bytes())
    return record


def put_model(s, name, dataset, test=BEST, champion=None, **changes) -> str:
    """A stored model with its evaluation on that dataset, the champion's (an Evaluation) beside it."""
    weights = f"weights of {name}".encode()
    facts = {"model": name, "dataset": dataset.dataset, "dataset_sha256": dataset.manifest_sha256}
    facts["artefact_sha256"] = hashlib.sha256(weights).hexdigest()
    for field, file in (("validation_sha256", "validation.npy"), ("likeness_sha256", "likeness.npz")):
        facts[field] = hashlib.sha256(file.encode()).hexdigest()
        ObjectStore(s.store).put_if_absent(f"models/{name}/{file}", file.encode())
    ObjectStore(s.store).put_if_absent(f"models/{name}/model.keras", weights)
    history = samples.history().to_csv(index=False).encode()
    facts["history_sha256"] = hashlib.sha256(history).hexdigest()
    ObjectStore(s.store).put_if_absent(f"models/{name}/history.csv", history)
    record = samples.model().model_copy(update=facts | changes)
    files = {"model.json": record.to_bytes(), f"predictions-d{dataset.dataset}.parquet": f"said by {name}".encode()}
    for file, data in files.items():
        ObjectStore(s.store).put_if_absent(f"models/{name}/{file}", data)
    held = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
    stored_evaluations.save(
        ObjectStore(s.store), evaluate(name, dataset, test, champion).model_copy(update={"files": held})
    )
    return name


def evaluate(name, dataset, test=BEST, champion=None):
    facts = {"model": name, "dataset": dataset.dataset, "dataset_sha256": dataset.manifest_sha256}
    facts["artefact_sha256"] = hashlib.sha256(f"weights of {name}".encode()).hexdigest()
    return samples.evaluation(test=test, validation=test, champion=champion).model_copy(update=facts)


def run(settings, name, models, by="ann") -> HistoryEntry:
    """Decides on evaluated candidates and concludes, as a run does."""
    return promotion.apply_decision(
        ObjectStore(settings.store),
        pipeline.decide(ObjectStore(settings.store), settings.gate, settings.classes, name, models),
        by,
    )
