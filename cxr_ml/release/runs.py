"""What a run leaves behind for its readers: the decision, run.json, the report, the mail."""

import io
from collections.abc import Callable, Sequence
from email.message import EmailMessage

import pandas as pd

from cxr_ml import store
from cxr_ml.data import dataset as datasets
from cxr_ml.data import drops, ingest, rulings
from cxr_ml.errors import Refused
from cxr_ml.model import evaluations, explanations
from cxr_ml.records import Batch, Decision, HistoryEntry, Model, Run
from cxr_ml.release import card, gate, mail, mirror, registry, report
from cxr_ml.settings import Settings

MOST_SHARDS = 1000  # of one run: Airflow maps a task over at most 1,024 by default (core.max_map_length)


def due(settings: Settings, drop: str | None = None) -> tuple[list[ingest.Shard], list[str]]:
    """What a run has to ingest, and what else there is to do or to know, a sentence each. Neither: nothing is new.

    Args:
        settings: the store, the inbox and the suites.
        drop: the only drop to look at; None or "": all new ones.

    Raises:
        Refused: the bucket, the drop or a suite cannot be used.
    """
    store.check(settings)
    new = drops.new(settings)
    if drop:
        drops.listing(settings, drop)
        new = [name for name in new if name == drop]
    if new:
        from cxr_ml.data import validate  # takes seconds to import

        validate.check_suites(settings.expectations)
    shards: list[ingest.Shard] = []
    told = []
    for place, name in enumerate(new):
        part = ingest.plan(settings, name)
        if shards and len(shards) + len(part) > MOST_SHARDS:
            told.append(f"Too many files for one run. The next run takes {', '.join(new[place:])}.")
            break
        shards += part
    latest = datasets.latest(settings)
    if latest is not None and not registry.decided(settings, latest.dataset):
        told.append(f"Dataset {latest.dataset} was never brought before the gate; this run does it.")
    if pending := datasets.pending(settings):
        told.append(f"{pending} new rulings on single images; the next dataset honours them.")
    return shards, told


def decide(
    settings: Settings, run: str, models: Sequence[str], overrides: dict[str, str] | None = None, by: str = ""
) -> Decision:
    """Lets the gate decide on the evaluated candidates of a run, once; stored as `reports/<run>/decision.json`.

    Args:
        settings: the store, floors, margins and limits.
        run: name of the run.
        models: the candidates.
        overrides: settings that were changed for this run, kept with the decision.
        by: who started the run and changed them.

    Raises:
        Refused: the run has its decision already, on other candidates.
    """
    key = f"reports/{run}/decision.json"
    found = store.find(settings, key)
    if found:
        decision = Decision.model_validate_json(found[0])
        if decision.candidates != tuple(models):
            raise Refused(
                f"A run is decided once. Received: {', '.join(models)}, but the run {run} was decided on "
                f"{', '.join(decision.candidates)}. Start a new run."
            )
        return decision
    champion = registry.champion(settings)
    beside = champion.model if champion else None
    number = load_model_record(settings, models[0]).dataset
    found = [evaluations.load(settings, number, name, beside) for name in models]
    named = [*models, *([beside] if beside else [])]
    records = {name: load_model_record(settings, name) for name in named}
    decision = gate.decide(settings, run, datasets.load(settings, number), found, records, beside, overrides, by)
    store.put_if_absent(settings, key, decision.to_bytes(), "application/json")
    return decision


def load_decision(settings: Settings, run: str) -> Decision:
    """The stored decision of a run."""
    return store.load(settings, f"reports/{run}/decision.json", Decision)


def load_model_record(settings: Settings, name: str) -> Model:
    """The record of a stored model."""
    return store.load(settings, f"models/{name}/model.json", Model)


def publish(settings: Settings, run: str, batches: Sequence[str], recipients: Sequence[str]) -> tuple[Run, str]:
    """Writes the cards of the candidates and the report of a concluded run, mails it, and mirrors it into MLflow.

    Returns:
        The record of the run, and the key of its report.

    Raises:
        Refused: a recipient who is not allowed, a run without a decision, or MLflow is asked for and not installed.
        OSError: the mail server cannot be reached (a retry may help; the report is there already).
    """
    to = mail.allowed(tuple(recipients), settings)
    decision, entry = load_decision(settings, run), _entry(settings, run)
    if entry is None:
        raise Refused(f"The run {run} must be concluded before its report: `cxr-ml promote --run {run}`.")
    record = _assemble(settings, decision, entry, batches)
    card.write(settings, record, entry)
    histories = {
        m.model: pd.read_csv(io.BytesIO(store.get(settings, f"models/{m.model}/history.csv"))) for m in record.models
    }
    found = explanations.load(settings, decision.model, decision.dataset)
    explained = (found, explanations.sheets(settings, found)) if found else None
    key = report.write(settings, record, histories, _copy_documents(settings, record), explained)
    link = f"s3://{settings.bucket}/{settings.prefix}{key}"
    _mail_once(settings, run, to, lambda: mail.outcome_message(record, settings, to, link))
    mirror.mirror(settings, decision.candidates)
    return record, key


def tell_rollback(settings: Settings, run: str, recipients: Sequence[str]) -> None:
    """Mails who is champion again since a rollback of that name, once, and mirrors it into MLflow.

    Raises:
        Refused: a recipient who is not allowed, or no such rollback.
        OSError: the mail server cannot be reached (a retry may help; the rollback is done already).
    """
    to = mail.allowed(tuple(recipients), settings)
    entry = _entry(settings, run)
    if entry is None or entry.action != "rolled_back":
        raise Refused(f"A rollback was expected. Received: {run!r}, of which the history has none.")
    _mail_once(settings, run, to, lambda: mail.rollback_message(settings, to, entry))
    mirror.mirror(settings)


def _mail_once(settings: Settings, run: str, to: Sequence[str], message: Callable[[], EmailMessage]) -> None:
    if to and not store.exists(settings, f"reports/{run}/mailed.json"):
        mail.send(message(), settings)
        store.put_if_absent(settings, f"reports/{run}/mailed.json", b"{}\n", "application/json")


def _entry(settings: Settings, run: str) -> HistoryEntry | None:
    """What the history says of a run, last."""
    return next((e for e in reversed(registry.history(settings)) if e.run == run), None)


def _assemble(settings: Settings, decision: Decision, entry: HistoryEntry, batches: Sequence[str]) -> Run:
    dataset = datasets.load(settings, decision.dataset)
    ruled = ()
    if dataset.rulings:
        since = datasets.load(settings, dataset.parent).rulings if dataset.parent else 0
        ruled = tuple(r for r in rulings.read(settings, since) if r.number <= dataset.rulings)
    return Run(
        run=decision.run,
        outcome=entry.action,
        batches=tuple(store.load(settings, f"batches/{b}/batch.json", Batch) for b in batches),
        dataset=dataset,
        models=tuple(load_model_record(settings, name) for name in decision.candidates),
        evaluations=tuple(
            evaluations.load(settings, decision.dataset, name, decision.champion) for name in decision.candidates
        ),
        decision=decision,
        champion=registry.champion(settings),
        rulings=ruled,
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
