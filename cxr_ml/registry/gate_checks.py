"""The checks of the gate. One that could not be evaluated has not passed."""

import math
import operator
from collections.abc import Callable, Mapping
from typing import NamedTuple

from cxr_ml.evaluation import metrics
from cxr_ml.evaluation.perturbations import LUNGS_HIDDEN
from cxr_ml.records import Champion, Check, CheckKind, Dataset, Difference, Evaluation, Model, Operator
from cxr_ml.settings import GateSettings

# Classes in which a miss harms a patient: they need a floor for F1 as well. NORMAL needs one for recall only, so that a
# model that calls everyone ill does not pass.
ILL = ("COVID19", "PNEUMONIA")
# Of a probability. The same file on another processor or in another precision differs by less.
MAX_RELOAD_DIFFERENCE = 1e-3

_OPERATORS: Mapping[Operator, Callable[[float, float], bool]] = {"≥": operator.ge, "≤": operator.le, ">": operator.gt}


class _Reasons(NamedTuple):
    """What a check says, a sentence for each way that it can end."""

    passed: str
    failed: str
    not_evaluated: str


def _compare(
    name: str,
    kind: CheckKind,
    observed: float | None,
    operator: Operator,
    limit: float,
    reasons: _Reasons,
    interval: tuple[float, float] | None = None,
) -> Check:
    """A check of a figure against a limit. It does not pass where either is missing or not a finite number."""
    if observed is None or not math.isfinite(observed) or not math.isfinite(limit):
        observed, interval, passed, reason = None, None, False, reasons.not_evaluated
    else:
        passed = _OPERATORS[operator](observed, limit)
        reason = reasons.passed if passed else reasons.failed
    return Check(
        name=name,
        kind=kind,
        observed=observed,
        operator=operator,
        limit=limit,
        passed=passed,
        reason=reason,
        interval=interval,
    )


def _require(name: str, expected: str, passed: bool, reason: str) -> Check:
    """A check of a condition, for which there is no figure."""
    observed = float(passed)
    return Check(name=name, kind="condition", observed=observed, expected=expected, passed=passed, reason=reason)


def _fail(name: str, expected: str, reason: str) -> Check:
    """A check that could not be evaluated."""
    return Check(name=name, kind="condition", observed=None, expected=expected, passed=False, reason=reason)


def check_dataset(candidate: Evaluation, dataset: Dataset) -> Check:
    """The evaluation, and the champion's beside it, must be of this very dataset."""
    stale = [e.model for e in (candidate, candidate.champion) if e and e.dataset_sha256 != dataset.manifest_sha256]
    reason = f"The evaluation of {', '.join(stale)} is of another dataset." if stale else "Evaluated on this dataset."
    return _require("evaluated on this dataset", f"dataset {dataset.dataset}", not stale, reason)


def check_files(candidate: Evaluation, models: Mapping[str, Model], champion: Champion | None) -> Check:
    """The evaluated files must be those that the models' records name, and that the champion's pointer names."""
    stale = []
    for evaluation in (candidate, candidate.champion):
        record = models.get(evaluation.model) if evaluation else None
        if evaluation and (record is None or record.artefact_sha256 != evaluation.artefact_sha256):
            stale.append(evaluation.model)
    other = candidate.champion
    replaced = (
        champion and other and other.model == champion.model and other.artefact_sha256 != champion.artefact_sha256
    )
    if stale:
        reason = f"The evaluation of {', '.join(stale)} is of another file than its record names."
    elif replaced and champion:
        reason = (
            f"The evaluation of the champion {champion.model} is of another file than the champion's pointer names."
        )
    else:
        reason = "The files that were evaluated are those that the records name."
    return _require("evaluated these files", "the recorded files", not (stale or replaced), reason)


