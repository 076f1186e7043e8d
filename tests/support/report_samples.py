"""Records as a run leaves them, for the tests of report, figures and mail."""

import math
from functools import cache

import numpy as np
import pandas as pd

from cxr_ml.evaluation import metrics as figures
from cxr_ml.records import (
    Batch,
    Champion,
    Check,
    ClassMetrics,
    Dataset,
    Decision,
    Difference,
    Evaluation,
    Explanation,
    Failure,
    Metrics,
    Model,
    OperatingPoint,
    PerturbationResult,
    Run,
    Slice,
)

CLASSES = ("NORMAL", "COVID19", "PNEUMONIA")
GOOD = ((83, 3, 4), (1, 88, 1), (4, 2, 84))
POOR = ((80, 6, 4), (5, 81, 4), (3, 5, 82))


@cache
def metrics(confusion=GOOD, classes=CLASSES) -> Metrics:
    """Metrics of these decisions, with intervals; NaN where a class has no image."""
    cells = [(t, p) for t, row in enumerate(confusion) for p, n in enumerate(row) for _ in range(n)]
    if not cells:
        nothing = ClassMetrics(**dict.fromkeys(figures.OF_CLASS, math.nan), support=0)
        nans = dict.fromkeys(figures.OF_ALL, math.nan)
        return Metrics(classes=dict.fromkeys(classes, nothing), **nans, confusion=confusion, intervals={})
    y, predicted = np.array(cells).T
    sure = 0.2 / len(classes) + 0.8 * np.eye(len(classes))[predicted]
    return figures.measure(y, predicted, sure, classes, np.arange(len(y)))


def difference(own: Metrics, other: Metrics) -> Difference:
    """As if the candidate were better or worse on images that are few beside those that both decide alike."""
    values = {n: v - figures.flat(other)[n] for n, v in figures.flat(own).items()}
    spans = {n: (v - abs(v) / 2, v + abs(v) / 2) for n, v in values.items() if np.isfinite(v)}
    return Difference(figures=values, intervals=spans, only_candidate=9, only_champion=4, mcnemar=0.27)


def moved(classes=CLASSES, hidden=0.4) -> tuple[PerturbationResult, ...]:
    changes = {"lungs hidden": hidden, "border hidden": 0.9, "white box top left": 0.93, "mirrored": 0.95}
    return tuple(
        PerturbationResult(change=c, images=270, recalls=dict.fromkeys(classes, v), balanced_accuracy=v, before=0.95,
              decided_otherwise=0.96 - v, shift=0.5 * (1 - v))
        for c, v in changes.items()
    )  # fmt: skip


def evaluation(architecture="inception_v3", test=GOOD, validation=GOOD, classes=CLASSES, champion=None) -> Evaluation:
    own = metrics(test, classes)
    sharpened = own.model_copy(update={"macro_f1": own.macro_f1 - 0.02})
    few = Slice(by="source", value="a rare one", images=7, metrics=None, why="7 images are too few to judge by.")
    return Evaluation(
        model=f"{architecture}-d3-1a2b3c4d", architecture=architecture, artefact_sha256="a" * 64, dataset=3,
        dataset_sha256="d" * 64, validation=metrics(validation, classes), test=own, plain=metrics(validation, classes),
        robustness={"shrunk": own, "sharpened": sharpened}, champion=champion, moved=moved(classes),
        slices=(Slice(by="source", value="one", images=263, metrics=own), few), reload_difference=2e-6,
        difference=difference(own, champion.test) if champion else None,
    )  # fmt: skip


def explanation(of: str) -> Explanation:
    """Where a model looked; of PNEUMONIA there was nothing to look at."""
    shares = {"NORMAL": 0.21, "COVID19": 0.48, "PNEUMONIA": float("nan")}
    return Explanation(
        model=of, artefact_sha256="a" * 64, dataset=3, dataset_sha256="d" * 64, outside=shares,
        evenly=0.36, shown=(), sheets={label: "e" * 64 for label in shares},
    )  # fmt: skip


def model(architecture="inception_v3", classes=CLASSES) -> Model:
    return Model(
        model=f"{architecture}-d3-1a2b3c4d", architecture=architecture, dataset=3, dataset_sha256="d" * 64,
        artefact_sha256="a" * 64, classes=classes, image_size=256, weights="imagenet", weights_sha256="e" * 64,
        settings={"head_learning_rate": 0.001, "fine_tune_learning_rate": 1e-5, "batch_size": 128, "seed": 0},
        epochs={"head": 12, "fine_tune": 6}, seconds={"head": 184.2, "fine_tune": 1403.0},
        images_per_second={"head": 5012.3, "fine_tune": 41.5}, code="commit 0123abc+changes",
        packages={"tensorflow": "2.21.0", "keras": "3.15.1"},
        hardware={"cpu": "Some Processor <7>", "cores": 2, "memory_gib": 24, "gpus": ""}, validation_sha256="c" * 64,
        likeness_sha256="b" * 64, history_sha256="f" * 64,
        operating_point=OperatingPoint(
            temperature=1.31, offsets=dict.fromkeys(classes, 0.0) | {classes[-1]: 0.35},
            floors=dict.fromkeys(classes, 0.9), images=300,
        ),
    )  # fmt: skip


