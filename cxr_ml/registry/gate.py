"""Decides whether a candidate may become champion. What was not really evaluated is not passed."""

import math
from collections.abc import Mapping, Sequence

from cxr_ml.errors import Refused
from cxr_ml.evaluation import metrics
from cxr_ml.evaluation.perturbations import LUNGS_HIDDEN
from cxr_ml.records import Champion, Check, Dataset, Decision, Difference, Evaluation, Metrics, Model
from cxr_ml.settings import Settings

# Where a miss harms a patient; NORMAL has its floor so that a model that calls everyone ill does not pass.
ILL = ("COVID19", "PNEUMONIA")
# Of a probability. The same file on another processor or in another precision differs by less.
RELOADED = 1e-3


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
    models: Mapping[str, Model],
    champion: Champion | None,
    overrides: dict[str, str] | None = None,
    by: str = "",
) -> Decision:
    """Chooses among the candidates on validation and checks the chosen one on test.

    Args:
        settings: floors, margins and limits.
        run: name of the run.
        dataset: the version that the candidates were trained on.
        evaluations: one per candidate, with the champion's inside.
        models: the records of the candidates, and of the champion, by name.
        champion: the pointer to the model that is champion now; None before the first promotion.
        overrides: settings that were changed for this run, kept with the decision.
        by: who started the run and changed them.
    """
    chosen = choose(evaluations)
    test = chosen.test
    checks = [_fresh(chosen, dataset), _same_files(chosen, models, champion), _reloaded(chosen)]
    if not math.isfinite(chosen.validation.macro_f1):
        text = "The macro F1 on validation, by which the candidate is chosen, is not a number."
        checks.append(Check(name="macro F1 on validation", observed=None, limit="a number", passed=False, reason=text))
    for label in settings.classes:
        found = test.classes.get(label)
        support = found.support if found else None
        checks.append(_at_least(f"test images {label}", support, settings.min_test_support, "images"))
    floors = {f"recall {label}": floor for label, floor in settings.recall_floors.items()}
    floors |= {f"F1 {label}": floor for label, floor in settings.f1_floors.items()}
    for name, floor in (floors | {"macro F1": settings.macro_f1_floor}).items():
        checks.append(_floor(settings, test, name, floor))
    checks += [_disguised(settings, test, chosen.robustness), _lungs(settings, chosen)]
    checks.extend(_complete(settings, floors))
    if champion is not None:
        checks.extend(_against_champion(settings, chosen, champion.model))
    failed = [c for c in checks if not c.passed]
    if failed:
        more = len(failed) - 1
        reason = failed[0].reason + (f" {more} more check{'s' if more > 1 else ''} failed." if more else "")
    elif champion is None:
        reason = "Every floor is met; there is no champion yet to compare with."
    else:
        reason = f"Every floor is met and the macro F1 is above that of the champion {champion.model}."
    return Decision(
        run=run,
        model=chosen.model,
        dataset=dataset.dataset,
        champion=champion.model if champion else None,
        candidates=tuple(e.model for e in evaluations),
        promote=bool(checks) and not failed,
        checks=tuple(checks),
        reason=reason,
        overrides=overrides or {},
        by=by,
    )


def _at_least(
    name: str, observed: float | None, floor: float, unit: str = "", interval: tuple[float, float] | None = None
) -> Check:
    limit = f"≥ {floor:g}{' ' + unit if unit else ''}"
    if observed is None or not math.isfinite(observed) or not math.isfinite(floor):
        why = "it is missing" if observed is None else "it is not a number"
        why = why if math.isfinite(floor) else "its floor is not a number"
        return Check(
            name=name, observed=None, limit=limit, passed=False, reason=f"{name} could not be evaluated: {why}."
        )
    passed = observed >= floor
    shown = f"{observed:.0f}" if unit else f"{observed:.3f}"
    verdict = f"is {shown}, which meets {floor:g}." if passed else f"is {shown}, below the floor {floor:g}."
    reason = f"{name} {verdict}"
    return Check(name=name, observed=observed, limit=limit, passed=passed, reason=reason, interval=interval)


def _floor(settings: Settings, test: Metrics, name: str, floor: float) -> Check:
    """A figure, or the lower bound of its interval where the settings want that, against its floor."""
    interval = test.intervals.get(name)
    value = metrics.flat(test).get(name)
    if name not in settings.floors_on_lower_bound:
        return _at_least(name, value, floor, interval=interval)
    lower = f"{name}, lower bound"
    return _at_least(lower, interval[0] if interval else None, floor, interval=interval)


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


def _same_files(chosen: Evaluation, models: Mapping[str, Model], champion: Champion | None) -> Check:
    """What was evaluated must be the very files that the models' records name, and the champion's pointer."""
    stale = []
    for evaluation in [chosen, *([chosen.champion] if chosen.champion else [])]:
        record = models.get(evaluation.model)
        if record is None or record.artefact_sha256 != evaluation.artefact_sha256:
            stale.append(evaluation.model)
    beside = chosen.champion
    moved = (
        champion and beside and beside.model == champion.model and beside.artefact_sha256 != champion.artefact_sha256
    )
    if stale:
        reason = f"The evaluation of {', '.join(stale)} is of another file than its record names."
    elif moved:
        reason = (
            f"The evaluation of the champion {champion.model} is of another file than the champion's pointer names."
        )
    else:
        reason = "The files that were evaluated are those that the records name."
    passed = not (stale or moved)
    limit = "the recorded files"
    return Check(name="evaluated these files", observed=float(passed), limit=limit, passed=passed, reason=reason)


