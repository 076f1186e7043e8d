"""What tests have other processes do. Must be importable there, and light."""

import os
import signal
import time
from pathlib import Path

from cxr_ml.ingest import memory_budget


def double(fixed, job):
    return fixed + 2 * job


def fail(fixed, job):
    if job == 3:
        raise ValueError("job 3")


def signalled(fixed, job):
    """Ends the process with the signal `fixed` at job 3, every time."""
    if job == 3:
        os.kill(os.getpid(), fixed)
        time.sleep(10)
    return job


def aborted_once(fixed, job):
    """Ends the process at job 3 the first time; `fixed` is a file that remembers."""
    if job == 3 and not Path(fixed).exists():
        Path(fixed).touch()
        os.kill(os.getpid(), signal.SIGABRT)
    return job


def sleep(fixed, job):
    time.sleep(fixed)


def decode(fixed, pixels):
    """When room for `pixels` pixels was had: (begin, end), seconds of the machine's clock."""
    with memory_budget.reserve_for_pixels(pixels):
        begin = time.monotonic()
        time.sleep(fixed)
        return begin, time.monotonic()


def read(fixed, size):
    """The same with room for a file of `size` bytes."""
    with memory_budget.reserve_for_file(size):
        begin = time.monotonic()
        time.sleep(fixed)
        return begin, time.monotonic()


def send(fixed, size):
    """The same with room for `size` bytes on their way to the store."""
    with memory_budget.reserve_for_sending(size):
        begin = time.monotonic()
        time.sleep(fixed)
        return begin, time.monotonic()
