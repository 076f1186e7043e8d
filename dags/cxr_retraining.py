"""
### Retraining of the chest X-ray classifier

Every Monday at 03:00 UTC, or by hand with **Trigger**: new drops of labelled X-rays are copied into the store, measured
and judged by Great Expectations, added to the next dataset version, and used to train each architecture. The best of
them on validation is put before the gate with the test images. Only if **every** check was evaluated and passed does
the champion change. The team gets the report by mail.

* Nothing new in the inbox, and no new ruling on an image: the run ends early, its steps marked *skipped*, no mail.
* The gate stays shut, or a human says no: the run succeeds, the champion stays, the report says why.
* A drop cannot be used (a damaged archive, a broken labels.csv, patients and no salt): the others go on without it.
  The step *left_out* fails with what is wrong, which is mailed at once; the report names the drop, and the run ends
  *failed* although all else is done. A drop that the form names stops the run.
* A step fails: a mail and the run's page say which, why, and what to do. What is stored stays; *Clear* the step to go
  on from there. A dataset that no run brought before the gate is taken up by the next run.
* A red *mail* in a green run: all is done, but no mail server took the mail. *Clear* it to try again; who has the mail
  already does not get it twice.
"""

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import CronTriggerTimetable, Param, dag, task, task_group
from airflow.sdk.exceptions import AirflowSkipException
from cxr_airflow import callbacks, form
from cxr_airflow.context import APPROVE, list_left_out, measure_seconds, read_answer, report_nothing_new, run_step

from cxr_ml import settings
from cxr_ml.errors import Refused


@task(execution_timeout=timedelta(minutes=10))
def find_drops(params: dict) -> list[dict]:
    """Cuts the drops that are not in the store yet into shards. None, and nothing unfinished: a skip."""
    with run_step(params) as step:
        from cxr_ml import pipeline

        work = pipeline.find_work(step.store, step.settings, params["drop"])
        print("\n".join(work.reasons))
        if not work.shards and not work.reasons and not params["train_anyway"]:
            report_nothing_new(step)
            raise AirflowSkipException("Nothing new in the inbox.")
        return [shard._asdict() for shard in work.shards]


@task(
    execution_timeout=timedelta(hours=6),
    map_index_template=(
        "{{ task.op_kwargs['drop'] }} · {{ task.op_kwargs['number'] + 1 }} of {{ task.op_kwargs['of'] }}"
    ),
    # Of a mapped task, Airflow does not show the doc string.
    doc_md="Copies one shard of a drop into the store, free of metadata, and measures each image.",
)
def ingest(drop: str, batch: str, number: int, of: int, params: dict) -> str:
    with run_step(params) as step:
        from cxr_ml.ingest import ingest_drop
        from cxr_ml.progress import counted

        shard = ingest_drop.Shard(drop, batch, number, of)
        try:
            ingest_drop.ingest_shard(step.store, step.settings, shard, counted(step.on_progress, "files"))
        except Refused as error:
            if params["drop"]:
                raise
            print(error)
            return f"{drop}: {error}"
    return ""


@task
def left_out(refusals: list[str]) -> None:
    """Fails if a drop was refused, with what is wrong with it; the steps of the others go on meanwhile."""
    with run_step():
        if reasons := list(dict.fromkeys(filter(None, refusals))):  # each shard gives it
            raise Refused("Left out of this run:\n" + "\n".join(reasons))


@task(trigger_rule="none_failed")
def validate(shards: list[dict], params: dict) -> list[str]:
    """Judges the batches: unfit images are quarantined, duplicates refused, bad classes rejected."""
    if shards is None:
        raise AirflowSkipException("Nothing new to validate.")
    with run_step(params) as step:
        from cxr_ml import pipeline
        from cxr_ml.validation import committed_batches

        names = [shard["batch"] for shard in shards]
        records = pipeline.validate_batches(step.store, step.settings, names, step.on_progress)
        if shards and not records and not committed_batches.list_names(step.store):
            raise AirflowSkipException("No drop could be used, and there is none of earlier.")
        print("\n".join(record.model_dump_json(indent=2) for record in records))
        return [record.batch for record in records]


@task
def build_dataset(batches: list[str], params: dict) -> list[dict]:
    """Writes the next dataset version; stops the run when the data is not fit to train on."""
    with run_step(params) as step:
        from cxr_ml import pipeline

        dataset, is_due = pipeline.build_next_dataset(step.store, step.settings, step.on_progress)
        if not is_due and not params["train_anyway"]:
            report_nothing_new(step, batches)
            raise AirflowSkipException(f"Nothing new: dataset {dataset.dataset} stays as it is. {batches}")
        print(dataset.model_dump_json(indent=2))
        return [{"number": dataset.dataset, "architecture": a} for a in step.settings.training.architectures]


@task(
    pool="gpu",
    queue="gpu",
    execution_timeout=timedelta(hours=12),
    map_index_template="{{ task.op_kwargs['architecture'] }}",
    doc_md="Trains one architecture: the head on the frozen backbone, then everything.",
)
def train(number: int, architecture: str, params: dict) -> str:
    with run_step(params) as step:
        from cxr_ml.registry import promotion
        from cxr_ml.training.train import train_model

        champion = promotion.champion(step.store)
        start = champion.model if champion else None
        return train_model(
            step.store, step.settings, number, architecture, champion=start, on_progress=step.on_progress
        ).model


