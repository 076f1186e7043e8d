"""What a run has to do, and its decision."""

from collections.abc import Iterable, Sequence

from cxr_ml import store
from cxr_ml.dataset import build, versions
from cxr_ml.errors import Refused
from cxr_ml.evaluation import stored_evaluations
from cxr_ml.ingest import inbox, ingest_drop
from cxr_ml.records import Decision
from cxr_ml.registry import gate, promotion
from cxr_ml.settings import Settings
from cxr_ml.training import backbones
from cxr_ml.validation.suite_check import check_suites

MOST_SHARDS = 1000  # of one run: Airflow maps a task over at most 1,024 by default (core.max_map_length)


def due(settings: Settings, drop: str | None = None) -> tuple[list[ingest_drop.Shard], list[str]]:
    """What a run has to ingest, and what else there is to do or to know, a sentence each. Neither: nothing is new.

    Of a drop that cannot be cut into shards there is one without a batch, whose ingest says why: no drop stops another.

    Args:
        settings: the store, the inbox and the suites.
        drop: the only drop to look at; None or "": all new ones.

    Raises:
        Refused: an architecture, the bucket, the only drop or a suite cannot be used.
    """
    backbones.check(settings)
    store.check(settings)
    new = inbox.list_new_drops(settings)
    if drop:
        inbox.list_files(settings, drop)
        new = [name for name in new if name == drop]
    if new:
        check_suites(settings)
    shards: list[ingest_drop.Shard] = []
    told = []
    for place, name in enumerate(new):
        try:
            part = ingest_drop.plan_shards(settings, name)
        except Refused:
            if drop:
                raise
            part = [ingest_drop.Shard(name, "", 0, 1)]
        if shards and len(shards) + len(part) > MOST_SHARDS:
            told.append(f"Too many files for one run. The next run takes {', '.join(new[place:])}.")
            break
        shards += part
    latest = versions.load_latest(settings)
    if latest is not None and not promotion.was_decided(settings, latest.dataset):
        told.append(f"Dataset {latest.dataset} was never brought before the gate; this run does it.")
    if pending := build.count_pending_rulings(settings):
        told.append(f"{pending} new rulings on single images; the next dataset honours them.")
    return shards, told


def left_out(settings: Settings, shards: Iterable[ingest_drop.Shard]) -> list[str]:
    """The drops that a run had to take in and could not, because something in them was refused."""
    found = {(shard.drop, shard.batch) for shard in shards}
    return sorted(drop for drop, batch in found if not store.exists(settings, f"batches/{batch}/batch.json"))


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
    champion = promotion.champion(settings)
    beside = champion.model if champion else None
    number = promotion.load_model_record(settings, models[0]).dataset
    found = [stored_evaluations.load_hashed(settings, number, name, beside) for name in models]
    named = [*models, *([beside] if beside else [])]
    records = {name: promotion.load_model_record(settings, name) for name in named}
    judged, digests = [e for e, _ in found], {e.model: digest for e, digest in found}
    decision = gate.decide(
        settings, run, versions.load_dataset(settings, number), judged, records, champion, overrides, by
    )
    decision = decision.model_copy(update={"evaluation_sha256": digests})
    store.put_if_absent(settings, key, decision.to_bytes(), "application/json")
    return decision
