"""The card of a model: what it is, what it was made of, how good it is, and what it must not be used for."""

from typing import NamedTuple

import pandas as pd

from cxr_ml import store
from cxr_ml.dataset import versions as datasets
from cxr_ml.evaluation import metrics
from cxr_ml.records import Batch, Dataset, Evaluation, HistoryEntry, Run
from cxr_ml.reporting import formatting, narrative
from cxr_ml.reporting.html_pages import page
from cxr_ml.settings import Settings


class Row(NamedTuple):
    """One figure of a model, ready to print."""

    name: str
    value: str
    interval: str  # of 95 %, "" where there is none
    champion: str


def write(settings: Settings, run: Run, entry: HistoryEntry) -> None:
    """Stores the card of each candidate of a concluded run, `models/<model>/card.md`. A card is never changed.

    The same data and settings make the same model; what a later run decides of it is `card-<run>.md`.

    Args:
        settings: the store.
        run: the run, with its dataset.
        entry: what the history says of the run.

    Raises:
        Refused: a dataset or a batch that the model descends from is not in the store, or was changed.
    """
    versions = lineage(settings, run.dataset)
    batches = [store.load(settings, f"batches/{name}/batch.json", Batch) for name in run.dataset.batches]
    manifest = datasets.load_manifest(settings, run.dataset)
    for model in run.models:
        evaluation = next(e for e in run.evaluations if e.model == model.model)
        text = page(
            "card.md.j2",
            model=model,
            dataset=run.dataset,
            decision=run.decision,
            entry=entry,
            chosen=run.decision.model == model.model,
            note=narrative.NOTE,
            counts=_counts(run.dataset),
            sources=_sources(manifest),
            batches=batches,
            remarks=[text for text, _ in (*narrative.shortcuts(run.dataset), *narrative.drift(run.dataset))],
            rulings=[narrative.ruled(ruling) for ruling in run.rulings],
            figures=figures(evaluation),
            evaluation=evaluation,
            disguises=narrative.disguises(evaluation),
            lineage=versions,
        )
        key = f"models/{model.model}/card.md"
        kind = "text/markdown; charset=utf-8"
        if not store.put_if_absent(settings, key, text.encode(), kind) and store.get(settings, key) != text.encode():
            store.put_if_absent(settings, f"models/{model.model}/card-{run.run}.md", text.encode(), kind)


def _counts(dataset: Dataset) -> tuple[list[str], list[tuple[str, list[int]]]]:
    """The classes, and per split its images of each and in all."""
    labels = sorted({label for counts in dataset.counts.values() for label in counts})
    rows = [(split, [counts.get(label, 0) for label in labels]) for split, counts in dataset.counts.items()]
    return labels, [(split, [*numbers, sum(numbers)]) for split, numbers in rows]


def _sources(manifest: pd.DataFrame) -> list[tuple[str, str, int]]:
    """(source, class, images); a drop that does not say where its images come from has the source ""."""
    found = manifest.assign(source=manifest["source"].fillna("")).groupby(["source", "label"]).size()
    return [(source, label, int(images)) for (source, label), images in found.items()]


def lineage(settings: Settings, dataset: Dataset) -> list[tuple[Dataset, list[str]]]:
    """The dataset and those it descends from, newest first, each with the batches that it brought."""
    chain = [dataset]
    while chain[-1].parent is not None:
        chain.append(datasets.load_dataset(settings, chain[-1].parent))
    before = [set(parent.batches) for parent in chain[1:]] + [set()]
    return [(d, [name for name in d.batches if name not in old]) for d, old in zip(chain, before, strict=True)]


def figures(evaluation: Evaluation) -> list[Row]:
    """Every figure on the test images with its interval, if there is one, and the champion's beside it."""
    theirs = metrics.flat(evaluation.champion.test) if evaluation.champion else {}
    spans = evaluation.test.intervals
    return [
        Row(
            name,
            formatting.observed(value),
            formatting.span(spans.get(name), percent=False),
            _champion(theirs.get(name)),
        )
        for name, value in metrics.flat(evaluation.test).items()
    ]


def _champion(value: float | None) -> str:
    return "" if value is None else formatting.observed(value)
