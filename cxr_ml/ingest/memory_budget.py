"""How much of a drop is in memory at once, over all processes that work on it: a number of places to be taken.

The places are bytes of one file that all processes have open, taken by POSIX locks, which the kernel gives back when
a process dies, however it dies. <https://man7.org/linux/man-pages/man2/fcntl.2.html>, advisory record locking.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from threading import Condition, Lock
from typing import NamedTuple

PLACE = 32_000_000  # bytes of memory that one place stands for
PER_PIXEL = 9  # bytes of memory while a picture is decoded and measured: 4 Pillow's, 3 RGB, 1 grey, and a rest
PER_BYTE = 2  # bytes of memory for each byte of a file: as read, and as stored
SMALL = 4_000_000  # bytes; a smaller file is read without a place, as long as its process has few
LARGE = 4_000_000  # px; larger pictures take so much memory that threads decode them one at a time
_WAIT = 0.002  # seconds between two looks for a free place


class _Area(NamedTuple):
    """Places `first + 1` and so on of the file; place `first` is the door, where one process at a time waits."""

    first: int
    places: int
    mine: Lock  # POSIX locks tell processes apart, this one threads


class _Bytes:
    """Bytes that the threads of this process have together, at most `most` or those of one thread."""

    def __init__(self, most: int) -> None:
        self._most, self._held, self._less = most, 0, Condition()

    @contextmanager
    def take(self, size: int) -> Iterator[None]:
        with self._less:
            self._less.wait_for(lambda: not self._held or self._held + size <= self._most)
            self._held += size
        try:
            yield
        finally:
            with self._less:
                self._held -= size
                self._less.notify_all()


_FEW = _Bytes(4 * SMALL)  # small files, as read
_SENT = _Bytes(4 * SMALL)  # what is stored of files, small or not
_FILES = _Area(0, 4, Lock())  # one file of 64 MB, as read and as stored
_PIXELS = _Area(8, 15, Lock())  # one picture of 50 megapixels
_file: list[int] = []


def enter(descriptor: int) -> None:
    """Shares the places with all processes that were given the same open file. Without it, a process has its own."""
    _file[:] = [descriptor]


@contextmanager
def for_file(size: int) -> Iterator[None]:
    """Room to read a file of `size` bytes and to hold what is stored of it. Waits until there is."""
    with _FEW.take(size) if size <= SMALL else _taken(_FILES, size * PER_BYTE):
        yield


def for_sending(size: int) -> AbstractContextManager[None]:
    """Room to hold `size` bytes until the store has them. Waits until there is."""
    return _SENT.take(size)


@contextmanager
def for_pixels(pixels: int) -> Iterator[None]:
    """Room to decode and measure a picture of so many pixels. Waits until there is.

    Each process decodes one picture at a time. A picture that needs more than all places is decoded alone.
    """
    with _taken(_PIXELS, pixels * PER_PIXEL):
        yield


@contextmanager
def _taken(area: _Area, need: int) -> Iterator[None]:
    with area.mine:
        if not _file:
            yield
            return
        wanted = min(max(1, -(-need // PLACE)), area.places)
        held: list[int] = []
        try:
            # Who waits for many places waits at the door's inner side, so that small pictures do not overtake it.
            fcntl.lockf(_file[0], fcntl.LOCK_EX, 1, area.first)
            try:
                while len(held) < wanted:
                    for place in range(area.first + 1, area.first + 1 + area.places):
                        if place not in held and len(held) < wanted and _try(place):
                            held.append(place)
                    if len(held) < wanted:
                        time.sleep(_WAIT)
            finally:
                fcntl.lockf(_file[0], fcntl.LOCK_UN, 1, area.first)
            yield
        finally:
            for place in held:
                fcntl.lockf(_file[0], fcntl.LOCK_UN, 1, place)


def _try(place: int) -> bool:
    with suppress(BlockingIOError, PermissionError):  # POSIX allows EAGAIN and EACCES
        fcntl.lockf(_file[0], fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        return True
    return False


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes() -> int:
    """How many processes work on a drop: one per core that this one may use, at most 4, which stay below 1 GB."""
    return min(4, cores())
