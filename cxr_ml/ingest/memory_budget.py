"""Memory budget of all processes that work on a drop: slots that are taken while a file is read or decoded.

The slots are bytes of one file that all processes have open, taken by POSIX locks, which the kernel releases when a
process dies, however it dies. <https://man7.org/linux/man-pages/man2/fcntl.2.html>, advisory record locking.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from threading import Condition, Lock
from typing import NamedTuple

SLOT_BYTES = 32_000_000  # memory that one slot stands for
BYTES_PER_PIXEL = 9  # while a picture is decoded and measured: 4 Pillow's, 3 RGB, 1 grey, and a rest
BYTES_PER_BYTE = 2  # of a file: as read, and as stored
SMALL_FILE = 4_000_000  # bytes; a smaller file needs no slot, only a share of its process's budget
LARGE_PIXELS = 4_000_000  # larger pictures take so much memory that threads decode them one at a time
_POLL_SECONDS = 0.002  # between two attempts to take a slot


class _Area(NamedTuple):
    """The slots `queue + 1` and so on of the file; byte `queue` is locked by the one process that waits for slots."""

    queue: int
    slots: int
    thread_lock: Lock  # POSIX locks exclude processes, this one threads


class _ProcessBudget:
    """Bytes that the threads of this process may hold together; a single larger request is granted alone."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._held, self._released = max_bytes, 0, Condition()

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        with self._released:
            self._released.wait_for(lambda: not self._held or self._held + size <= self._max_bytes)
            self._held += size
        try:
            yield
        finally:
            with self._released:
                self._held -= size
                self._released.notify_all()


_SMALL_FILES = _ProcessBudget(4 * SMALL_FILE)  # as read
_SENDING = _ProcessBudget(4 * SMALL_FILE)  # bytes to store, of files small or large
_FILES = _Area(0, 4, Lock())  # enough for one file of 64 MB, as read and as stored
_PIXELS = _Area(8, 15, Lock())  # enough for one picture of 50 megapixels
_slot_file: list[int] = []  # descriptor


def join(descriptor: int) -> None:
    """Shares the budget of all processes that have the same file open. Without it, a process is not limited."""
    _slot_file[:] = [descriptor]


@contextmanager
def reserve_for_file(size: int) -> Iterator[None]:
    """Waits for memory to read a file of `size` bytes and to hold its stored form, and reserves it."""
    with _SMALL_FILES.reserve(size) if size <= SMALL_FILE else _take_slots(_FILES, size * BYTES_PER_BYTE):
        yield


def reserve_for_sending(size: int) -> AbstractContextManager[None]:
    """Waits for memory to hold `size` bytes until the store has them, and reserves it."""
    return _SENDING.reserve(size)


@contextmanager
def reserve_for_pixels(pixels: int) -> Iterator[None]:
    """Waits for memory to decode and measure a picture, and reserves it.

    Each process decodes one picture at a time. A picture that needs more than all slots is decoded alone.
    """
    with _take_slots(_PIXELS, pixels * BYTES_PER_PIXEL):
        yield


@contextmanager
def _take_slots(area: _Area, size: int) -> Iterator[None]:
    with area.thread_lock:
        if not _slot_file:
            yield
            return
        needed = min(max(1, -(-size // SLOT_BYTES)), area.slots)
        held: list[int] = []
        try:
            # Waiters for many slots hold the queue lock, so that small pictures cannot starve them.
            fcntl.lockf(_slot_file[0], fcntl.LOCK_EX, 1, area.queue)
            try:
                while len(held) < needed:
                    for slot in range(area.queue + 1, area.queue + 1 + area.slots):
                        if slot not in held and len(held) < needed and _try_lock(slot):
                            held.append(slot)
                    if len(held) < needed:
                        time.sleep(_POLL_SECONDS)
            finally:
                fcntl.lockf(_slot_file[0], fcntl.LOCK_UN, 1, area.queue)
            yield
        finally:
            for slot in held:
                fcntl.lockf(_slot_file[0], fcntl.LOCK_UN, 1, slot)


def _try_lock(slot: int) -> bool:
    with suppress(BlockingIOError, PermissionError):  # POSIX allows EAGAIN and EACCES
        fcntl.lockf(_slot_file[0], fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
        return True
    return False


def count_cores() -> int:
    """Returns the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_workers() -> int:
    """Returns how many processes work on a drop: one per core, at most 4, which stay below 1 GB."""
    return min(4, count_cores())
