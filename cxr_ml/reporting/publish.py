"""Writes what a run that ended leaves behind: model cards, run.json, the report with the Data Docs beside it."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from cxr_ml import layout
from cxr_ml.dataset import versions
from cxr_ml.errors import Refused
from cxr_ml.evaluation import stored_evaluations, stored_explanations
from cxr_ml.records import Batch, Dataset, HistoryEntry, Ruling, Run
from cxr_ml.registry import mlflow_sync, promotion
from cxr_ml.reporting import deliveries, examples, model_card, report
from cxr_ml.settings import Settings, ValidationSettings
from cxr_ml.store import ObjectStore
from cxr_ml.validation import rulings

MAX_VERSIONS = 60  # of the dataset whose growth is shown, the newest: a year of weekly runs and some more


class Published(NamedTuple):
    """A run and where its report lies."""

    run: Run
    key: str


def publish_report(
    store: ObjectStore,
    settings: Settings,
    run: str,
    batches: Sequence[str],
    seconds: dict[str, float] | None = None,
    run_link: str = "",
    left_out: Sequence[str] = (),
) -> Published:
    """Writes the cards of the candidates and the report of a concluded run, and mirrors it into MLflow.

    Args:
        store: the object store.
        settings: all settings.
        run: name of the run.
        batches: names of the batches that came in with it.
        seconds: step -> wall time, where it is known.
        run_link: address of the run in Airflow, "" where Airflow did not make it.
        left_out: drops that could not be used.

    Returns:
        The record of the run, and the key of its report.

    Raises:
        Refused: a run without a decision, or MLflow is asked for and not installed.
    """
    decision, entry = promotion.load_decision(store, run), _last_entry(store, run)
    if entry is None:
        raise Refused(f"The run {run} must be concluded before its report: `cxr-ml promote --run {run}`.")
    dataset = versions.load_dataset(store, decision.dataset)
    record = Run(
        run=decision.run,
        outcome=entry.action,
        batches=_load_batches(store, batches),
        dataset=dataset,
        models=tuple(promotion.load_model_record(store, name) for name in decision.candidates),
        evaluations=tuple(stored_evaluations.load_decided(store, decision, name) for name in decision.candidates),
        decision=decision,
        champion=promotion.champion(store),
        rulings=_new_rulings(store, dataset),
        seconds=seconds or {},
        left_out=tuple(left_out),
    )
    model_card.write_cards(store, record, dataset, decision, entry)
    key = report.write(store, settings, record, _load_context(store, settings.validation, record, run_link))
    mlflow_sync.mirror(store, decision.candidates)
    return Published(record, key)


def publish_nothing_new(
    store: ObjectStore,
    settings: Settings,
    run: str,
    batches: Sequence[str] = (),
    seconds: dict[str, float] | None = None,
    run_link: str = "",
    left_out: Sequence[str] = (),
) -> str:
    """Writes the report of a run that had nothing to train on. It yields to another, should the run go on.

    A run that was concluded before, and was cleared since, keeps the report that it has.

    Args:
        store: the object store.
        settings: all settings.
        run: name of the run.
        batches: names of the batches that came in with it and brought no image to train on.
        seconds: as for `publish_report`.
        run_link: likewise.
        left_out: likewise.

    Returns:
        The key of the report.
    """
    if report.load_ended(store, run) is not None:
        return layout.report_page(run)
    record = Run(
        run=run,
        outcome=report.NOTHING_NEW,
        batches=_load_batches(store, batches),
        dataset=None,
        models=(),
        evaluations=(),
        decision=None,
        champion=promotion.champion(store),
        seconds=seconds or {},
        left_out=tuple(left_out),
    )
    return report.write(store, settings, record, _load_context(store, settings.validation, record, run_link))


def refresh_page(store: ObjectStore, settings: Settings, run: Run, run_link: str = "") -> None:
    """Renders the page of a run again: which mails about it could not be sent has changed.

    Args:
        store: the object store.
        settings: the floors of the run.
        run: the record as it is stored.
        run_link: address of the run in Airflow, "" where Airflow did not make it.
    """
    key = layout.report_page(run.run)
    while stored := store.get_or_none(key):
        html = report.render(run, settings, _load_context(store, settings.validation, run, run_link)).encode()
        if html == stored[0] or store.swap(key, html, stored[1], "text/html; charset=utf-8"):
            return


def _load_batches(store: ObjectStore, names: Sequence[str]) -> tuple[Batch, ...]:
    return tuple(store.load(layout.batch_record(name), Batch) for name in names)


def _last_entry(store: ObjectStore, run: str) -> HistoryEntry | None:
    """Returns the newest entry of the history about a run."""
    return next((e for e in reversed(promotion.history(store)) if e.run == run), None)


def _new_rulings(store: ObjectStore, dataset: Dataset) -> tuple[Ruling, ...]:
    """Returns the rulings that the dataset honours and its parent did not."""
    if not dataset.rulings:
        return ()
    before = versions.load_dataset(store, dataset.parent).rulings if dataset.parent else 0
    return tuple(r for r in rulings.read(store, before) if r.number <= dataset.rulings)


def _load_context(store: ObjectStore, settings: ValidationSettings, run: Run, run_link: str) -> report.ReportContext:
    decision, dataset = run.decision, run.dataset
    explanation = stored_explanations.load(store, decision.model, decision.dataset) if decision else None
    lineage = model_card.lineage(store, dataset) if dataset else []
    return report.ReportContext(
        histories={m.model: _load_history(store, m.model) for m in run.models},
        documents=_copy_documents(store, run),
        explanation=explanation,
        sheets=stored_explanations.sheets(store, explanation) if explanation else {},
        versions=[version.dataset for version in lineage][:MAX_VERSIONS],
        refusals=examples.find_examples(store, settings, run.batches),
        unsent=deliveries.find_unsent(store, run.run),
        run_link=run_link,
    )


def _load_history(store: ObjectStore, model: str) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(store.get(layout.training_curves(model))))


def _copy_documents(store: ObjectStore, run: Run) -> dict[str, str]:
    """Copies the Data Docs of the run beside its report; returns title -> relative link."""
    pages = {
        f"{b.batch}: {name}": layout.batch_data_docs(b.batch, name)
        for b in run.batches
        for name in ("images", "classes")
    }
    if run.dataset:
        pages[f"dataset {run.dataset.dataset}"] = layout.dataset_data_docs(run.dataset.dataset)
    links = {}
    for title, key in pages.items():
        link = "data-docs/" + key.replace("/", "-")
        data = store.get(key)
        store.put_if_absent(layout.report_file(run.run, link), data, "text/html; charset=utf-8")
        links[title] = link
    return links
