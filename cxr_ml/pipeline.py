"""What a run has to do, and its decision."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cxr_ml import layout
from cxr_ml.dataset import build, versions
from cxr_ml.errors import Refused
from cxr_ml.evaluation import stored_evaluations
from cxr_ml.ingest import inbox, ingest_drop
from cxr_ml.progress import OnProgress, nobody
from cxr_ml.records import Batch, Dataset, Decision, HistoryEntry
from cxr_ml.registry import gate, promotion
from cxr_ml.settings import GateSettings, Settings
from cxr_ml.store import ObjectStore
from cxr_ml.training import backbones
from cxr_ml.validation import judge_batch
from cxr_ml.validation.suite_check import check_suites

MAX_SHARDS = 1000  # of one run: Airflow maps a task over at most 1,024 by default (core.max_map_length)


class Work(NamedTuple):
    """What a run has to do. Neither shards nor reasons: nothing is new."""

    shards: list[ingest_drop.Shard]  # to ingest
    reasons: list[str]  # what else there is to do or to know, a sentence each


class NextDataset(NamedTuple):
    """The dataset that a run goes on with."""

    dataset: Dataset
    is_due: bool  # whether it is to be trained on: no run has brought its candidates before the gate


class Answer(NamedTuple):
    """What a human answered to the question of approval."""

    approved: bool
    by: str  # "": nobody answered in time
    why: str


def find_work(store: ObjectStore, settings: Settings, drop: str | None = None) -> Work:
    """Returns what a run has to ingest, and what else there is to do.

    Of a drop that cannot be cut into shards there is one without a batch, whose ingest says why: no drop stops another.

    Args:
        store: the object store.
        settings: the inbox and the suites.
        drop: the only drop to look at; None or "": all new ones.

    Raises:
        Refused: an architecture, the bucket, the only drop or a suite cannot be used.
    """
    backbones.check(settings.training, settings.weights_dir)
    store.check()
    new = inbox.list_new_drops(store, settings.inbox)
    if drop:
        inbox.list_files(store, settings.inbox, drop)
        new = [name for name in new if name == drop]
    if new:
        check_suites(settings.validation, settings.cache_dir)
    shards: list[ingest_drop.Shard] = []
    reasons = find_reasons(store)
    for place, name in enumerate(new):
        try:
            part = ingest_drop.plan_shards(store, settings, name)
        except Refused:
            if drop:
                raise
            part = [ingest_drop.Shard(name, "", 0, 1)]
        if shards and len(shards) + len(part) > MAX_SHARDS:
            reasons.append(f"Too many files for one run. The next run takes {', '.join(new[place:])}.")
            break
        shards += part
    return Work(shards, reasons)


def find_reasons(store: ObjectStore) -> list[str]:
    """Returns why a run has something to do even if the inbox is empty, a sentence each; none: it has not."""
    reasons = []
    latest = versions.load_latest(store)
    if latest is not None and not promotion.was_decided(store, latest.dataset):
        reasons.append(f"Dataset {latest.dataset} was never brought before the gate; this run does it.")
    if pending := build.count_pending_rulings(store):
        reasons.append(f"{pending} new rulings on single images; the next dataset honours them.")
    return reasons


def list_left_out(store: ObjectStore, shards: Iterable[ingest_drop.Shard]) -> list[str]:
    """Returns the drops that a run had to take in and could not, because something in them was refused."""
    drops = {(shard.drop, shard.batch) for shard in shards}
    return sorted(drop for drop, batch in drops if not store.exists(layout.batch_record(batch)))


def validate_batches(
    store: ObjectStore, settings: Settings, batches: Iterable[str], on_progress: OnProgress = nobody
) -> list[Batch]:
    """Judges those of the batches whose every shard was ingested; returns their records.

    Args:
        store: the object store.
        settings: the suites, and what is taken for a duplicate.
        batches: names; "" stands for a drop that could not be cut into shards.
        on_progress: called with how far it has come.
    """
    ingested = [name for name in dict.fromkeys(batches) if name and ingest_drop.is_ingested(store, name)]
    return [judge_batch.validate_batch(store, settings, name, on_progress) for name in ingested]


def build_next_dataset(store: ObjectStore, settings: Settings, on_progress: OnProgress = nobody) -> NextDataset:
    """Builds the next dataset version, where there is something new for one.

    A dataset that no run brought before the gate, because that run died, is taken up.

    Args:
        store: the object store.
        settings: the suites and the shares of the splits.
        on_progress: called with how far it has come.

    Raises:
        Refused: there is no batch yet, or the data is not fit to train on.
    """
    dataset, is_new = build.build_dataset(store, settings, promotion.trained_on(store), on_progress)
    return NextDataset(dataset, is_new or not promotion.was_decided(store, dataset.dataset))


def conclude(
    store: ObjectStore, run: str, by: str, approval: bool = False, answer: Answer | None = None
) -> HistoryEntry:
    """Carries out the gate's decision of a run: promotes, or records the refusal. Safe to repeat.

    Args:
        store: the object store.
        run: name of the run.
        by: who started it.
        approval: whether a human had to approve what passed the gate; without an answer it is then refused.
        answer: what the human answered; None where nobody was asked.

    Raises:
        Refused: the model is not what the decision was made on, or another model has become champion since.
    """
    decision = promotion.load_decision(store, run)
    if decision.promote and approval and not answer:
        return promotion.record_rejection(store, decision, by, "The answer is missing.")
    if answer and not answer.by:
        return promotion.record_rejection(store, decision, by, "Nobody approved it in time.")
    if answer and not answer.approved:
        why = f"Not approved by {answer.by}: {answer.why}" if answer.why else f"Not approved by {answer.by}."
        return promotion.record_rejection(store, decision, answer.by, why)
    if answer:
        by = f"{by}, approved by {answer.by}" + (f" ({answer.why})" if answer.why else "")
    return promotion.apply_decision(store, decision, by)


def decide(
    store: ObjectStore,
    settings: GateSettings,
    classes: tuple[str, ...],
    run: str,
    models: Sequence[str],
    overrides: dict[str, str] | None = None,
    by: str = "",
) -> Decision:
    """Lets the gate decide on the evaluated candidates of a run, once; stored as `reports/<run>/decision.json`.

    Args:
        store: the object store.
        settings: floors, margins and limits.
        classes: the model's classes, in the order of its outputs.
        run: name of the run.
        models: the candidates.
        overrides: settings that were changed for this run, kept with the decision.
        by: who started the run and changed them.

    Raises:
        Refused: the run has its decision already, on other candidates.
    """
    key = layout.decision(run)
    stored = store.load_or_none(key, Decision)
    if stored:
        decision, _ = stored
        if decision.candidates != tuple(models):
            raise Refused(
                f"A run is decided once. Received: {', '.join(models)}, but the run {run} was decided on "
                f"{', '.join(decision.candidates)}. Start a new run."
            )
        return decision
    champion = promotion.champion(store)
    beside = champion.model if champion else None
    number = promotion.load_model_record(store, models[0]).dataset
    loaded = [stored_evaluations.load_hashed(store, number, name, beside) for name in models]
    named = [*models, *([beside] if beside else [])]
    records = {name: promotion.load_model_record(store, name) for name in named}
    judged, digests = [e for e, _ in loaded], {e.model: digest for e, digest in loaded}
    decision = gate.decide(
        settings, classes, run, versions.load_dataset(store, number), judged, records, champion, overrides, by
    )
    decision = decision.model_copy(update={"evaluation_sha256": digests})
    store.put_if_absent(key, decision.to_bytes(), "application/json")
    return decision
