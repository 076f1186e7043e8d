"""Follows a step while it runs: its progress is shown now and then, and its log is never silent for long."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

from cxr_ml.progress import OnProgress
from cxr_ml.records import StepProgress
from cxr_ml.reporting import formatting

SHOW_INTERVAL = 2.0  # seconds between two calls of `show`, at least
MAX_SILENCE = 10.0  # seconds without a line in the log, after which there is one
_LOOK_INTERVAL = 0.25  # seconds
_MAX_WAIT = 5.0  # seconds that the end of a step waits for a `show` that hangs


def _print(line: str) -> None:
    print(line, flush=True)


@contextmanager
def followed(show: OnProgress, say: Callable[[str], None] = _print) -> Iterator[OnProgress]:
    """Yields a callback to which a step reports its progress, as often as it likes.

    A thread hands it on, so that the step never waits, and writes a line when the step reports nothing for a while.

    Args:
        show: called with the newest progress, at most every SHOW_INTERVAL seconds, and with the last at the end; must
            raise nothing.
        say: takes a line when a part of the step begins, and after MAX_SILENCE seconds without one.
    """
    follower = _Follower(show, say)
    follower.start()
    try:
        yield follower.hear
    finally:
        follower.over.set()
        follower.join(_MAX_WAIT)


class _Follower(Thread):
    def __init__(self, show: OnProgress, say: Callable[[str], None]) -> None:
        super().__init__(name="cxr-progress", daemon=True)
        self.show, self.say, self.over = show, say, Event()
        self.heard: tuple[float, StepProgress | None] = (time.monotonic(), None)

    def hear(self, progress: StepProgress) -> None:
        self.heard = (time.monotonic(), progress)

    def run(self) -> None:
        shown, stage = None, None
        shown_at, said_at = -SHOW_INTERVAL, time.monotonic()
        while True:
            over = self.over.wait(_LOOK_INTERVAL)
            now, (heard_at, last) = time.monotonic(), self.heard
            if last is not None and last is not shown and (over or now - shown_at >= SHOW_INTERVAL):
                shown, shown_at = last, now
                self.show(last)
            if over:
                return
            if now - said_at >= MAX_SILENCE or (last and last.stage != stage):
                self.say(_line(last, now - heard_at))
                said_at, stage = now, last.stage if last else None


def _line(last: StepProgress | None, silent: float) -> str:
    if last is None:
        return f"at work for {formatting.duration(silent)}"
    return formatting.progress(last) + (f" (since {formatting.duration(silent)})" if silent >= MAX_SILENCE else "")
