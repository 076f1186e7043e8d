"""What a run says, in the words that report and mail share."""

import math
from typing import NamedTuple

from cxr_ml.evaluation import metrics
from cxr_ml.evaluation.perturbations import LUNGS_HIDDEN
from cxr_ml.records import Batch, Check, Dataset, Evaluation, Metrics, Ruling, Run
from cxr_ml.reporting import formatting
from cxr_ml.settings import GateSettings

NOTE = (
    "Not a diagnostic device: no figure here says how the model does on your patients. "
    "Public data confound class with source."
)


VERDICTS = ("accepted", "quarantined", "rejected_class", "duplicate")
_WRONG_SIDE = {"≥": "below", "≤": "above", ">": "not above"}  # of a limit, by the operator that was not met


class Line(NamedTuple):
    """One measure of the first screen, ready to print."""

    name: str  # e.g. "recall COVID19"
    value: str
    interval: str  # 95 % interval, "" where there is none
    floor: str  # "" where there is none
    champion: str
    verdict: str  # met, not met, not evaluated or no floor


def outcome(run: Run) -> str:
    """PROMOTED, REFUSED or NOTHING NEW."""
    return run.outcome.replace("_", " ").upper()


def chosen(run: Run) -> Evaluation | None:
    """Evaluation of the candidate that the decision names; None without decision or evaluation."""
    if run.decision is None:
        return None
    return next((e for e in run.evaluations if e.model == run.decision.model), None)


def architecture(run: Run) -> str:
    """Architecture of the chosen candidate, else its name; "" where none was chosen."""
    evaluation = chosen(run)
    if evaluation is not None:
        return evaluation.architecture
    return run.decision.model if run.decision is not None else ""


def version(run: Run) -> int | None:
    """Champion version that this run made; None unless it promoted."""
    if run.outcome != "promoted" or run.champion is None or run.decision is None:
        return None
    return run.champion.version if run.champion.model == run.decision.model else None


def reason(run: Run) -> str:
    """Why the run ended as it did, and which drops it had to leave out."""
    if not run.left_out:
        return _reason(run)
    many = len(run.left_out) > 1
    return (
        f"{_reason(run)} Left out, because {'they' if many else 'it'} could not be used: the "
        f"drop{'s' if many else ''} {', '.join(run.left_out)}. The run's log and its failed step say why."
    )


def _reason(run: Run) -> str:
    if run.decision is not None:
        if run.outcome == "refused" and run.decision.promote:
            return (
                "The gate let the candidate pass, but it was not promoted: nobody approved it, or the champion changed "
                f"meanwhile. The gate said: {run.decision.reason}"
            )
        return run.decision.reason
    if run.outcome == "nothing_new":
        files = sum(n for batch in run.batches for counts in batch.counts.values() for n in counts.values())
        if run.batches:
            return (
                f"None of the {files} files that came in was new and fit to train on, so nothing was trained and the "
                "champion stays."
            )
        return "The inbox brought no new image, so nothing was trained and the champion stays."
    stopped = [f for batch in run.batches for f in batch.failures if f.suite == "dataset"]
    if stopped:
        first = stopped[0]
        return (
            "Nothing was trained, because the dataset did not meet its expectations: "
            f"{first.column} should be {first.limit}, and is {first.observed}."
        )
    return "The run ended before the gate decided; no candidate was released and the champion stays."


def _verdict(value: float, floor: float | None) -> str:
    if floor is None:
        return "no floor"
    if not math.isfinite(value):
        return formatting.NOT_EVALUATED
    return "met" if value >= floor else "not met"


def _champion(run: Run, value: float | None) -> str:
    if value is None and run.decision is not None and run.decision.champion is None:
        return "none yet"
    return formatting.NOT_EVALUATED if value is None else ""


