"""A large store for benchmarks/console.py, written through the library's own records; figures in it are made up."""

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from cxr_ml import layout
from cxr_ml.evaluation import metrics
from cxr_ml.imaging import phantoms
from cxr_ml.ingest import tables
from cxr_ml.records import (
    Batch,
    Champion,
    Check,
    Dataset,
    Decision,
    Difference,
    Drift,
    Evaluation,
    HistoryEntry,
    Metrics,
    Model,
    OperatingPoint,
    PerturbationResult,
    Probe,
    Ruling,
    Slice,
)
from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore
from cxr_ml.validation import committed_batches, judge_batch, rulings, thumbnails

CLASSES = ("NORMAL", "COVID19", "PNEUMONIA")
PROMOTED = 60
_BEGAN = datetime(2025, 1, 6, 3, tzinfo=UTC)
_UNFIT = ("white_box", "too_small", "blurred", "blank", "exposure", "mostly_border")  # two of them in each batch
_LIGHT = (12_000, "text/csv"), (30_000, "image/png"), (2_000, "application/octet-stream")
_POOL = ThreadPoolExecutor(8)


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _all(do: Callable[..., Any], *arguments: Sequence[Any]) -> None:
    list(_POOL.map(do, *arguments))


def write_batches(s: Settings, count: int, files: int) -> list[str]:
    """So many judged batches of so many files each, a tenth of them refused. Returns their names, oldest first."""
    names = []
    picture = _picture(s)
    for number in range(count):
        drop = f"{_BEGAN + timedelta(weeks=number):%Y-%m-%d}"
        names.append(f"{drop}-{_sha(drop)[:8]}")
        frame = _table(number, files)
        rows = [frame[at : at + tables.ROWS] for at in range(0, files, tables.ROWS)]
        tables.write_table(ObjectStore(s.store), s.cache_dir, layout.measurements(names[-1]), rows)
        committed_batches.write_refused(ObjectStore(s.store), s.cache_dir, names[-1])
        why = "artefact_rate is 0.92 (at most 0.05): white boxes beside the film."
        counts, refused = judge_batch.count_files(frame), frame.loc[frame["verdict"] != "accepted"]
        record = Batch(
            batch=names[-1], drop=drop, counts=counts, rejected_classes={"TUBERCULOSIS": why} if number % 2 else {},
            reasons=dict(sorted(Counter(code for codes in frame["reasons"] for code in codes).items())),
        )  # fmt: skip
        for page in ("images", "classes"):
            ObjectStore(s.store).put_if_absent(layout.batch_data_docs(names[-1], page), b"<p>Data Docs</p>" * 20_000)
        ObjectStore(s.store).put_if_absent(layout.batch_record(names[-1]), record.to_bytes())
        if number == count - 1:  # of the newest, whose files the wall shows first
            some = [sha for sha in refused["sha256"].head(600) if sha]
            _all(lambda sha: ObjectStore(s.store).put_if_absent(layout.thumbnail(sha), picture, "image/jpeg"), some)
    return names


def _picture(s: Settings) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(phantoms.draw_phantom("NORMAL", np.random.default_rng(0))).save(buffer, "PNG")
    return thumbnails.make(buffer.getvalue(), s.images)


def _table(number: int, files: int) -> pd.DataFrame:
    """Measurements of a batch. Of 100 files 4 are of a rejected class, 3 copies, 2 unfit, 1 empty; spread evenly."""
    rng = np.random.default_rng(number)
    kind = rng.permutation(files) % 100
    unfit = [_UNFIT[(number + k) % len(_UNFIT)] for k in range(2)]
    # Not every drop has what the wall is filtered by.
    whole = "rejected_class:artefacts" if number % 2 else "rejected_class:too_few"
    reasons = [[whole], *([whole],) * 3, *(["near_duplicate"],) * 3, *([code] for code in unfit), ["empty_file"]]
    verdicts = ["rejected_class"] * 4 + ["duplicate"] * 3 + ["quarantined"] * 3
    labels = np.where(kind < 4, "TUBERCULOSIS", np.array(CLASSES)[rng.integers(0, 3, files)])
    there = kind != 9

    def hexes(size: int) -> np.ndarray:
        text = rng.bytes(size * files).hex()
        return np.where(there, [text[at : at + 2 * size] for at in range(0, len(text), 2 * size)], "")

    shas = hexes(32)
    frame = pd.DataFrame(
        {
            "file": [f"train/{label}/{n:06d}-{number:02d}.png" for n, label in enumerate(labels)],
            "sha256": shas, "format": np.where(there, "png", ""), "bytes": np.where(there, 60_000, 0),
            "width": np.where(there, 1024, 0), "height": np.where(there, 1024, 0), "mode": np.where(there, "L", ""),
            "bits": np.where(there, 8, 0), "label": labels, "label_raw": labels, "split_hint": "train",
            "patient": hexes(8), "source": "somewhere", "view": "PA",
            **{name: rng.normal(100, 10, files) for name in ("mean", "std", "p01", "p99", "sharpness")},
            **{name: rng.random(files) / 20 for name in ("saturation", "black_border", "white_border")},
            "white_box": np.where(kind < 4, rng.random(files), 0.0), "phash": hexes(8), "fine_hash": hexes(128),
            "inner_hash": "", "ring": hexes(448), "verdict": [verdicts[k] if k < 10 else "accepted" for k in kind],
            "reasons": [reasons[k] if k < 10 else [] for k in kind],
        }
    )  # fmt: skip
    frame = frame.astype({name: "string" for name, of in tables.COLUMNS.items() if of == "string"})
    copies = (kind >= 4) & (kind < 7)
    frame["duplicate_of"] = pd.array(np.where(copies, np.roll(shas, 1), ""), "string")
    names = f"batch-{number}/" + frame["file"].to_numpy(object)
    frame["duplicate_file"] = pd.array(np.where(copies, np.roll(names, 1), ""), "string")
    return frame


