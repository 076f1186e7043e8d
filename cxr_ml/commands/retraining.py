"""`cxr-ml retrain`: all stages, one after the other."""

import getpass
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context

from cxr_ml.commands.candidates import evaluate_candidates, train_candidate
from cxr_ml.commands.drops import ingest_drops, refuse_left_out
from cxr_ml.commands.release import RunName, mail_report
from cxr_ml.commands.shared import Json, connect, following, out, show
from cxr_ml.reporting.terminal import decision_table, show_run
from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore


def retrain(run: RunName = "", json_: Json = False) -> None:
    """All stages, one after the other, as Airflow does them."""
    from cxr_ml.registry import promotion

    with connect() as (store, settings):
        store.check()
        run = promotion.slug(run or f"cli-{datetime.now(UTC).isoformat(timespec='seconds')}")
        names, left_out = ingest_drops(store, settings, [], json_)
        _retrain(store, settings, run, names, left_out, json_)
        refuse_left_out(left_out)


def _retrain(
    store: ObjectStore, settings: Settings, run: str, names: list[str], left_out: list[str], json_: bool
) -> None:
    from cxr_ml import pipeline
    from cxr_ml.registry import promotion
    from cxr_ml.reporting import publish

    next_dataset = None
    with following(json_) as on_progress:
        pipeline.validate_batches(store, settings, names, on_progress)
        if names or pipeline.find_reasons(store):
            next_dataset = pipeline.build_next_dataset(store, settings, on_progress)
    if next_dataset is None or not next_dataset.is_due:
        publish.publish_nothing_new(store, settings, run, names, left_out=left_out)
        mail_report(store, settings, run, settings.mail.recipients)
        show({"outcome": "nothing_new"}, json_, "Nothing new in the inbox; nothing was trained.")
        return
    number = next_dataset.dataset.dataset
    champion = promotion.champion(store)
    beside = champion.model if champion else None
    models = [train_candidate(store, settings, number, a, beside, json_).model for a in settings.training.architectures]
    # In a process of its own, as in Airflow: what the gate judges is the stored file, loaded afresh.
    with ProcessPoolExecutor(1, get_context("spawn")) as other:
        other.submit(evaluate_candidates, store, settings, number, models, beside, json_).result()
    by = getpass.getuser()
    decision = pipeline.decide(store, settings.gate, settings.classes, run, models, by=by)
    if settings.gate.approval and decision.promote:
        then = f"`cxr-ml promote --run {run}`, and then `cxr-ml report --run {run}`"
        show(
            decision, json_, decision_table(decision), f"The settings ask for approval, which is yours to give: {then}."
        )
        return
    pipeline.conclude(store, run, by)
    published = publish.publish_report(store, settings, run, names, left_out=left_out)
    mail_report(store, settings, run, settings.mail.recipients, " ".join(["cxr-ml report", *names, "--run", run]))
    if json_:
        show(published.run, True, "")
        return
    show_run(published.run, out)
    out.print(f"report: s3://{store.bucket}/{store.prefix}{published.key}", highlight=False)
