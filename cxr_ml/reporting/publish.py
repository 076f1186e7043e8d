"""Writes what a run that ended leaves behind: model cards, run.json, the report with the Data Docs beside it."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from cxr_ml import store
from cxr_ml.dataset import versions
from cxr_ml.errors import Refused
from cxr_ml.evaluation import stored_evaluations, stored_explanations
from cxr_ml.records import Batch, Dataset, HistoryEntry, Ruling, Run
from cxr_ml.registry import mlflow_sync, promotion
from cxr_ml.reporting import deliveries, examples, model_card, report
from cxr_ml.settings import Settings
from cxr_ml.validation import rulings

MAX_VERSIONS = 60  # of the dataset whose growth is shown, the newest: a year of weekly runs and some more


class Published(NamedTuple):
    """A run and where its report lies."""

    run: Run
    key: str


def publish_report(
    settings: Settings,
    run: str,
    batches: Sequence[str],
    seconds: dict[str, float] | None = None,
    run_link: str = "",
    left_out: Sequence[str] = (),
) -> Published:
    """Writes the cards of the candidates and the report of a concluded run, and mirrors it into MLflow.

    Args:
        settings: the store.
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
    decision, entry = promotion.load_decision(settings, run), _last_entry(settings, run)
    if entry is None:
        raise Refused(f"The run {run} must be concluded before its report: `cxr-ml promote --run {run}`.")
    dataset = versions.load_dataset(settings, decision.dataset)
    record = Run(
        run=decision.run,
        outcome=entry.action,
        batches=_load_batches(settings, batches),
        dataset=dataset,
        models=tuple(promotion.load_model_record(settings, name) for name in decision.candidates),
        evaluations=tuple(stored_evaluations.load_decided(settings, decision, name) for name in decision.candidates),
        decision=decision,
        champion=promotion.champion(settings),
        rulings=_new_rulings(settings, dataset),
        seconds=seconds or {},
        left_out=tuple(left_out),
    )
    model_card.write_cards(settings, record, dataset, decision, entry)
    key = report.write(settings, record, _load_context(settings, record, run_link))
    mlflow_sync.mirror(settings, decision.candidates)
    return Published(record, key)


def publish_nothing_new(
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
        settings: the store.
        run: name of the run.
        batches: names of the batches that came in with it and brought no image to train on.
        seconds: as for `publish_report`.
        run_link: likewise.
        left_out: likewise.

    Returns:
        The key of the report.
    """
    if report.load_ended(settings, run) is not None:
        return f"reports/{run}/index.html"
    record = Run(
        run=run,
        outcome=report.NOTHING_NEW,
        batches=_load_batches(settings, batches),
        dataset=None,
        models=(),
        evaluations=(),
        decision=None,
        champion=promotion.champion(settings),
        seconds=seconds or {},
        left_out=tuple(left_out),
    )
    return report.write(settings, record, _load_context(settings, record, run_link))


def refresh_page(settings: Settings, run: Run, run_link: str = "") -> None:
    """Renders the page of a run again: which mails about it could not be sent has changed.

    Args:
        settings: the store, and the floors of the run.
        run: the record as it is stored.
        run_link: address of the run in Airflow, "" where Airflow did not make it.
    """
    key = f"reports/{run.run}/index.html"
    while stored := store.find(settings, key):
        html = report.render(run, settings, _load_context(settings, run, run_link)).encode()
        if html == stored[0] or store.swap(settings, key, html, stored[1], "text/html; charset=utf-8"):
            return


def _load_batches(settings: Settings, names: Sequence[str]) -> tuple[Batch, ...]:
    return tuple(store.load(settings, f"batches/{name}/batch.json", Batch) for name in names)


def _last_entry(settings: Settings, run: str) -> HistoryEntry | None:
    """Returns the newest entry of the history about a run."""
    return next((e for e in reversed(promotion.history(settings)) if e.run == run), None)


def _new_rulings(settings: Settings, dataset: Dataset) -> tuple[Ruling, ...]:
    """Returns the rulings that the dataset honours and its parent did not."""
    if not dataset.rulings:
        return ()
    before = versions.load_dataset(settings, dataset.parent).rulings if dataset.parent else 0
    return tuple(r for r in rulings.read(settings, before) if r.number <= dataset.rulings)


def _load_context(settings: Settings, run: Run, run_link: str) -> report.ReportContext:
    decision, dataset = run.decision, run.dataset
    explanation = stored_explanations.load(settings, decision.model, decision.dataset) if decision else None
    lineage = model_card.lineage(settings, dataset) if dataset else []
    return report.ReportContext(
        histories={m.model: _load_history(settings, m.model) for m in run.models},
        documents=_copy_documents(settings, run),
        explanation=explanation,
        sheets=stored_explanations.sheets(settings, explanation) if explanation else {},
        versions=[version.dataset for version in lineage][:MAX_VERSIONS],
        refusals=examples.find_examples(settings, run.batches),
        unsent=deliveries.find_unsent(settings, run.run),
        run_link=run_link,
    )


def _load_history(settings: Settings, model: str) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(store.get(settings, f"models/{model}/history.csv")))


def _copy_documents(settings: Settings, run: Run) -> dict[str, str]:
    """Copies the Data Docs of the run beside its report; returns title -> relative link."""
    pages = {
        f"{b.batch}: {name}": f"batches/{b.batch}/{name}.html" for b in run.batches for name in ("images", "classes")
    }
    if run.dataset:
        pages[f"dataset {run.dataset.dataset}"] = f"datasets/{run.dataset.dataset}/dataset.html"
    links = {}
    for title, key in pages.items():
        link = "data-docs/" + key.replace("/", "-")
        data = store.get(settings, key)
        store.put_if_absent(settings, f"reports/{run.run}/{link}", data, "text/html; charset=utf-8")
        links[title] = link
    return links