def headline(run: Run, settings: GateSettings) -> list[Line]:
    """Test recall of the classes with a floor, macro F1, recall of the others; empty where no candidate was chosen."""
    evaluation = chosen(run)
    if evaluation is None:
        return []
    other: Metrics | None = evaluation.champion.test if evaluation.champion else None
    # A floor for a class that was not evaluated is shown too: it is a reason to worry.
    lines, floored = [], list(settings.recall_floors)
    for name in [*floored, *(n for n in evaluation.test.classes if n not in floored)]:
        one, floor = evaluation.test.classes.get(name), settings.recall_floors.get(name)
        recall = one.recall if one else math.nan
        span = metrics.wilson(recall, one.support) if one else None
        before = other.classes[name].recall if other and name in other.classes else None
        lines.append(
            Line(
                f"recall {name}",
                formatting.percent(recall, floor),
                formatting.span(span),
                "" if floor is None else formatting.limit_percent(floor),
                _champion(run, before) or formatting.percent(before),
                _verdict(recall, floor),
            )
        )
    macro, before = evaluation.test.macro_f1, other.macro_f1 if other else None
    lines.insert(
        len(floored),
        Line(
            "macro F1",
            formatting.score(macro, settings.macro_f1_floor),
            formatting.span(evaluation.test.intervals.get("macro F1"), percent=False),
            f"{settings.macro_f1_floor:g}",
            _champion(run, before) or formatting.score(before),
            _verdict(macro, settings.macro_f1_floor),
        ),
    )
    return lines


class Summary(NamedTuple):
    """What report and mail say first."""

    outcome: str
    architecture: str
    version: int | None
    reason: str
    headline: list[Line]
    failed: list[Check]  # checks of the gate that did not pass
    choice: str
    chosen: Evaluation | None


def summarize(run: Run, settings: GateSettings) -> Summary:
    """Returns what report and mail say first about a run, judged by the floors of the settings."""
    return Summary(
        outcome(run),
        architecture(run),
        version(run),
        reason(run),
        headline(run, settings),
        failed(run),
        choice(run),
        chosen(run),
    )


def choice(run: Run) -> str:
    """One sentence: why this candidate and no other went to the gate."""
    evaluation = chosen(run)
    if evaluation is None:
        return "No candidate was chosen."
    scores = [e.validation.macro_f1 for e in run.evaluations if e is not evaluation]
    own = evaluation.validation.macro_f1
    if not scores:
        return f"{evaluation.architecture} was the only candidate."
    finite = [s for s in scores if math.isfinite(s)]
    if not math.isfinite(own):
        return f"{evaluation.architecture} went to the gate without a macro F1 on the validation images."
    if own >= max(finite, default=0.0):
        best = f"{max(finite):.4f}" if finite else formatting.NOT_EVALUATED
        return (
            f"{evaluation.architecture} had the highest macro F1 on the validation images: {own:.4f}, "
            f"the next {best}. The test images had no say in it."
        )
    return (
        f"{evaluation.architecture} went to the gate, though its macro F1 on the validation images was not the highest."
    )


_DISGUISES = {"shrunk": "shrunk to 7/8, JPEG 75, enlarged again", "sharpened": "sharpened (unsharp mask, 150 %)"}


def disguises(evaluation: Evaluation) -> list[tuple[str, Metrics, Metrics | None]]:
    """The test images as they are and in each disguise: what was done, the candidate's metrics, the champion's.

    Empty where it was not measured.
    """
    if not evaluation.robustness:
        return []
    other = evaluation.champion
    rows = [("as they are", evaluation.test, other.test if other else None)]
    for name, found in evaluation.robustness.items():
        rows.append((_DISGUISES.get(name, name), found, other.robustness.get(name) if other else None))
    return rows


# Of the difference to the champion, what the report shows.
DIFFERENCES = ("accuracy", "log loss", "calibration error")


def differences(evaluation: Evaluation) -> list[str]:
    """Names of the figures whose difference to the champion the report shows."""
    return ["macro F1", *(f"recall {label}" for label in evaluation.test.classes), *DIFFERENCES]


def lungs(evaluation: Evaluation, limit: float) -> list[tuple[str, bool]]:
    """What the model says with the lungs hidden, in a sentence, and whether it is a warning."""
    found = next((m for m in evaluation.moved if m.change == LUNGS_HIDDEN), None)
    if found is None or not math.isfinite(found.balanced_accuracy):
        return []
    chance = 1 / len(found.recalls)
    told = (
        f"With the lungs blacked out it names the class with {formatting.percent(found.balanced_accuracy)} balanced "
        f"accuracy (chance {formatting.percent(chance)}, unchanged {formatting.percent(found.before)})"
    )
    if found.balanced_accuracy > limit:
        return [
            (f"{told}, more than the limit of {formatting.percent(limit)}: it reads the frame, not the lungs.", True)
        ]
    if found.balanced_accuracy > (chance + found.before) / 2:
        return [(f"{told}: much of what it knows it does not know from the lungs.", True)]
    return [(f"{told}.", False)]


