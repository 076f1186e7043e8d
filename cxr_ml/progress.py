"""How a step reports its progress: to a callback that the caller hands in."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

from cxr_ml.records import StepProgress

OnProgress = Callable[[StepProgress], None]


def nobody(progress: StepProgress) -> None:
    """Ignores the progress: nobody looks on."""


def now() -> str:
    """Returns the time as records have it, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def begun(stage: str) -> StepProgress:
    """Returns the progress of a part of a step that has begun and whose duration is not known."""
    return StepProgress(stage=stage, at=now())


def counted(on_progress: OnProgress, unit: str, stage: str = "") -> Callable[..., None]:
    """Returns a function that reports a count, with the time that is left by the pace since the first call.

    Args:
        on_progress: receives the progress.
        unit: what is counted, such as files.
        stage: part of the step.

    Returns:
        A function of (done, total, part): total 0 where it is not known, part where it changes.

    Example:
        >>> reports: list[StepProgress] = []
        >>> report = counted(reports.append, "files")
        >>> report(3, 10)
        >>> reports[0].done, reports[0].total, reports[0].unit
        (3, 10, 'files')
    """
    first: list[tuple[float, int]] = []

    def report(done: int, total: int, part: str = stage) -> None:
        moment = time.monotonic()
        first[:] = first or [(moment, done)]
        began, before = first[0]
        left = (moment - began) * (total - done) / (done - before) if before < done <= total else None
        on_progress(StepProgress(unit=unit, done=done, total=total, stage=part, seconds_left=left, at=now()))

    return report
