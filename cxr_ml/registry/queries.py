"""Tells about stored models: all of them, one, or two beside each other."""

import math
import re
from collections.abc import Callable
from typing import Any

from cxr_ml import store
from cxr_ml.errors import Refused
from cxr_ml.evaluation import metrics
from cxr_ml.records import Champion, Evaluation, HistoryEntry, Model
from cxr_ml.registry import promotion
from cxr_ml.settings import Settings
from cxr_ml.training import artifact_check

Load = Callable[..., Any]  # store.load, or what keeps the records that it gave


def newest(settings: Settings) -> list[str]:
    """Names of all stored models, newest first."""
    found = [key.split("/")[1] for key in store.keys(settings, "models/") if key.endswith("/model.json")]
    written = {name: store.written(settings, f"models/{name}/model.json") for name in found}
    return sorted(found, key=lambda name: (written[name], name), reverse=True)


def resolve(settings: Settings, name: str) -> str:
    """The model that a name or a champion version, `v3` or `3`, means.

    Raises:
        Refused: neither.
    """
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        if store.exists(settings, f"models/{name}/model.json"):
            return name
        model = promotion.resolve_version(promotion.history(settings), name)
        if model != name:
            return model
    raise Refused(
        f"A model or a champion version such as v1 was expected. Received: {name!r}. `cxr-ml models list` names them."
    )


def models(settings: Settings) -> list[dict[str, Any]]:
    """All models, newest first.

    Returns:
        Per model: what `facts` and `fate` give.
    """
    entries, now = promotion.history(settings), promotion.champion(settings)
    return [facts(settings, name) | fate(entries, now, name) for name in newest(settings)]


def facts(settings: Settings, name: str) -> dict[str, Any]:
    """What of a stored model never changes once it is evaluated.

    Returns:
        model, architecture, dataset, at (when it was stored), macro_f1 and recalls (label -> recall) on the test
        images, None where it was not evaluated.

    Raises:
        Refused: no such model.
    """
    record, at = store.load_dated(settings, f"models/{name}/model.json", Model)
    found = store.find_record(settings, f"models/{name}/evaluation.json", Evaluation)
    test = found[0].test if found else None
    return {
        "model": name,
        "architecture": record.architecture,
        "dataset": record.dataset,
        "at": at,
        "macro_f1": test.macro_f1 if test else None,
        "recalls": {label: one.recall for label, one in test.classes.items()} if test else None,
    }


def fate(entries: list[HistoryEntry], now: Champion | None, name: str) -> dict[str, Any]:
    """What became of a model.

    Returns:
        outcome (promoted, refused, not_chosen or undecided), versions (champion versions), champion (whether it is
        now), swept.
    """
    return {
        "outcome": outcome(entries, name),
        "versions": promotion.champion_versions(entries, name),
        "champion": now is not None and now.model == name,
        "swept": any(e.action == "swept" and e.model == name for e in entries),
    }


def outcome(entries: list[HistoryEntry], name: str) -> str:
    """What became of a model: promoted, refused, not_chosen (another candidate of its run was) or undecided."""
    if promotion.champion_versions(entries, name):
        return "promoted"
    if any(e.model == name and e.action == "refused" for e in entries):
        return "refused"
    return "not_chosen" if judged(entries, name) else "undecided"


def judged(entries: list[HistoryEntry], name: str) -> HistoryEntry | None:
    """The last entry whose decision is about a model, or else the last one that the model was a candidate of."""
    about = [e for e in entries if e.decision and name in e.decision.candidates]
    chosen = [e for e in about if e.model == name]
    return (chosen or about or [None])[-1]