def write_rulings(s: Settings, names: Sequence[str], count: int) -> None:
    """So many rulings on refused images of these batches, the hundreds folded as the library does."""
    rows = pd.concat(
        [committed_batches.read_refused(ObjectStore(s.store), name).to_pandas().assign(batch=name) for name in names]
    )
    rows = rows[(rows["sha256"] != "") & rows["label"].isin(CLASSES)]

    def one(number: int) -> None:
        row = rows.iloc[number - 1]
        entry = Ruling(
            number=number, sha256=row["sha256"], batch=row["batch"], file=row["file"], action="release",
            label=row["label"], by="ann", why="The bright area is the collimator.", at=_BEGAN.isoformat(),
            reasons=tuple(row["reasons"]),
        )  # fmt: skip
        ObjectStore(s.store).put_if_absent(layout.ruling(number), entry.to_bytes())

    _all(one, range(1, count + 1))
    rulings.fold(ObjectStore(s.store))


def write_datasets(s: Settings, names: Sequence[str], count: int) -> None:
    """Dataset versions, each of one more batch than the last."""
    for n in range(1, count + 1):
        counts = {split: {label: part * n for label in CLASSES}
                  for split, part in (("train", 816), ("validation", 144), ("test", 240))}  # fmt: skip
        probes = [Probe(sees=sees, balanced_accuracy=0.4, chance=1 / 3, images=2000, limit=0.5)
                  for sees in ("border", "encoding")]  # fmt: skip
        record = Dataset(
            dataset=n, parent=n - 1 or None, batches=tuple(names[:n]), counts=counts, rulings=min(40 * n, 2000),
            manifest_sha256=_sha(f"manifest {n}"), shortcuts=tuple(probes),
            drift=Drift(against=n - 1 or None, images=3600, class_shares=0.02, measures=0.05),
        )  # fmt: skip
        ObjectStore(s.store).put_if_absent(layout.manifest(n), b"0" * 100_000)
        ObjectStore(s.store).put_if_absent(layout.dataset_data_docs(n), b"<p>Data Docs</p>" * 20_000)
        ObjectStore(s.store).put_if_absent(layout.dataset_record(n), record.to_bytes())