_SEES = {"border": "the outer border", "encoding": "how the files are encoded (size, format, bit depth, bytes)"}


def shortcuts(dataset: Dataset | None) -> list[tuple[str, bool]]:
    """What the probes for shortcuts found, a sentence each, and whether it is a warning."""
    found = []
    for probe in dataset.shortcuts if dataset else ():
        sees = _SEES.get(probe.sees, probe.sees)
        if probe.balanced_accuracy is None:
            found.append((f"Whether {sees} gives the class away was not measured. {probe.why}", False))
            continue
        told = (
            f"A probe that sees only {sees} tells the classes apart with "
            f"{probe.balanced_accuracy:.0%} balanced accuracy (chance {probe.chance:.0%}), on {probe.images} images"
        ).replace("%", " %")
        warns = probe.balanced_accuracy > probe.limit
        consequence = "class and source coincide in this data; high figures are no evidence of diagnostic skill"
        found.append((f"{told}: {consequence}." if warns else f"{told}.", warns))
    return found


def drift(dataset: Dataset | None) -> list[tuple[str, bool]]:
    """How the new images lie beside earlier ones, and what dataset.json warns of: a sentence each, and if it warns."""
    found = dataset.drift if dataset else None
    if dataset is None or found is None:
        return []
    told = []
    if found.class_shares is not None:
        share = f"{found.class_shares:.1%}".replace("%", " %")
        told.append(f"Class shares moved by {share} since the dataset before.")
    trained = f"those of dataset {found.against} that were trained on"
    if found.why:
        told.append(found.why)
    elif not found.shifts:
        told.append(f"The {found.images} new images measure like {trained}.")
    else:
        worst = ", ".join(f"{s.measure} of {s.label} ({s.statistic:.2f})" for s in found.shifts[:5])
        more = f" and {len(found.shifts) - 5} more" if len(found.shifts) > 5 else ""
        told.append(
            f"The {found.images} new images measure otherwise than {trained} "
            f"(Kolmogorov-Smirnov statistic, 0 alike to 1 apart): {worst}{more}."
        )
    warnings = [f"dataset.json: {f.column} is {f.observed}, expected {f.limit}." for f in dataset.warnings]
    return [(text, False) for text in told] + [(text, True) for text in warnings]


def ruled(ruling: Ruling) -> str:
    """A ruling as a sentence."""
    done = {"release": "released as", "relabel": "relabelled as", "withdraw": "withdrawn; it was"}.get(ruling.action)
    why = ruling.why if ruling.why.endswith((".", "!", "?")) else f"{ruling.why}."
    aside = f" Set aside: {', '.join(ruling.reasons)}." if ruling.reasons and ruling.action != "withdraw" else ""
    return (
        f"Ruling {ruling.number}, {ruling.at}: {ruling.file} {done or ruling.action} {ruling.label} "
        f"by {ruling.by}: {why}{aside}"
    )


def failed(run: Run) -> list[Check]:
    """Checks of the gate that did not pass."""
    return [] if run.decision is None else [c for c in run.decision.checks if not c.passed]


def complaint(check: Check) -> str:
    """A failed check in a few words, such as `recall COVID19 91.0 % below 95 %`."""
    value, limit = check.observed, check.limit
    if check.operator is None or limit is None or not math.isfinite(limit) or check.kind == "difference":
        return f"{check.name}: {check.reason}"
    if value is None or not math.isfinite(value):
        return f"{check.name} {formatting.NOT_EVALUATED}"
    side = _WRONG_SIDE[check.operator]
    if check.kind == "share":
        return f"{check.name} {formatting.percent(value, limit)} {side} {formatting.limit_percent(limit)}"
    return f"{check.name} {formatting.observed(value)} {side} {formatting.check_threshold(check)}"


def table(batch: Batch) -> tuple[list[str], list[tuple[str, list[int]]]]:
    """Files of a batch per class: the verdicts as column names, and one row per class with its counts and their sum."""
    verdicts = [*VERDICTS, *sorted(set(batch.counts) - set(VERDICTS))]
    labels = sorted({label for counts in batch.counts.values() for label in counts})
    rows = [(label, [batch.counts.get(v, {}).get(label, 0) for v in verdicts]) for label in labels]
    return verdicts, [(label, [*counts, sum(counts)]) for label, counts in rows]
