"""Decides whether a candidate may become champion. What was not really evaluated is not passed."""

import math
from collections.abc import Sequence

from cxr_ml.errors import Refused
from cxr_ml.records import Check, Dataset, Decision, Evaluation, Metrics
from cxr_ml.settings import Settings

# Where a miss harms a patient; NORMAL has its floor so that a model that calls everyone ill does not pass.
ILL = ("COVID19", "PNEUMONIA")


def choose(evaluations: Sequence[Evaluation]) -> Evaluation:
    """The candidate with the best macro F1 on validation; the first of equals. NaN never wins over a number.

    Raises:
        Refused: no candidates.
    """
    if not evaluations:
        raise Refused("The gate needs at least one evaluated candidate. Received: none.")
    return max(evaluations, key=lambda e: -1.0 if math.isnan(e.validation.macro_f1) else e.validation.macro_f1)


def decide(
    settings: Settings,
    run: str,
    dataset: Dataset,
    evaluations: Sequence[Evaluation],
    champion: str | None,
    overrides: dict[str, str] | None = None,
) -> Decision:
    """Chooses among the candidates on validation and checks the chosen one on test.

    Args:
        settings: floors and margins.
        run: name of the run.
        dataset: the version that the candidates were trained on.
        evaluations: one per candidate, with the champion's inside.
        champion: name of the model that is champion now; None before the first promotion.
        overrides: settings that were changed for this run, kept with the decision.
    """
    chosen = choose(evaluations)
    test = chosen.test
    checks = [_fresh(chosen, dataset)]
    for label in settings.classes:
        found = test.classes.get(label)
        support = found.support if found else None
        checks.append(_at_least(f"test images {label}", support, settings.min_test_support, "images"))
    for label, floor in settings.recall_floors.items():
        checks.append(_at_least(f"recall {label}", _of(test, label, "recall"), floor))
    for label, floor in settings.f1_floors.items():
        checks.append(_at_least(f"F1 {label}", _of(test, label, "f1"), floor))
    checks.append(_at_least("macro F1", test.macro_f1, settings.macro_f1_floor))
    checks.extend(_floors_complete(settings))
    if champion is not None:
        checks.extend(_against_champion(settings, chosen, champion))
    failed = [c for c in checks if not c.passed]
    if failed:
        more = len(failed) - 1
        reason = failed[0].reason + (f" {more} more check{'s' if more > 1 else ''} failed." if more else "")
    elif champion is None:
        reason = "Every floor is met; there is no champion yet to compare with."
    else:
        reason = f"Every floor is met and the macro F1 is above that of the champion {champion}."
    return Decision(
        run=run,
        model=chosen.model,
        dataset=dataset.dataset,
        champion=champion,
        candidates=tuple(e.model for e in evaluations),
        promote=bool(checks) and not failed,
        checks=tuple(checks),
        reason=reason,
        overrides=overrides or {},
    )


def _of(metrics: Metrics, label: str, name: str) -> float | None:
    found = metrics.classes.get(label)
    return getattr(found, name) if found else None


def _at_least(name: str, observed: float | None, floor: float, unit: str = "") -> Check:
    limit = f"≥ {floor:g}{' ' + unit if unit else ''}"
    if observed is None or not math.isfinite(observed) or not math.isfinite(floor):
        return Check(name=name, observed=None, limit=limit, passed=False, reason=f"{name} could not be evaluated.")
    passed = observed >= floor
    shown = f"{observed:.0f}" if unit else f"{observed:.3f}"
    verdict = f"is {shown}, which meets {floor:g}." if passed else f"is {shown}, below the floor {floor:g}."
    return Check(name=name, observed=observed, limit=limit, passed=passed, reason=f"{name} {verdict}")


def _fresh(chosen: Evaluation, dataset: Dataset) -> Check:
    """The evaluation, and the champion's beside it, must be of this very dataset."""
    all_of = [chosen, *([chosen.champion] if chosen.champion else [])]
    stale = [e.model for e in all_of if e.dataset_sha256 != dataset.manifest_sha256]
    reason = f"The evaluation of {', '.join(stale)} is of another dataset." if stale else "Evaluated on this dataset."
    return Check(
        name="evaluated on this dataset",
        observed=float(not stale),
        limit=f"dataset {dataset.dataset}",
        passed=not stale,
        reason=reason,
    )


def _floors_complete(settings: Settings) -> list[Check]:
    """A floor for a class that the model does not know, or a class of the ill without a floor, shuts the gate."""
    unknown = (set(settings.recall_floors) | set(settings.f1_floors)) - set(settings.classes)
    missing = [c for c in settings.classes if c not in settings.recall_floors]
    missing += [f"{c} (F1)" for c in ILL if c in settings.classes and c not in settings.f1_floors]
    problems = [f"no floor for {c}" for c in missing] + [f"a floor for the unknown class {c}" for c in sorted(unknown)]
    if not problems:
        return []
    text = "The floors are incomplete: " + ", ".join(problems) + "."
    return [Check(name="floors", observed=None, limit="one per class", passed=False, reason=text)]


def _against_champion(settings: Settings, chosen: Evaluation, champion: str) -> list[Check]:
    beside = chosen.champion
    if beside is None or beside.model != champion:
        text = f"The champion {champion} was not evaluated on this test set."
        return [Check(name="champion", observed=None, limit="evaluated", passed=False, reason=text)]
    if chosen.model == champion:
        text = "The candidate is the champion itself: the same data and settings give the same model."
        return [Check(name="champion", observed=None, limit="another model", passed=False, reason=text)]
    checks = []
    for label in [c for c in ILL if c in settings.classes]:
        theirs = _of(beside.test, label, "recall")
        floor = math.nan if theirs is None else round(theirs - settings.recall_margin, 4)
        checks.append(_at_least(f"recall {label} against champion", _of(chosen.test, label, "recall"), floor))
    ours, theirs = chosen.test.macro_f1, beside.test.macro_f1
    evaluated = math.isfinite(ours) and math.isfinite(theirs)
    passed = evaluated and ours > theirs
    if not evaluated:
        text = "The macro F1 of candidate or champion could not be evaluated."
    elif passed:
        text = f"Macro F1 is {ours:.3f}, above the champion's {theirs:.3f}."
    else:
        text = f"Macro F1 is {ours:.3f}, not above the champion's {theirs:.3f}; a tie keeps the champion."
    checks.append(
        Check(
            name="macro F1 against champion",
            observed=ours if evaluated else None,
            limit=f"> {theirs:.3f}",
            passed=passed,
            reason=text,
        )
    )
    return checks