def check_reload(candidate: Evaluation) -> Check:
    """The stored artefact, loaded afresh, must predict what it predicted in the process that trained it."""
    difference, limit = candidate.reload_difference, MAX_RELOAD_DIFFERENCE
    text = (
        "Loaded afresh, the artefact's probabilities differ by at most "
        f"{math.nan if difference is None else difference:.2g} from those of the training process"
    )
    reasons = _Reasons(
        passed=f"{text}.",
        failed=f"{text}, more than {limit:g}: it is not the model that was trained.",
        not_evaluated="Whether the stored artefact predicts what the training process did was not evaluated.",
    )
    return _compare("reloaded artefact", "score", difference, "≤", limit, reasons)


def check_validation(candidate: Evaluation) -> list[Check]:
    """The macro F1 on validation, by which the candidate was chosen, must be a number."""
    if math.isfinite(candidate.validation.macro_f1):
        return []
    text = "The macro F1 on validation, by which the candidate is chosen, is not a number."
    return [_fail("macro F1 on validation", "a number", text)]


def check_support(settings: GateSettings, classes: tuple[str, ...], candidate: Evaluation) -> list[Check]:
    """Each class needs test images enough to judge by."""
    figures = {label: candidate.test.classes.get(label) for label in classes}
    return [
        _at_least(f"test images {label}", "images", f.support if f else None, settings.min_test_support)
        for label, f in figures.items()
    ]


def _at_least(
    name: str, kind: CheckKind, observed: float | None, floor: float, interval: tuple[float, float] | None = None
) -> Check:
    why = "it is missing" if observed is None else "it is not a number"
    why = why if math.isfinite(floor) else "its floor is not a number"
    shown = f"{math.nan if observed is None else observed:{'.0f' if kind == 'images' else '.3f'}}"
    reasons = _Reasons(
        passed=f"{name} is {shown}, which meets {floor:g}.",
        failed=f"{name} is {shown}, below the floor {floor:g}.",
        not_evaluated=f"{name} could not be evaluated: {why}.",
    )
    return _compare(name, kind, observed, "≥", floor, reasons, interval)


def _floors(settings: GateSettings) -> dict[str, tuple[CheckKind, float]]:
    """Kind and floor of every figure that has one, by its name."""
    floors: dict[str, tuple[CheckKind, float]] = {}
    for label, floor in settings.recall_floors.items():
        floors[metrics.name("recall", label)] = ("share", floor)
    for label, floor in settings.f1_floors.items():
        floors[metrics.name("f1", label)] = ("score", floor)
    return floors | {metrics.name("macro_f1"): ("score", settings.macro_f1_floor)}


def check_floors(settings: GateSettings, candidate: Evaluation) -> list[Check]:
    """Each figure, or the lower bound of its interval where the settings want that, against its floor."""
    values, checks = metrics.flat(candidate.test), []
    for name, (kind, floor) in _floors(settings).items():
        interval = candidate.test.intervals.get(name)
        if name in settings.floors_on_lower_bound:
            lower = interval[0] if interval else None
            checks.append(_at_least(f"{name}, lower bound", kind, lower, floor, interval))
        else:
            checks.append(_at_least(name, kind, values.get(name), floor, interval))
    return checks


def check_disguises(settings: GateSettings, candidate: Evaluation) -> Check:
    """A model that is worse on the same films sharpened or re-encoded knows their source, not the disease."""
    limit = settings.corruption_limit
    figures = {"as they are": candidate.test.macro_f1}
    figures |= {disguise: measured.macro_f1 for disguise, measured in candidate.robustness.items()}
    worst, best = min(figures, key=figures.__getitem__), max(figures, key=figures.__getitem__)
    evaluated = candidate.robustness and all(map(math.isfinite, figures.values()))
    lost = figures[best] - figures[worst] if evaluated else math.nan
    text = f"Between the test images {best} and {worst} the macro F1 differs by {lost:.3f}, "
    reasons = _Reasons(
        passed=f"{text}at most {limit:g}.",
        failed=f"{text}more than {limit:g}: the model leans on sharpness, resolution or encoding.",
        not_evaluated="The macro F1 on the test images in disguise could not be evaluated.",
    )
    return _compare("macro F1 lost in disguise", "score", lost, "≤", limit, reasons)


