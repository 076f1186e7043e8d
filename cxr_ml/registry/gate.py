"""Decides whether a candidate may become champion. A check that could not be evaluated has not passed."""

import math
from collections.abc import Mapping, Sequence

from cxr_ml.errors import Refused
from cxr_ml.records import Champion, Check, Dataset, Decision, Evaluation, Model
from cxr_ml.registry import gate_checks
from cxr_ml.settings import GateSettings


def choose(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Returns the candidate with the best macro F1 on validation; the first of equals. NaN never wins over a number.

    Raises:
        Refused: no candidates.
    """
    if not evaluations:
        raise Refused("The gate needs at least one evaluated candidate. Received: none.")
    return max(evaluations, key=lambda e: -1.0 if math.isnan(e.validation.macro_f1) else e.validation.macro_f1)


def decide(
    settings: GateSettings,
    classes: tuple[str, ...],
    run: str,
    dataset: Dataset,
    evaluations: Sequence[Evaluation],
    models: Mapping[str, Model],
    champion: Champion | None,
    overrides: dict[str, str] | None = None,
    by: str = "",
) -> Decision:
    """Returns the decision on a run: the candidate that is best on validation, checked on the test images.

    Args:
        settings: floors, margins and limits.
        classes: the model's classes, in the order of its outputs.
        run: name of the run.
        dataset: the version that the candidates were trained on.
        evaluations: one per candidate, with the champion's inside.
        models: the records of the candidates, and of the champion, by name.
        champion: the pointer to the model that is champion now; None before the first promotion.
        overrides: settings that were changed for this run, kept with the decision.
        by: who started the run and changed them.

    Raises:
        Refused: no candidates.
    """
    candidate = choose(evaluations)
    checks = [
        gate_checks.check_dataset(candidate, dataset),
        gate_checks.check_files(candidate, models, champion),
        gate_checks.check_reload(candidate),
        *gate_checks.check_validation(candidate),
        *gate_checks.check_support(settings, classes, candidate),
        *gate_checks.check_floors(settings, candidate),
        gate_checks.check_disguises(settings, candidate),
        gate_checks.check_lungs_hidden(settings, candidate),
        *gate_checks.check_settings(settings, classes),
        *(gate_checks.check_against_champion(settings, candidate, champion.model) if champion else []),
    ]
    failed = [check for check in checks if not check.passed]
    return Decision(
        run=run,
        model=candidate.model,
        dataset=dataset.dataset,
        champion=champion.model if champion else None,
        candidates=tuple(e.model for e in evaluations),
        promote=bool(checks) and not failed,
        checks=tuple(checks),
        reason=_explain(failed, champion),
        overrides=overrides or {},
        by=by,
    )


def _explain(failed: Sequence[Check], champion: Champion | None) -> str:
    if failed:
        more = len(failed) - 1
        return failed[0].reason + (f" {more} more check{'s' if more > 1 else ''} failed." if more else "")
    if champion is None:
        return "Every floor is met; there is no champion yet to compare with."
    return f"Every floor is met and the macro F1 is above that of the champion {champion.model}."