def _reloaded(chosen: Evaluation) -> Check:
    """The stored artefact, loaded afresh, must predict what it predicted in the process that trained it."""
    name, limit, value = "reloaded artefact", f"≤ {RELOADED:g}", chosen.reload_difference
    if value is None or not math.isfinite(value):
        text = "Whether the stored artefact predicts what the training process did was not evaluated."
        return Check(name=name, observed=None, limit=limit, passed=False, reason=text)
    passed = value <= RELOADED
    text = (
        f"Loaded afresh, the artefact's probabilities differ by at most {value:.2g} from those of the training process"
        + ("." if passed else f", more than {RELOADED:g}: it is not the model that was trained.")
    )
    return Check(name=name, observed=value, limit=limit, passed=passed, reason=text)


def _disguised(settings: Settings, test: Metrics, robustness: Mapping[str, Metrics]) -> Check:
    """A model that is worse on the same films sharpened or re-encoded knows their source, not the disease."""
    name, most = "macro F1 lost in disguise", settings.disguise_limit
    figures = {"as they are": test.macro_f1} | {what: found.macro_f1 for what, found in robustness.items()}
    limit = f"≤ {most:g}"
    if not robustness or not all(map(math.isfinite, figures.values())):
        text = "The macro F1 on the test images in disguise could not be evaluated."
        return Check(name=name, observed=None, limit=limit, passed=False, reason=text)
    worst, best = min(figures, key=figures.__getitem__), max(figures, key=figures.__getitem__)
    lost = figures[best] - figures[worst]
    passed = lost <= most
    text = f"Between the test images {best} and {worst} the macro F1 differs by {lost:.3f}, " + (
        f"at most {most:g}." if passed else f"more than {most:g}: the model leans on sharpness, resolution or encoding."
    )
    return Check(name=name, observed=lost, limit=limit, passed=passed, reason=text)


def _lungs(settings: Settings, chosen: Evaluation) -> Check:
    """A model that still names the classes with the lungs hidden does not read lungs."""
    name, most = f"balanced accuracy, {LUNGS_HIDDEN}", settings.lungs_hidden_limit
    found = next((m for m in chosen.moved if m.change == LUNGS_HIDDEN), None)
    value = found.balanced_accuracy if found else math.nan
    limit = f"≤ {most:g}"
    if not math.isfinite(value):
        return Check(name=name, observed=None, limit=limit, passed=False, reason=f"The {name} could not be evaluated.")
    passed = value <= most
    text = f"With the lungs hidden the balanced accuracy is {value:.3f}"
    text += (
        f", which stays below {most:g}." if passed else f", above {most:g}: the model reads the frame, not the lungs."
    )
    return Check(name=name, observed=value, limit=limit, passed=passed, reason=text)


def _complete(settings: Settings, floors: Mapping[str, float]) -> list[Check]:
    """A floor for a class that the model does not know, or a class of the ill without a floor, shuts the gate."""
    unknown = (set(settings.recall_floors) | set(settings.f1_floors)) - set(settings.classes)
    missing = [c for c in settings.classes if c not in settings.recall_floors]
    missing += [f"{c} (F1)" for c in ILL if c in settings.classes and c not in settings.f1_floors]
    problems = [f"no floor for {c}" for c in missing] + [f"a floor for the unknown class {c}" for c in sorted(unknown)]
    strange = sorted(set(settings.floors_on_lower_bound) - set(floors) - {"macro F1"})
    problems += [f"a lower bound is wanted of {n}, which has no floor" for n in strange]
    known = {metrics.name(f, label) for label in settings.classes for f in metrics.OF_CLASS}
    known |= {metrics.name(f) for f in metrics.OF_ALL}
    problems += [f"a margin for the unknown figure {n}" for n in sorted(set(settings.margins) - known)]
    if not problems:
        return []
    text = "The floors are incomplete: " + ", ".join(problems) + "."
    return [Check(name="floors", observed=None, limit="one per class", passed=False, reason=text)]


def _against_champion(settings: Settings, chosen: Evaluation, champion: str) -> list[Check]:
    beside, difference = chosen.champion, chosen.difference
    if beside is None or beside.model != champion or difference is None:
        text = chosen.champion_problem or f"The champion {champion} was not evaluated on this test set."
        return [Check(name="champion", observed=None, limit="evaluated", passed=False, reason=text)]
    if chosen.model == champion:
        text = "The candidate is the champion itself: the same data and settings give the same model."
        return [Check(name="champion", observed=None, limit="another model", passed=False, reason=text)]
    checks = [_not_inferior(difference, name, margin) for name, margin in settings.margins.items()]
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


def _not_inferior(difference: Difference, figure: str, margin: float) -> Check:
    """The whole interval of the paired difference must lie above the margin, not the difference alone.

    Non-inferiority, as in CONSORT 2012 (Piaggio et al., JAMA 308): doubt counts against the candidate.
    """
    name, limit = f"{figure} against champion", f"≥ {-margin:g}"
    value, interval = difference.figures.get(figure, math.nan), difference.intervals.get(figure)
    if metrics.lower_is_better(figure):
        value, interval = -value, (-interval[1], -interval[0]) if interval else None
    if interval is None or not math.isfinite(value):
        text = f"The difference of {figure} to the champion could not be evaluated."
        return Check(name=name, observed=None, limit=limit, passed=False, reason=text)
    passed = interval[0] >= -margin
    text = f"{figure} is {value:+.3f} beside the champion's, at worst {interval[0]:+.3f} (95 % interval), " + (
        f"which stays above {-margin:g}." if passed else f"below {-margin:g}."
    )
    return Check(name=name, observed=interval[0], limit=limit, passed=passed, reason=text, interval=interval)
