"""`cxr-ml retrain`: all stages, one after the other."""

import getpass
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context

from cxr_ml.commands.candidates import evaluate_candidates, train_candidate
from cxr_ml.commands.drops import ingest_drops, refuse_left_out
from cxr_ml.commands.release import RunName, mail_report
from cxr_ml.commands.shared import Json, following, opened, out, show
from cxr_ml.reporting.terminal import decision_table, show_run
from cxr_ml.settings import Settings


def retrain(run: RunName = "", json_: Json = False) -> None:
    """All stages, one after the other, as Airflow does them."""
    from cxr_ml import store
    from cxr_ml.registry import promotion

    with opened() as settings:
        store.check(settings)
        run = promotion.slug(run or f"cli-{datetime.now(UTC).isoformat(timespec='seconds')}")
        names, left_out = ingest_drops(settings, [], json_)
        _retrain(settings, run, names, left_out, json_)
        refuse_left_out(left_out)


def _retrain(settings: Settings, run: str, names: list[str], left_out: list[str], json_: bool) -> None:
    from cxr_ml import pipeline
    from cxr_ml.dataset import build, versions
    from cxr_ml.registry import promotion
    from cxr_ml.reporting import publish
    from cxr_ml.validation import judge_batch

    with following(json_) as on_progress:
        for name in names:
            judge_batch.validate_batch(settings, name, on_progress)
    # A dataset that no run brought before the gate, because that run died, is taken up.
    changed = names or build.count_pending_rulings(settings)
    against = promotion.trained_on(settings)
    built, new = build.build_dataset(settings, against) if changed else (versions.load_latest(settings), False)
    if built is None or (not new and promotion.was_decided(settings, built.dataset)):
        publish.publish_nothing_new(settings, run, names, left_out=left_out)
        mail_report(settings, run, settings.mail_to)
        show({"outcome": "nothing_new"}, json_, "Nothing new in the inbox; nothing was trained.")
        return

    champion = promotion.champion(settings)
    beside = champion.model if champion else None
    models = [train_candidate(settings, built.dataset, a, beside, json_).model for a in settings.architectures]
    # In a process of its own, as in Airflow: what the gate judges is the stored file, loaded afresh.
    with ProcessPoolExecutor(1, get_context("spawn")) as other:
        other.submit(evaluate_candidates, settings, built.dataset, models, beside, json_).result()
    by = getpass.getuser()
    decision = pipeline.decide(settings, run, models, by=by)
    if settings.approval and decision.promote:
        then = f"`cxr-ml promote --run {run}`, and then `cxr-ml report --run {run}`"
        show(
            decision,
            json_,
            decision_table(decision),
            f"The settings ask for approval, which is yours to give: {then}.",
        )
        return
    promotion.apply_decision(settings, decision, by=by)
    published = publish.publish_report(settings, run, names, left_out=left_out)
    mail_report(settings, run, settings.mail_to, " ".join(["cxr-ml report", *names, "--run", run]))
    if json_:
        show(published.run, True, "")
        return
    show_run(published.run, out)
    out.print(f"report: s3://{settings.bucket}/{settings.prefix}{published.key}", highlight=False)
