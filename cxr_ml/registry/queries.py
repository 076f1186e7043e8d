"""Lists, shows and compares stored models."""

import math
import re
from collections.abc import Callable
from typing import Any, TypedDict

from cxr_ml import layout
from cxr_ml.errors import Refused
from cxr_ml.evaluation import metrics
from cxr_ml.records import Champion, Decision, Evaluation, HistoryEntry, Model
from cxr_ml.registry import promotion
from cxr_ml.store import ObjectStore
from cxr_ml.training import artifact_check

Load = Callable[..., Any]  # ObjectStore.load of a store, or a cache of it


class ModelFacts(TypedDict):
    """What never changes about a stored model once it is evaluated."""

    model: str
    architecture: str
    dataset: int
    at: str  # when it was stored, ISO 8601, UTC
    macro_f1: float | None  # on the test images; None: not evaluated
    recalls: dict[str, float] | None  # label -> recall on the test images; None: not evaluated


class ModelFate(TypedDict):
    """What became of a model."""

    outcome: str  # promoted, refused, not_chosen or undecided
    versions: list[int]  # champion versions
    champion: bool  # whether it is champion now
    swept: bool  # whether its weights were deleted


class ModelRow(ModelFacts, ModelFate):
    """A model in the list of all."""


class ModelDetails(TypedDict):
    """Everything about one model, as JSON holds it."""

    model: dict[str, Any]  # its record
    outcome: str
    versions: list[int]
    champion: bool
    swept: dict[str, Any] | None  # the entry that records the deletion of its weights
    entries: list[dict[str, Any]]  # of the history
    decision: dict[str, Any] | None  # the last with it as a candidate
    evaluation: dict[str, Any] | None  # the one that was decided on, else its first


class ComparedFigure(TypedDict):
    """A figure of two models."""

    name: str
    values: list[float | None]
    difference: float | None  # second less first


class ComparedSetting(TypedDict):
    """A setting in which two models differ."""

    name: str
    values: list[Any]


class Comparison(TypedDict):
    """Two models side by side."""

    models: list[str]
    datasets: list[int]  # that each was evaluated on
    same_images: bool  # otherwise differences of figures say nothing
    figures: list[ComparedFigure]
    settings: list[ComparedSetting]


def newest(store: ObjectStore) -> list[str]:
    """Returns the names of all stored models, newest first."""
    names = [key.split("/")[1] for key in store.keys(layout.MODELS) if key.endswith("/model.json")]
    written = {name: store.last_modified(layout.model_record(name)) for name in names}
    return sorted(names, key=lambda name: (written[name], name), reverse=True)


def resolve(store: ObjectStore, name: str) -> str:
    """Returns the model that a name or a champion version, `v3` or `3`, means.

    Raises:
        Refused: neither.
    """
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        if store.exists(layout.model_record(name)):
            return name
        model = promotion.resolve_version(promotion.history(store), name)
        if model != name:
            return model
    raise Refused(
        f"A model or a champion version such as v1 was expected. Received: {name!r}. `cxr-ml models list` names them."
    )


def models(store: ObjectStore) -> list[ModelRow]:
    """Returns all models, newest first."""
    entries, champion = promotion.history(store), promotion.champion(store)
    return [{**facts(store, name), **fate(entries, champion, name)} for name in newest(store)]


def facts(store: ObjectStore, name: str) -> ModelFacts:
    """Returns what never changes about a stored model once it is evaluated.

    Raises:
        Refused: no such model.
    """
    record, at = store.load_dated(layout.model_record(name), Model)
    stored = store.load_or_none(layout.evaluation(name), Evaluation)
    test = stored[0].test if stored else None
    return {
        "model": name,
        "architecture": record.architecture,
        "dataset": record.dataset,
        "at": at,
        "macro_f1": test.macro_f1 if test else None,
        "recalls": {label: of_class.recall for label, of_class in test.classes.items()} if test else None,
    }


def fate(entries: list[HistoryEntry], champion: Champion | None, name: str) -> ModelFate:
    """Returns what became of a model, by the history and the pointer to the champion of now."""
    return {
        "outcome": outcome(entries, name),
        "versions": promotion.champion_versions(entries, name),
        "champion": champion is not None and champion.model == name,
        "swept": promotion.deletion(entries, name) is not None,
    }


def outcome(entries: list[HistoryEntry], name: str) -> str:
    """Returns promoted, refused, not_chosen (another candidate of its run was) or undecided."""
    if promotion.champion_versions(entries, name):
        return "promoted"
    if any(e.model == name and e.action == "refused" for e in entries):
        return "refused"
    return "not_chosen" if judged(entries, name) else "undecided"


def judged(entries: list[HistoryEntry], name: str) -> HistoryEntry | None:
    """Returns the last entry whose decision is about a model, else the last one that the model was a candidate of."""
    candidacies = [e for e in entries if e.decision and name in e.decision.candidates]
    chosen = [e for e in candidacies if e.model == name]
    return next(reversed(chosen or candidacies), None)