def check_lungs_hidden(settings: GateSettings, candidate: Evaluation) -> Check:
    """A model that still names the classes with the lungs hidden does not read lungs."""
    name, limit = f"balanced accuracy, {LUNGS_HIDDEN}", settings.lungs_hidden_limit
    result = next((m for m in candidate.moved if m.change == LUNGS_HIDDEN), None)
    accuracy = result.balanced_accuracy if result else math.nan
    text = f"With the lungs hidden the balanced accuracy is {accuracy:.3f}"
    reasons = _Reasons(
        passed=f"{text}, which stays below {limit:g}.",
        failed=f"{text}, above {limit:g}: the model reads the frame, not the lungs.",
        not_evaluated=f"The {name} could not be evaluated.",
    )
    return _compare(name, "score", accuracy, "≤", limit, reasons)


def check_settings(settings: GateSettings, classes: tuple[str, ...]) -> list[Check]:
    """A floor for a class that the model does not know, or a class of the ill without a floor, shuts the gate."""
    unknown = (set(settings.recall_floors) | set(settings.f1_floors)) - set(classes)
    missing = [label for label in classes if label not in settings.recall_floors]
    missing += [f"{c} (F1)" for c in ILL if c in classes and c not in settings.f1_floors]
    problems = [f"no floor for {c}" for c in missing] + [f"a floor for the unknown class {c}" for c in sorted(unknown)]
    without_floor = sorted(set(settings.floors_on_lower_bound) - set(_floors(settings)))
    problems += [f"a lower bound is wanted of {name}, which has no floor" for name in without_floor]
    unknown_figures = sorted(set(settings.margins) - metrics.names(classes))
    problems += [f"a margin for the unknown figure {name}" for name in unknown_figures]
    if not problems:
        return []
    return [_fail("floors", "one per class", f"The floors are incomplete: {', '.join(problems)}.")]


def check_against_champion(settings: GateSettings, candidate: Evaluation, champion: str) -> list[Check]:
    """No figure with a margin may be worse by more than that, and the macro F1 must be better."""
    other = candidate.champion
    if other is None or other.model != champion or candidate.difference is None:
        text = candidate.champion_problem or f"The champion {champion} was not evaluated on this test set."
        return [_fail("champion", "evaluated", text)]
    if candidate.model == champion:
        text = "The candidate is the champion itself: the same data and settings give the same model."
        return [_fail("champion", "another model", text)]
    checks = [_check_margin(candidate.difference, figure, margin) for figure, margin in settings.margins.items()]
    macro_f1, limit = candidate.test.macro_f1, other.test.macro_f1
    reasons = _Reasons(
        passed=f"Macro F1 is {macro_f1:.3f}, above the champion's {limit:.3f}.",
        failed=f"Macro F1 is {macro_f1:.3f}, not above the champion's {limit:.3f}; a tie keeps the champion.",
        not_evaluated="The macro F1 of candidate or champion could not be evaluated.",
    )
    return [*checks, _compare("macro F1 against champion", "champion_score", macro_f1, ">", limit, reasons)]


def _check_margin(difference: Difference, figure: str, margin: float) -> Check:
    """The whole interval of the paired difference must lie above the margin, not the difference alone.

    Non-inferiority, as in CONSORT 2012 (Piaggio et al., JAMA 308): doubt counts against the candidate.
    """
    value, interval = difference.figures.get(figure, math.nan), difference.intervals.get(figure)
    if metrics.lower_is_better(figure):
        value, interval = -value, (-interval[1], -interval[0]) if interval else None
    lower = interval[0] if interval and math.isfinite(value) else math.nan
    text = f"{figure} is {value:+.3f} beside the champion's, at worst {lower:+.3f} (95 % interval), "
    reasons = _Reasons(
        passed=f"{text}which stays above {-margin:g}.",
        failed=f"{text}below {-margin:g}.",
        not_evaluated=f"The difference of {figure} to the champion could not be evaluated.",
    )
    return _compare(f"{figure} against champion", "difference", lower, "≥", -margin, reasons, interval)