def history(head=12, fine_tune=6, seed=0) -> pd.DataFrame:
    epoch = np.arange(1, head + fine_tune + 1)
    noise = np.random.default_rng(seed).normal(0, 0.01, (2, len(epoch)))
    loss = 0.25 + 0.8 * np.exp(-epoch / 4) + noise[0]
    val_loss = 0.3 + 0.6 * np.exp(-epoch / 3) + 0.004 * np.maximum(0, epoch - 9) + noise[1]
    return pd.DataFrame(
        {
            "stage": ["head"] * head + ["fine_tune"] * fine_tune, "epoch": epoch, "loss": loss,
            "accuracy": 1 - loss / 2.5, "val_loss": val_loss, "val_accuracy": 1 - val_loss / 2.5,
            "f1": 1 - loss / 2.4, "val_f1": 1 - val_loss / 2.4, "calibrated": 0.9 * loss,
            "val_calibrated": 0.27 + 0.6 * np.exp(-epoch / 3) + 0.5 * noise[1],
            "learning_rate": [1e-3] * head + [1e-5] * fine_tune,
            "images_per_second": 41.5, "seconds": 3.0, "kept": (epoch == head - 1) | (epoch == head + fine_tune),
        }
    )  # fmt: skip


def batch(drop="2026-01-12", **changes) -> Batch:
    return Batch(
        **{
            "batch": f"{drop}-0f1e2d3c",
            "drop": drop,
            "counts": {
                "accepted": {"NORMAL": 310, "COVID19": 305, "PNEUMONIA": 299},
                "quarantined": {"NORMAL": 4, "COVID19": 7, "?": 2},
                "rejected_class": {"TUBERCULOSIS": 120},
                "duplicate": {"NORMAL": 3, "PNEUMONIA": 9},
            },
            "reasons": {"black_border": 5, "decode_error": 4, "sharpness": 4, "white_box": 120},
            "rejected_classes": {"TUBERCULOSIS": "artefact_rate is 0.92 (at most 0.05): white boxes beside the film."},
            "failures": (
                Failure(
                    suite="classes", expectation="expect_column_values_to_be_between", column="artefact_rate",
                    limit="≤ 0.05", observed="0.92", subject="TUBERCULOSIS",
                ),
            ),
            **changes,
        }
    )  # fmt: skip


def dataset(classes=CLASSES) -> Dataset:
    return Dataset(
        dataset=3, parent=2, batches=("2026-01-05-aaaabbbb", "2026-01-12-0f1e2d3c"), manifest_sha256="d" * 64,
        counts={
            "train": {c: 820 - 140 * i % 700 for i, c in enumerate(classes)},
            "validation": {c: 150 - 9 * i for i, c in enumerate(classes)},
            "test": {c: 90 for c in classes},
        },
    )  # fmt: skip


def check(name: str, observed: float, floor: float, reason: str) -> Check:
    """A check of the gate that a figure meets a floor."""
    kind = "share" if name.startswith("recall ") else "score"
    passed = observed >= floor
    return Check(name=name, kind=kind, observed=observed, operator="≥", limit=floor, passed=passed, reason=reason)


def checks(test: Metrics) -> tuple[Check, ...]:
    """Recall checks in the gate's form, for the metrics given."""
    floors = {"COVID19": 0.95, "PNEUMONIA": 0.90, "NORMAL": 0.70}
    found = []
    for name, floor in floors.items():
        if name in test.classes:
            recall = test.classes[name].recall
            ok = recall >= floor
            said = "enough" if ok else "too many are missed"
            found.append(check(f"recall {name}", recall, floor, f"{name}: {said}."))
    found.append(check("macro F1", test.macro_f1, 0.85, "All classes alike."))
    return tuple(found)


def run(test=GOOD, champion=POOR, classes=CLASSES, **changes) -> Run:
    """A run of two architectures on three classes: promoted when the recall checks pass, else refused."""
    old = evaluation("resnet101_v2", champion, champion, classes) if champion else None
    first = evaluation("inception_v3", test, GOOD if classes == CLASSES else test, classes, old)
    second = evaluation("resnet101_v2", test, POOR if classes == CLASSES else test, classes, old)
    passed = all(c.passed for c in checks(first.test))
    decision = Decision(
        run="scheduled__2026-01-12T03:00:00+00:00", model=first.model, dataset=3, champion=old.model if old else None,
        candidates=(first.model, second.model), promote=passed, checks=checks(first.test),
        reason="Every check passed." if passed else "Recall of COVID19 is below its floor, so the champion stays.",
    )  # fmt: skip
    return Run(
        **{
            "run": decision.run,
            "outcome": "promoted" if passed else "refused",
            "batches": (batch(),),
            "dataset": dataset(classes),
            "models": (model("inception_v3", classes), model("resnet101_v2", classes)),
            "evaluations": (first, second),
            "decision": decision,
            "champion": Champion(version=12, model=first.model, artefact_sha256="a" * 64, history=14)
            if passed
            else Champion(version=11, model=old.model, artefact_sha256="b" * 64, history=11)
            if old
            else None,
            **changes,
        }
    )


def histories(of: Run) -> dict[str, pd.DataFrame]:
    return {m.model: history(seed=i) for i, m in enumerate(of.models)}