@task(pool="gpu", queue="gpu")
def evaluate(models: list[str], params: dict) -> list[str]:
    """Evaluates the candidates, and the champion on the same images."""
    with run_step(params) as step:
        from cxr_ml.evaluation.evaluate import evaluate_models
        from cxr_ml.registry import promotion

        names = list(models)
        champion = promotion.champion(step.store)
        number = promotion.load_model_record(step.store, names[0]).dataset
        other = champion.model if champion else None
        evaluate_models(step.store, step.settings, number, names, other, step.on_progress)
        return names


@task
def gate(models: list[str], params: dict) -> dict:
    """Checks the best candidate on validation against the floors and the champion, on the test images."""
    with run_step(params) as step:
        from cxr_ml import pipeline
        from cxr_ml.reporting.terminal import decision_markdown

        changed = {name.rpartition(".")[2]: str(value) for name, value in form.read_overrides(params).items()}
        gate, classes = step.settings.gate, step.settings.classes
        decision = pipeline.decide(step.store, gate, classes, step.run, models, changed, step.by)
    print(decision.model_dump_json(indent=2))
    return {"open": decision.promote, "table": decision_markdown(decision)}


@task.short_circuit(ignore_downstream_trigger_rules=False)
def ask(verdict: dict, params: dict) -> bool:
    """Lets the question to a human pass only if the form wants it and the gate is open."""
    return verdict["open"] and params["approval"]


@task(trigger_rule="none_failed_min_one_success")
def promote(params: dict) -> dict:
    """Moves the champion pointer if the gate is open, or records the refusal in the history."""
    with run_step(params) as step:
        from cxr_ml import pipeline

        answer = read_answer(step.ti.xcom_pull(task_ids="decide.approval"))
        entry = pipeline.conclude(step.store, step.run, step.by, params["approval"], answer)
        return entry.model_dump(include=callbacks.OUTCOME)


@task(outlets=[callbacks.CHAMPION])
def announce(outcome: dict, outlet_events: Any = None) -> None:  # noqa: ANN401
    """Lets the DAGs that follow the asset cxr_champion know of the new champion; skipped where it stays."""
    if outcome["version"] is None:
        raise AirflowSkipException("The champion stays.")
    callbacks.announce(outlet_events, outcome["model"], outcome["version"])


@task(execution_timeout=timedelta(minutes=20))
def report(batches: list[str], outcome: dict, params: dict) -> str:
    """Writes the report with the Data Docs beside it."""
    with run_step(params) as step:
        from cxr_ml.reporting import publish

        print(f"outcome: {outcome['action']}")
        seconds, missing = measure_seconds(step.ti), list_left_out(step)
        return publish.publish_report(step.store, step.settings, step.run, batches, seconds, step.link, missing).key


@task(**callbacks.TELLING)
def mail(params: dict) -> None:
    """Mails the report. Red in a green run: all is done, but no mail server took the mail; see the log."""
    with run_step(params) as step:
        from cxr_ml.reporting import notify

        if not notify.mail_outcome(step.store, step.settings, step.run, params["recipients"], step.link):
            raise AirflowSkipException("There is nothing to tell, or nobody to tell it to.")


@task_group
def data() -> Any:  # noqa: ANN401 - of what Airflow puts in the place of results
    """From the inbox to a dataset version."""
    shards = find_drops()
    at_once = settings.load().inbox.ingest_tasks
    refusals = ingest.override(max_active_tis_per_dagrun=at_once).expand_kwargs(shards)
    left_out(refusals)
    batches = validate(shards)
    refusals >> batches
    return batches, build_dataset(batches)


@task_group
def learn(jobs: Any) -> Any:  # noqa: ANN401
    """Trains the candidates and evaluates them."""
    return evaluate(train.expand_kwargs(jobs))


@task_group
def decide(models: Any) -> Any:  # noqa: ANN401
    """The gate, and a human where one is asked for."""
    # Not ApprovalOperator: its "Reject" skips what follows before its answer can be read, so that a step behind it
    # that runs all the same, to record the refusal, would take it for a run that asks nobody.
    approval = HITLOperator(
        task_id="approval",
        subject="Promote this chest X-ray model?",
        body="{{ ti.xcom_pull(task_ids='decide.gate')['table'] }}",
        options=[APPROVE, "Reject"],
        defaults="Reject",
        params={"why": Param("", type="string", maxLength=2000, title="Why", description="For the history.")},
        response_timeout=timedelta(days=3),
        doc_md="Waits for a human without taking a worker. No answer within three days means no.",
    )
    verdict = gate(models)
    ask(verdict) >> approval
    return [verdict, approval]


@dag(
    # No start date: the first weekly run is the next Monday's, not the one before the DAG was switched on.
    schedule=CronTriggerTimetable("0 3 * * 1", timezone="UTC", run_immediately=timedelta(minutes=5)),
    catchup=False,
    max_active_runs=1,
    params=form.make_form(),
    doc_md=__doc__,
    tags=["chest X-ray", "training"],
    default_args=callbacks.TASKS,
    on_failure_callback=callbacks.mail_silent_failures,
    dag_display_name="Chest X-ray retraining",
)
def cxr_retraining() -> None:
    batches, jobs = data()
    outcome = promote()
    decide(learn(jobs)) >> outcome
    announce(outcome)
    report(batches, outcome) >> mail().as_teardown()


cxr_retraining()
