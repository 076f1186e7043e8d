"""The card of a model: what it is, what it was made of, how good it is, and what it must not be used for."""

from typing import NamedTuple

import pandas as pd

from cxr_ml import layout
from cxr_ml.dataset import versions
from cxr_ml.evaluation import metrics
from cxr_ml.records import Batch, Dataset, Decision, Evaluation, HistoryEntry, Run
from cxr_ml.reporting import formatting, html_pages, narrative
from cxr_ml.store import ObjectStore


class Row(NamedTuple):
    """One figure of a model, ready to print."""

    name: str
    value: str
    interval: str  # of 95 %, "" where there is none
    champion: str


class Version(NamedTuple):
    """A dataset version and the batches that its parent does not have."""

    dataset: Dataset
    new_batches: list[str]


def write_cards(store: ObjectStore, run: Run, dataset: Dataset, decision: Decision, entry: HistoryEntry) -> None:
    """Stores the card of each candidate of a concluded run, `models/<model>/card.md`. A card is never changed.

    The same data and settings make the same model; what a later run decides about it goes into `card-<run>.md`.

    Args:
        store: the object store.
        run: the run.
        dataset: what the candidates were trained on.
        decision: the gate's.
        entry: what the history says of the run.

    Raises:
        Refused: a dataset or a batch that the model descends from is not in the store, or was changed.
    """
    ancestors = lineage(store, dataset)
    batches = [store.load(layout.batch_record(name), Batch) for name in dataset.batches]
    manifest = versions.load_manifest(store, dataset)
    for model in run.models:
        evaluation = next(e for e in run.evaluations if e.model == model.model)
        card = html_pages.render_template(
            "card.md.j2",
            model=model,
            dataset=dataset,
            decision=decision,
            entry=entry,
            chosen=decision.model == model.model,
            note=narrative.NOTE,
            counts=_counts(dataset),
            sources=_sources(manifest),
            batches=batches,
            remarks=[text for text, _ in (*narrative.shortcuts(dataset), *narrative.drift(dataset))],
            rulings=[narrative.ruled(ruling) for ruling in run.rulings],
            figures=figures(evaluation),
            evaluation=evaluation,
            disguises=narrative.disguises(evaluation),
            lineage=ancestors,
        ).encode()
        key = layout.model_card(model.model)
        media_type = "text/markdown; charset=utf-8"
        if not store.put_if_absent(key, card, media_type) and store.get(key) != card:
            store.put_if_absent(layout.model_card_of_run(model.model, run.run), card, media_type)


def _counts(dataset: Dataset) -> tuple[list[str], list[tuple[str, list[int]]]]:
    """Returns the classes, and per split its images of each class and in all."""
    labels = sorted({label for counts in dataset.counts.values() for label in counts})
    rows = [(split, [counts.get(label, 0) for label in labels]) for split, counts in dataset.counts.items()]
    return labels, [(split, [*numbers, sum(numbers)]) for split, numbers in rows]


def _sources(manifest: pd.DataFrame) -> list[tuple[str, str, int]]:
    """Returns (source, class, images); a drop that does not say where its images come from has the source ""."""
    sizes = manifest.assign(source=manifest["source"].fillna("")).groupby(["source", "label"]).size()
    return [(source, label, int(images)) for (source, label), images in sizes.items()]


def lineage(store: ObjectStore, dataset: Dataset) -> list[Version]:
    """Returns the dataset and those that it descends from, newest first."""
    chain = [dataset]
    while chain[-1].parent is not None:
        chain.append(versions.load_dataset(store, chain[-1].parent))
    before = [set(parent.batches) for parent in chain[1:]] + [set()]
    return [Version(d, [name for name in d.batches if name not in old]) for d, old in zip(chain, before, strict=True)]


def figures(evaluation: Evaluation) -> list[Row]:
    """Returns every figure on the test images with its interval, if there is one, and the champion's."""
    champion = metrics.flat(evaluation.champion.test) if evaluation.champion else {}
    intervals = evaluation.test.intervals
    return [
        Row(
            name,
            formatting.observed(value),
            formatting.span(intervals.get(name), percent=False),
            formatting.observed(champion[name]) if name in champion else "",
        )
        for name, value in metrics.flat(evaluation.test).items()
    ]
