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

import cxr_wiring as wiring
from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import CronTriggerTimetable, Param, dag, get_current_context, task, task_group, teardown
from airflow.sdk.exceptions import AirflowSkipException

from cxr_ml.errors import Refused


@dag(
    # No start date: the first weekly run is the next Monday's, not the one before the DAG was switched on.
    schedule=CronTriggerTimetable("0 3 * * 1", timezone="UTC", run_immediately=timedelta(minutes=5)),
    catchup=False,
    max_active_runs=1,
    params=wiring.form(),
    doc_md=__doc__,
    tags=["chest X-ray", "training"],
    default_args=wiring.TASKS,
    on_failure_callback=wiring.mail_silent_failures,
    dag_display_name="Chest X-ray retraining",
)
def cxr_retraining() -> None:
    @task_group
    def data() -> object:
        """From the inbox to a dataset version."""

        @task(execution_timeout=timedelta(minutes=10))
        def find_drops(params: dict) -> list[dict]:
            """Cuts the drops that are not in the store yet into shards. None, and nothing unfinished: a skip."""
            context = get_current_context()
            with wiring.settings(params) as s, wiring.progress(context["ti"]):
                from cxr_ml import pipeline

                shards, why = pipeline.due(s, params["drop"])
                print("\n".join(why))
                if not shards and not why and not params["train_anyway"]:
                    wiring.nothing_new(s, context)
                    raise AirflowSkipException("Nothing new in the inbox.")
            return [shard._asdict() for shard in shards]

        @task(
            execution_timeout=timedelta(hours=6),
            max_active_tis_per_dagrun=wiring.ingest_tasks(),
            map_index_template=(
                "{{ task.op_kwargs['drop'] }} · {{ task.op_kwargs['number'] + 1 }} of {{ task.op_kwargs['of'] }}"
            ),
            # Of a mapped task, Airflow does not show the doc string.
            doc_md="Copies one shard of a drop into the store, free of metadata, and measures each image.",
        )
        def ingest(drop: str, batch: str, number: int, of: int, params: dict) -> str:
            with wiring.settings(params) as s, wiring.progress(get_current_context()["ti"]) as on_progress:
                from cxr_ml.ingest import ingest_drop
                from cxr_ml.progress import counted

                shard = ingest_drop.Shard(drop, batch, number, of)
                try:
                    ingest_drop.ingest_shard(s, shard, counted(on_progress, "files"))
                except Refused as error:
                    if params["drop"]:
                        raise
                    print(error)
                    return f"{drop}: {error}"
            return ""

        @task
        def left_out(refusals: list[str]) -> None:
            """Fails if a drop was refused, with what is wrong with it; the steps of the others go on meanwhile."""
            with wiring.settings():
                if said := list(dict.fromkeys(filter(None, refusals))):  # each shard says it
                    raise Refused("Left out of this run:\n" + "\n".join(said))

        @task(trigger_rule="none_failed")
        def validate(shards: list[dict], params: dict) -> list[str]:
            """Judges the batches: unfit images are quarantined, duplicates refused, bad classes rejected."""
            if shards is None:
                raise AirflowSkipException("Nothing new to validate.")
            with wiring.settings(params) as s, wiring.progress(get_current_context()["ti"]) as on_progress:
                from cxr_ml.ingest import ingest_drop
                from cxr_ml.validation import committed_batches, judge_batch

                names = [
                    b for b in dict.fromkeys(shard["batch"] for shard in shards) if b and ingest_drop.is_ingested(s, b)
                ]
                if shards and not names and not committed_batches.list_names(s):
                    raise AirflowSkipException("No drop could be used, and there is none of earlier.")
                for name in names:
                    print(judge_batch.validate_batch(s, name, on_progress).model_dump_json(indent=2))
            return names

        @task
        def build_dataset(batches: list[str], params: dict) -> list[dict]:
            """Writes the next dataset version; stops the run when the data is not fit to train on."""
            context = get_current_context()
            with wiring.settings(params) as s, wiring.progress(context["ti"]) as on_progress:
                from cxr_ml.dataset import build
                from cxr_ml.registry import promotion

                record, new = build.build_dataset(s, promotion.trained_on(s), on_progress)
                if not new and promotion.was_decided(s, record.dataset) and not params["train_anyway"]:
                    wiring.nothing_new(s, context, batches)
                    raise AirflowSkipException(f"Nothing new: dataset {record.dataset} stays as it is. {batches}")
                print(record.model_dump_json(indent=2))
                return [{"number": record.dataset, "architecture": a} for a in s.architectures]

        found = find_drops()
        refusals = ingest.expand_kwargs(found)
        left_out(refusals)
        batches = validate(found)
        refusals >> batches
        return batches, build_dataset(batches)

    @task_group
    def learn(jobs: object) -> object:
        """Trains the candidates and evaluates them."""

        @task(
            pool="gpu",
            queue="gpu",
            execution_timeout=timedelta(hours=12),
            map_index_template="{{ task.op_kwargs['architecture'] }}",
            doc_md="Trains one architecture: the head on the frozen backbone, then everything.",
        )
        def train(number: int, architecture: str, params: dict) -> str:
            with wiring.settings(params) as s, wiring.progress(get_current_context()["ti"]) as on_progress:
                from cxr_ml.registry import promotion
                from cxr_ml.training.train import train_model

                champion = promotion.champion(s)
                warm = champion.model if champion else None
                return train_model(s, number, architecture, champion=warm, on_progress=on_progress).model

        @task(pool="gpu", queue="gpu")
        def evaluate(models: list[str], params: dict) -> list[str]:
            """Evaluates the candidates, and the champion on the same images."""
            with wiring.settings(params) as s, wiring.progress(get_current_context()["ti"]) as on_progress:
                from cxr_ml.evaluation.evaluate import evaluate_models
                from cxr_ml.registry import promotion

                names = list(models)
                champion = promotion.champion(s)
                number = promotion.load_model_record(s, names[0]).dataset
                evaluate_models(s, number, names, champion.model if champion else None, on_progress)
                return names

        return evaluate(train.expand_kwargs(jobs))

    @task_group
    def decide(models: object) -> object:
        """The gate, and a human where one is asked for."""

        @task
        def gate(models: list[str], params: dict) -> dict:
            """Checks the best candidate on validation against the floors and the champion, on the test images."""
            changed = {name: str(value) for name, value in wiring.overrides(params).items()}
            context = get_current_context()
            with wiring.settings(params) as s, wiring.progress(context["ti"]):
                from cxr_ml import pipeline
                from cxr_ml.reporting.terminal import decision_markdown

                decision = pipeline.decide(s, wiring.run_name(context), models, changed, wiring.actor(context))
            print(decision.model_dump_json(indent=2))
            return {"open": decision.promote, "table": decision_markdown(decision)}

        @task.short_circuit(ignore_downstream_trigger_rules=False)
        def ask(verdict: dict, params: dict) -> bool:
            """Lets the question to a human pass only if the form wants it and the gate is open."""
            return verdict["open"] and params["approval"]

        # Not ApprovalOperator: its "Reject" skips what follows before its answer can be read, so that a step behind it
        # that runs all the same, to record the refusal, would take it for a run that asks nobody.
        approval = HITLOperator(
            task_id="approval",
            subject="Promote this chest X-ray model?",
            body="{{ ti.xcom_pull(task_ids='decide.gate')['table'] }}",
            options=[wiring.APPROVE, "Reject"],
            defaults="Reject",
            params={"why": Param("", type="string", maxLength=2000, title="Why", description="For the history.")},
            response_timeout=timedelta(days=3),
            doc_md="Waits for a human without taking a worker. No answer within three days means no.",
        )
        verdict = gate(models)
        ask(verdict) >> approval
        return [verdict, approval]

    @task(trigger_rule="none_failed_min_one_success")
    def promote(params: dict) -> dict:
        """Moves the champion pointer if the gate is open, or records the refusal in the history."""
        context = get_current_context()
        answer = context["ti"].xcom_pull(task_ids="decide.approval")
        with wiring.settings(params) as s, wiring.progress(context["ti"]):
            from cxr_ml.registry import promotion

            decision = promotion.load_decision(s, wiring.run_name(context))
            by = wiring.actor(context)
            if decision.promote and params["approval"] and not answer:
                return promotion.record_rejection(s, decision, by, "The answer is missing.").model_dump(
                    include=wiring.OUTCOME
                )
            if answer:
                approved, human, said = wiring.answered(answer)
                if not approved:
                    return promotion.record_rejection(s, decision, human or by, said).model_dump(include=wiring.OUTCOME)
                by = f"{by}, {said}"
            return promotion.apply_decision(s, decision, by).model_dump(include=wiring.OUTCOME)

    @task(outlets=[wiring.CHAMPION])
    def announce(outcome: dict, outlet_events: object = None) -> None:
        """Lets the DAGs that follow the asset cxr_champion know of the new champion; skipped where it stays."""
        if outcome["version"] is None:
            raise AirflowSkipException("The champion stays.")
        wiring.announce(outlet_events, outcome["model"], outcome["version"])

    @task(execution_timeout=timedelta(minutes=20))
    def report(batches: list[str], outcome: dict, params: dict) -> str:
        """Writes the report with the Data Docs beside it."""
        context = get_current_context()
        ti = context["ti"]
        with wiring.settings(params) as s, wiring.progress(ti):
            from cxr_ml.reporting import publish

            print(f"outcome: {outcome['action']}")
            link = wiring.run_link(s, ti)
            seconds, missing = wiring.seconds(ti), wiring.left_out(s, ti)
            return publish.publish_report(s, wiring.run_name(context), batches, seconds, link, missing).key

    @teardown
    @task(**wiring.TELLING)
    def mail(params: dict) -> None:
        """Mails the report. Red in a green run: all is done, but no mail server took the mail; see the log."""
        context = get_current_context()
        with wiring.settings(params) as s, wiring.progress(context["ti"]):
            from cxr_ml.reporting import notify

            link = wiring.run_link(s, context["ti"])
            if not notify.mail_outcome(s, wiring.run_name(context), params["recipients"], link):
                raise AirflowSkipException("There is nothing to tell, or nobody to tell it to.")

    batches, jobs = data()
    concluded = promote()
    decide(learn(jobs)) >> concluded
    announce(concluded)
    report(batches, concluded) >> mail()


cxr_retraining()