def _last_decision(entries: list[HistoryEntry], name: str) -> Decision | None:
    entry = judged(entries, name)
    return entry.decision if entry else None


def show(store: ObjectStore, name: str) -> ModelDetails:
    """Returns everything about one model, or about the one of a champion version.

    Raises:
        Refused: no such model.
    """
    name = resolve(store, name)
    entries, champion = promotion.history(store), promotion.champion(store)
    decision, evaluated = _last_decision(entries, name), evaluation(store, name, entries)
    deletion = artifact_check.swept(store, name)
    return {
        "model": promotion.load_model_record(store, name).model_dump(mode="json"),
        "outcome": outcome(entries, name),
        "versions": promotion.champion_versions(entries, name),
        "champion": champion is not None and champion.model == name,
        "swept": deletion.model_dump(mode="json") if deletion else None,
        "entries": [e.model_dump(mode="json", exclude={"decision"}) for e in entries if e.model == name],
        "decision": decision.model_dump(mode="json") if decision else None,
        "evaluation": evaluated.model_dump(mode="json") if evaluated else None,
    }


def evaluation(
    store: ObjectStore, name: str, entries: list[HistoryEntry], load: Load | None = None
) -> Evaluation | None:
    """Returns the evaluation of a model that was decided on last, else its first; None where it has none."""
    decision, stored = _last_decision(entries, name), _own(store, name, load or store.load)
    wanted = (decision.dataset, decision.champion) if decision else None
    decided = [e for e in stored if (e.dataset, e.champion.model if e.champion else None) == wanted]
    return next(iter([*decided, *stored]), None)


def _own(store: ObjectStore, name: str, load: Load) -> list[Evaluation]:
    """The stored evaluations of a model, the first one first."""
    keys = [k for k in store.keys(layout.evaluations(name)) if k.endswith(".json")]
    keys.sort(key=lambda key: (not key.endswith("/evaluation.json"), key))
    return [load(key, Evaluation) for key in keys]


def compare(store: ObjectStore, first: str, second: str, load: Load | None = None) -> Comparison:
    """Returns two models side by side, on the newest test images that both were evaluated on.

    Args:
        store: the object store.
        first: a model, or a champion version such as v3.
        second: likewise.
        load: how a record is read; None: from the store.

    Raises:
        Refused: no such model, or one that was never evaluated.
    """
    names = [resolve(store, first), resolve(store, second)]
    stored = [_own(store, name, load or store.load) for name in names]
    # A champion was also evaluated beside the candidates that it met.
    as_champion = [
        [e.champion for e in stored[1 - i] if e.champion and e.champion.model == name] for i, name in enumerate(names)
    ]
    evaluations = [[*own, *other] for own, other in zip(stored, as_champion, strict=True)]
    for name, of_model in zip(names, evaluations, strict=True):
        if not of_model:
            raise Refused(f"Two evaluated models were expected. Received: {name}, which was never evaluated.")
    pairs = [(a, b) for a in evaluations[0] for b in evaluations[1] if a.dataset_sha256 == b.dataset_sha256]
    newest_pair = max(pairs, key=lambda pair: pair[0].dataset, default=(evaluations[0][0], evaluations[1][0]))
    left, right = (all_figures(e) for e in newest_pair)
    return {
        "models": names,
        "datasets": [e.dataset for e in newest_pair],
        "same_images": bool(pairs),
        "figures": [
            {"name": n, "values": [left.get(n), right.get(n)], "difference": _difference(left.get(n), right.get(n))}
            for n in dict.fromkeys([*left, *right])
        ],
        "settings": _differing(*((load or store.load)(layout.model_record(name), Model) for name in names)),
    }


def all_figures(evaluation: Evaluation) -> dict[str, float]:
    """Returns every figure of a model on the test images, as they are and in disguise, by name."""
    disguised = {f"macro F1, {disguise}": m.macro_f1 for disguise, m in evaluation.robustness.items()}
    return metrics.flat(evaluation.test) | disguised


def _difference(left: float | None, right: float | None) -> float | None:
    if left is None or right is None or not math.isfinite(left) or not math.isfinite(right):
        return None
    return right - left


def _differing(left: Model, right: Model) -> list[ComparedSetting]:
    """What the two were made of, where it differs."""
    fields = ("architecture", "dataset", "image_size", "classes", "weights", "code")
    facts = [
        {name: getattr(r, name) for name in fields} | r.settings | {f"package {k}": v for k, v in r.packages.items()}
        for r in (left, right)
    ]
    pairs = [(name, [f.get(name) for f in facts]) for name in dict.fromkeys([*facts[0], *facts[1]])]
    return [{"name": name, "values": values} for name, values in pairs if values[0] != values[1]]
