"""Follows a step while it goes on: what it tells is shown now and then, and its log is never silent for long."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

from cxr_ml.progress import OnProgress
from cxr_ml.records import StepProgress
from cxr_ml.reporting import formatting

SHOWN = 2.0  # seconds between two calls of `show`, at least
SAID = 10.0  # seconds without a line of ours after which there is one
_LOOK = 0.25  # seconds
_PATIENCE = 5.0  # seconds that the end of a step waits for a `show` that hangs


def _print(line: str) -> None:
    print(line, flush=True)


@contextmanager
def followed(show: OnProgress, say: Callable[[str], None] = _print) -> Iterator[OnProgress]:
    """A callback for a step to tell its progress to, as often as it likes.

    A thread hands it on, so that the step waits for nobody, and says so when the step tells nothing for a while.

    Args:
        show: called with the newest progress, at most every SHOWN seconds, and at last with the last; raises nothing.
        say: takes a line when a part of the step begins, and after SAID seconds without one.
    """
    follower = _Follower(show, say)
    follower.start()
    try:
        yield follower.hear
    finally:
        follower.over.set()
        follower.join(_PATIENCE)


class _Follower(Thread):
    def __init__(self, show: OnProgress, say: Callable[[str], None]) -> None:
        super().__init__(name="cxr-progress", daemon=True)
        self.show, self.say, self.over = show, say, Event()
        self.heard: tuple[float, StepProgress | None] = (time.monotonic(), None)

    def hear(self, progress: StepProgress) -> None:
        self.heard = (time.monotonic(), progress)

    def run(self) -> None:
        shown, stage = None, None
        shown_at, said_at = -SHOWN, time.monotonic()
        while True:
            over = self.over.wait(_LOOK)
            now, (heard_at, last) = time.monotonic(), self.heard
            if last is not shown and (over or now - shown_at >= SHOWN):
                shown, shown_at = last, now
                self.show(last)
            if over:
                return
            if now - said_at >= SAID or (last and last.stage != stage):
                self.say(_line(last, now - heard_at))
                said_at, stage = now, last.stage if last else None


def _line(last: StepProgress | None, silent: float) -> str:
    if last is None:
        return f"at work for {formatting.duration(silent)}"
    return formatting.progress(last) + (f" (since {formatting.duration(silent)})" if silent >= SAID else "")
