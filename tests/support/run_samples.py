"""A store with a run that is ready for the gate, for the tests of decision, report and mail."""

import hashlib

import pandas as pd
import report_samples as samples

from cxr_ml import layout, pipeline
from cxr_ml.evaluation import stored_evaluations
from cxr_ml.ingest import tables
from cxr_ml.records import Decision, Evaluation, Model
from cxr_ml.registry import promotion
from cxr_ml.store import ObjectStore

RUN = "manual__2026-01-12T03:00:00+00:00"
TEAM = "team@hospital.example"
SECOND = "second@hospital.example"
BETTER = ((88, 1, 1), (0, 89, 1), (1, 1, 88))
BATCH = samples.batch()
MANIFEST = tables.to_parquet(
    pd.DataFrame([("Kermany", c) for c in samples.CLASSES], columns=["source", "label"], dtype="string")
)
DATASET = samples.dataset().model_copy(update={"manifest_sha256": hashlib.sha256(MANIFEST).hexdigest()})


def evaluation(*args, **kwargs) -> Evaluation:
    found = samples.evaluation(*args, **kwargs)
    weights = hashlib.sha256(found.model.encode()).hexdigest()
    files = {"model.json": hashlib.sha256(model(found.architecture, weights).to_bytes()).hexdigest()}
    facts = {"dataset_sha256": DATASET.manifest_sha256, "artefact_sha256": weights, "files": files}
    return found.model_copy(update=facts)


def model(architecture: str, weights: str) -> Model:
    return samples.model(architecture).model_copy(update={"artefact_sha256": weights})


def put_model(settings, evaluation: Evaluation) -> str:
    """A stored model with its record, history and evaluation."""
    folder = f"models/{evaluation.model}"
    record = model(evaluation.architecture, evaluation.artefact_sha256)
    ObjectStore(settings.store).put_if_absent(f"{folder}/model.keras", evaluation.model.encode())
    ObjectStore(settings.store).put_if_absent(f"{folder}/history.csv", samples.history().to_csv(index=False).encode())
    ObjectStore(settings.store).put_if_absent(f"{folder}/model.json", record.to_bytes())
    stored_evaluations.save(ObjectStore(settings.store), evaluation)
    return evaluation.model


def put_refused(settings):
    """Of the batch: a decode error without a picture, and five white boxes of which the store has thumbnails."""
    rows = [("x/<b>.png", "", "NORMAL", "quarantined", ["decode_error"])]
    rows += [(f"x/{n}.png", f"{n}" * 64, "TUBERCULOSIS", "rejected_class", ["white_box"]) for n in range(5)]
    frame = pd.DataFrame(rows, columns=["file", "sha256", "label", "verdict", "reasons"])
    frame = frame.assign(width=9, height=9)
    ObjectStore(settings.store).put_if_absent(f"batches/{BATCH.batch}/refused.parquet", tables.to_parquet(frame))
    for n in range(5):
        ObjectStore(settings.store).put_if_absent(layout.thumbnail(f"{n}" * 64), f"film {n}".encode(), "image/jpeg")


def fill(settings) -> None:
    """Puts a batch, a dataset and two evaluated candidates into an empty store."""
    for name in ("images", "classes"):
        ObjectStore(settings.store).put_if_absent(
            f"batches/{BATCH.batch}/{name}.html", f"<p>Data Docs of {name}</p>".encode()
        )
    ObjectStore(settings.store).put_if_absent(f"batches/{BATCH.batch}/batch.json", BATCH.to_bytes())
    put_refused(settings)
    first = samples.batch("2026-01-05", batch=DATASET.batches[0])
    parent = DATASET.model_copy(update={"dataset": 2, "parent": None, "batches": DATASET.batches[:1]})
    ObjectStore(settings.store).put_if_absent(f"batches/{first.batch}/batch.json", first.to_bytes())
    ObjectStore(settings.store).put_if_absent("datasets/2/dataset.json", parent.to_bytes())
    ObjectStore(settings.store).put_if_absent("datasets/3/manifest.parquet", MANIFEST)
    ObjectStore(settings.store).put_if_absent("datasets/3/dataset.html", b"<p>Data Docs of the dataset</p>")
    ObjectStore(settings.store).put_if_absent("datasets/3/dataset.json", DATASET.to_bytes())
    put_model(settings, evaluation("inception_v3", BETTER))
    put_model(settings, evaluation("mobilenet_v2", samples.GOOD, samples.POOR))


MODELS = ["inception_v3-d3-1a2b3c4d", "mobilenet_v2-d3-1a2b3c4d"]


def concluded(settings, run=RUN) -> Decision:
    decision = pipeline.decide(ObjectStore(settings.store), settings.gate, settings.classes, run, MODELS)
    promotion.apply_decision(ObjectStore(settings.store), decision, "ann")
    return decision


def snapshot(settings) -> dict[str, bytes]:
    return {key: ObjectStore(settings.store).get(key) for key in ObjectStore(settings.store).keys("")}


def rolled_back(settings) -> str:
    concluded(settings)
    beside = evaluation("inception_v3", BETTER)
    found = evaluation("mobilenet_v2", samples.GOOD, champion=beside)
    stored_evaluations.save(ObjectStore(settings.store), found)
    decision = pipeline.decide(ObjectStore(settings.store), settings.gate, settings.classes, "next", MODELS[1:])
    checks = tuple(check.model_copy(update={"passed": True}) for check in decision.checks)
    promotion.apply_decision(
        ObjectStore(settings.store), decision.model_copy(update={"promote": True, "checks": checks}), "ann"
    )
    return promotion.rollback(
        ObjectStore(settings.store), None, "eve", "Misses\r\nBcc: too@much.example <b>", "manual-1"
    ).run