def write_models(s: Settings, count: int) -> list[str]:
    """Evaluated models, six of each dataset, two of each run; the history and the reports of these runs.

    Returns:
        The runs, oldest first.
    """
    rng = np.random.default_rng(0)
    measured = [_metrics(rng) for _ in range(8)]
    card = "# Model card\n\n" + "## Intended use\n\nTo be read by humans.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n" * 40
    names = [f"{('inception_v3', 'resnet101_v2')[n % 2]}-d{1 + n // 6}-{_sha(str(n))[:8]}"
             for n in range(count)]  # fmt: skip

    def put(name: str, file: str, data: bytes, kind: str = "application/json") -> None:
        ObjectStore(s.store).put_if_absent(layout.model_file(name, file), data, kind)

    def one(n: int) -> None:
        name = names[n]
        before = _evaluation(names[max(0, n - 2)], n, measured, None)
        put(name, "evaluation.json", _evaluation(name, n, measured, before).to_bytes())
        put(name, "card.md", card.encode(), "text/markdown")
        for file, (size, kind) in zip(("history.csv", "figures.png", "model.keras"), _LIGHT, strict=True):
            put(name, file, b"0" * size, kind)
        for file in ("validation.npy", "likeness.npz", "tensorboard/events.out", "attention-NORMAL.png"):
            put(name, file, b"0" * 20_000)
        put(name, "model.json", _model(name, n).to_bytes())

    _all(one, range(count))
    runs = [f"manual-{_BEGAN + timedelta(days=2 * n):%Y-%m-%dT%H-%M-%S}-00-00" for n in range(count // 2)]
    champion = _write_history(s, names, runs, measured)
    ObjectStore(s.store).put_if_absent(layout.CHAMPION, champion.to_bytes())
    page = b"<!doctype html><title>Report</title>" + b"<p>Figures.</p>" * 40_000
    _all(lambda run: ObjectStore(s.store).put_if_absent(layout.report_page(run), page, "text/html"), runs)
    return runs


def _metrics(rng: np.random.Generator) -> Metrics:
    y = np.repeat(np.arange(3), 400)
    said = np.where(rng.random(len(y)) < 0.04, rng.integers(0, 3, len(y)), y)
    return metrics.measure(y, said, 0.05 + 0.85 * np.eye(3)[said], CLASSES, np.arange(len(y)) // 3)


def _evaluation(name: str, n: int, measured: list[Metrics], champion: Evaluation | None) -> Evaluation:
    own, other = measured[n % 8], measured[(n + 1) % 8]
    figures = metrics.flat(own)
    changes = ("lungs hidden", "border hidden", "white box top left", "mirrored", "rotated")
    kinds = ("source", "view", "format", "size", "batch")
    return Evaluation(
        model=name, architecture=name.partition("-")[0], artefact_sha256=_sha(name), dataset=1 + n // 6,
        dataset_sha256=_sha(f"manifest {1 + n // 6}"), validation=other, test=own, plain=other, champion=champion,
        robustness=dict.fromkeys(("shrunk", "sharpened", "brighter", "re-encoded"), other), reload_difference=2e-6,
        moved=tuple(PerturbationResult(change=c, images=1200, recalls=dict.fromkeys(CLASSES, 0.4), before=0.95,
                                       balanced_accuracy=0.4, decided_otherwise=0.3, shift=0.2) for c in changes),
        slices=tuple(Slice(by=kinds[k % 5], value=f"value {k}", images=300, metrics=other) for k in range(20)),
        difference=Difference(figures=figures, intervals={k: (v - 0.01, v + 0.01) for k, v in figures.items()},
                              only_candidate=9, only_champion=4, mcnemar=0.27) if champion else None,
    )  # fmt: skip


def _model(name: str, n: int) -> Model:
    known = Settings().model_dump(mode="json")
    return Model(
        model=name, architecture=name.partition("-")[0], dataset=1 + n // 6, artefact_sha256=_sha(name),
        dataset_sha256=_sha(f"manifest {1 + n // 6}"), classes=CLASSES, image_size=256, weights="imagenet",
        weights_sha256=_sha("imagenet"), settings={k: v for k, v in known.items() if isinstance(v, int | float)},
        epochs={"head": 12, "fine_tune": 6}, seconds={"head": 184.2, "fine_tune": 1403.0}, code="commit 0123abc",
        images_per_second={"head": 5012.3, "fine_tune": 41.5}, packages={f"package-{k}": "1.2.3" for k in range(20)},
        hardware={"cpu": "Some Processor", "cores": 16, "memory_gib": 64, "gpus": ""},
        likeness_sha256=_sha("likeness"), validation_sha256=_sha("validation"), history_sha256=_sha("history"),
        operating_point=OperatingPoint(temperature=1.3, offsets=dict.fromkeys(CLASSES, 0.1),
                                       floors=dict.fromkeys(CLASSES, 0.9), images=1200),
    )  # fmt: skip


def _write_history(s: Settings, names: list[str], runs: list[str], measured: list[Metrics]) -> Champion:
    """An entry for each run, PROMOTED of them promotions."""
    entries, last, version = [], None, 0
    for n, run in enumerate(runs):
        model, seen = names[2 * n], measured[2 * n % 8]
        wins = (n + 1) * PROMOTED // len(runs) > n * PROMOTED // len(runs)
        version += wins
        figures = {name: (v, seen.intervals.get(name)) for name, v in metrics.flat(seen).items()}
        checks = tuple(
            Check(name=name, kind="score", observed=v, operator="≥", limit=0.85, passed=wins or k > 0,
                  reason="As it was measured.", interval=span)
            for k, (name, (v, span)) in enumerate(figures.items())
        )  # fmt: skip
        decision = Decision(
            run=run, model=model, dataset=1 + n // 3, champion=last, candidates=tuple(names[2 * n : 2 * n + 2]),
            promote=wins, checks=checks, reason="Every check passed." if wins else "A recall is below its floor.",
        )  # fmt: skip
        entries.append(HistoryEntry(
            number=n + 1, action="promoted" if wins else "refused", model=model, previous=last, by="ann",
            version=version if wins else None, why=decision.reason, at=(_BEGAN + timedelta(days=2 * n)).isoformat(),
            run=run, decision=decision,
        ))  # fmt: skip
        last = model if wins else last
    _all(lambda e: ObjectStore(s.store).put_if_absent(layout.history_entry(e.number), e.to_bytes()), entries)
    now = next(e for e in reversed(entries) if e.version is not None)
    return Champion(version=version, model=now.model, artefact_sha256=_sha(now.model), history=now.number)
