"""How a step tells how far it has come: to a callback, which whoever looks on hands in."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

from cxr_ml.records import StepProgress

OnProgress = Callable[[StepProgress], None]


def nobody(progress: StepProgress) -> None:
    """Nobody looks on."""


def now() -> str:
    """This moment, as records have it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def begun(stage: str) -> StepProgress:
    """A part of a step has begun, of which nobody knows how long it takes."""
    return StepProgress(stage=stage, at=now())


def counted(on_progress: OnProgress, unit: str, stage: str = "") -> Callable[..., None]:
    """A callback for who counts: called with (done, total; 0: not known) and, where it changes, the part of the step.

    How long the rest takes is reckoned by the pace since the first call.
    """
    first: list[tuple[float, int]] = []

    def tell(done: int, total: int, part: str = stage) -> None:
        moment = time.monotonic()
        first[:] = first or [(moment, done)]
        began, before = first[0]
        left = (moment - began) * (total - done) / (done - before) if before < done <= total else None
        on_progress(StepProgress(unit=unit, done=done, total=total, stage=part, seconds_left=left, at=now()))

    return tell