def show(settings: Settings, name: str) -> dict[str, Any]:
    """All about one model, or the one of a champion version.

    Returns:
        model (its record), outcome, versions, champion (whether it is now), swept (the entry that gave its weights up,
        or None), entries (of the history that are about it), decision (the last with it as a candidate, or None) and
        evaluation (the one that was decided on, else its first, or None).

    Raises:
        Refused: no such model.
    """
    name = resolve(settings, name)
    entries, now = promotion.history(settings), promotion.champion(settings)
    last, found = judged(entries, name), evaluation(settings, name, entries)
    gone = artifact_check.swept(settings, name)
    return {
        "model": store.load(settings, f"models/{name}/model.json", Model).model_dump(mode="json"),
        "outcome": outcome(entries, name),
        "versions": promotion.champion_versions(entries, name),
        "champion": now is not None and now.model == name,
        "swept": gone.model_dump(mode="json") if gone else None,
        "entries": [e.model_dump(mode="json", exclude={"decision"}) for e in entries if e.model == name],
        "decision": last.decision.model_dump(mode="json") if last else None,
        "evaluation": found.model_dump(mode="json") if found else None,
    }


def evaluation(
    settings: Settings, name: str, entries: list[HistoryEntry], load: Load = store.load
) -> Evaluation | None:
    """The evaluation of a model that was decided on last, else its first; None where it has none."""
    last, known = judged(entries, name), _own(settings, name, load)
    met = (last.decision.dataset, last.decision.champion) if last else None
    decided = [e for e in known if (e.dataset, e.champion.model if e.champion else None) == met]
    return next(iter([*decided, *known]), None)


def _own(settings: Settings, name: str, load: Load) -> list[Evaluation]:
    """The stored evaluations of a model, the first one first."""
    found = [k for k in store.keys(settings, f"models/{name}/evaluation") if k.endswith(".json")]
    found.sort(key=lambda key: (not key.endswith("/evaluation.json"), key))
    return [load(settings, key, Evaluation) for key in found]


def compare(settings: Settings, first: str, second: str, load: Load = store.load) -> dict[str, Any]:
    """Two models side by side, on the newest test images that both were evaluated on.

    Returns:
        models (the two names), datasets (that each was evaluated on), same_images (whether that is one and the same:
        otherwise differences of figures say nothing), figures (name, the two values, difference: second less first) and
        settings (name and the two values, of those that differ).

    Raises:
        Refused: no such model, or one that was never evaluated.
    """
    names = [resolve(settings, first), resolve(settings, second)]
    stored = [_own(settings, name, load) for name in names]
    beside = [
        [e.champion for e in stored[1 - i] if e.champion and e.champion.model == name] for i, name in enumerate(names)
    ]
    known = [[*own, *other] for own, other in zip(stored, beside, strict=True)]
    for name, found in zip(names, known, strict=True):
        if not found:
            raise Refused(f"Two evaluated models were expected. Received: {name}, which was never evaluated.")
    pairs = [(a, b) for a in known[0] for b in known[1] if a.dataset_sha256 == b.dataset_sha256]
    one, two = max(pairs, key=lambda pair: pair[0].dataset, default=(known[0][0], known[1][0]))
    left, right = all_figures(one), all_figures(two)
    return {
        "models": names,
        "datasets": [one.dataset, two.dataset],
        "same_images": bool(pairs),
        "figures": [
            {"name": n, "values": [left.get(n), right.get(n)], "difference": _difference(left.get(n), right.get(n))}
            for n in dict.fromkeys([*left, *right])
        ],
        "settings": _differing(*(load(settings, f"models/{name}/model.json", Model) for name in names)),
    }


def all_figures(evaluation: Evaluation) -> dict[str, float]:
    """Every figure of a model on the test images, as they are and in disguise, by name."""
    found = metrics.flat(evaluation.test)
    return found | {f"macro F1, {name}": one.macro_f1 for name, one in evaluation.robustness.items()}


def _difference(left: float | None, right: float | None) -> float | None:
    if left is None or right is None or not math.isfinite(left) or not math.isfinite(right):
        return None
    return right - left


def _differing(left: Model, right: Model) -> list[dict[str, Any]]:
    """What the two were made of, where it differs."""
    made = ("architecture", "dataset", "image_size", "classes", "weights", "code")
    facts = [
        {name: getattr(r, name) for name in made} | r.settings | {f"package {k}": v for k, v in r.packages.items()}
        for r in (left, right)
    ]
    found = [(name, [f.get(name) for f in facts]) for name in dict.fromkeys([*facts[0], *facts[1]])]
    return [{"name": name, "values": values} for name, values in found if values[0] != values[1]]
