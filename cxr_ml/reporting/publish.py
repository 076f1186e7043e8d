"""Writes what a run that ended leaves for its readers: cards, run.json, the report with the Data Docs beside it."""

import io
from collections.abc import Sequence

import pandas as pd

from cxr_ml import store
from cxr_ml.dataset import versions
from cxr_ml.errors import Refused
from cxr_ml.evaluation import stored_evaluations, stored_explanations
from cxr_ml.records import Batch, Decision, HistoryEntry, Run
from cxr_ml.registry import mlflow_sync, promotion
from cxr_ml.reporting import examples, model_card, report
from cxr_ml.settings import Settings
from cxr_ml.validation import rulings

_VERSIONS = 60  # of the dataset whose growth is shown, the newest: a year of weekly runs and some more


def publish(
    settings: Settings,
    run: str,
    batches: Sequence[str],
    seconds: dict[str, float] | None = None,
    run_link: str = "",
    left_out: Sequence[str] = (),
) -> tuple[Run, str]:
    """Writes the cards of the candidates and the report of a concluded run, and mirrors it into MLflow.

    Args:
        settings: the store.
        run: name of the run.
        batches: that came in with it.
        seconds: step -> wall time, where it is known.
        run_link: address of the run in Airflow, "" where Airflow did not make it.
        left_out: drops that could not be used.

    Returns:
        The record of the run, and the key of its report.

    Raises:
        Refused: a run without a decision, or MLflow is asked for and not installed.
    """
    decision, entry = promotion.load_decision(settings, run), _entry(settings, run)
    if entry is None:
        raise Refused(f"The run {run} must be concluded before its report: `cxr-ml promote --run {run}`.")
    record = _assemble(settings, decision, entry, batches, seconds or {}, left_out)
    model_card.write(settings, record, entry)
    histories = {
        m.model: pd.read_csv(io.BytesIO(store.get(settings, f"models/{m.model}/history.csv"))) for m in record.models
    }
    found = stored_explanations.load(settings, decision.model, decision.dataset)
    explained = (found, stored_explanations.sheets(settings, found)) if found else None
    versions = [version for version, _ in model_card.lineage(settings, record.dataset)]
    beside = report.Beside(versions[:_VERSIONS], examples.find(settings, record.batches), run_link)
    key = report.write(settings, record, histories, _copy_documents(settings, record), explained, beside)
    mlflow_sync.mirror(settings, decision.candidates)
    return record, key


def nothing_new(
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
        batches: that came in with it and brought no image to train on.
        seconds: as for `publish`.
        run_link: likewise.
        left_out: likewise.

    Returns:
        The key of the report.
    """
    folder = f"reports/{run}/"
    if report.ended(settings, folder):
        return folder + "index.html"
    record = Run(
        run=run,
        outcome=report.NOTHING_NEW,
        batches=_load(settings, batches),
        dataset=None,
        models=(),
        evaluations=(),
        decision=None,
        champion=promotion.champion(settings),
        seconds=seconds or {},
        left_out=tuple(left_out),
    )  # fmt: skip
    beside = report.Beside((), examples.find(settings, record.batches), run_link)
    return report.write(settings, record, {}, _copy_documents(settings, record), None, beside)


def _load(settings: Settings, batches: Sequence[str]) -> tuple[Batch, ...]:
    return tuple(store.load(settings, f"batches/{b}/batch.json", Batch) for b in batches)


def _entry(settings: Settings, run: str) -> HistoryEntry | None:
    """What the history says of a run, last."""
    return next((e for e in reversed(promotion.history(settings)) if e.run == run), None)


def _assemble(
    settings: Settings,
    decision: Decision,
    entry: HistoryEntry,
    batches: Sequence[str],
    seconds: dict[str, float],
    left_out: Sequence[str],
) -> Run:
    dataset = versions.load_dataset(settings, decision.dataset)
    ruled = ()
    if dataset.rulings:
        since = versions.load_dataset(settings, dataset.parent).rulings if dataset.parent else 0
        ruled = tuple(r for r in rulings.read(settings, since) if r.number <= dataset.rulings)
    return Run(
        run=decision.run,
        outcome=entry.action,
        batches=_load(settings, batches),
        dataset=dataset,
        models=tuple(promotion.load_model_record(settings, name) for name in decision.candidates),
        evaluations=tuple(stored_evaluations.load_decided(settings, decision, name) for name in decision.candidates),
        decision=decision,
        champion=promotion.champion(settings),
        rulings=ruled,
        seconds=seconds,
        left_out=tuple(left_out),
    )


def _copy_documents(settings: Settings, run: Run) -> dict[str, str]:
    """Copies the Data Docs of the run beside its report; title -> relative link."""
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
