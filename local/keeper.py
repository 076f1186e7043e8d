"""Runs one command and leaves nothing behind: ends with it, when asked to, or when its own starter is gone.

    python -m local.keeper COMMAND…      standard input: a pipe that the starter keeps open

SIGTERM ends everything in good order, a second one at once.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time

import psutil

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PATIENCE = 10.0  # seconds between SIGTERM and SIGKILL
_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>


def adopt_orphans() -> None:
    """Makes orphaned descendants children of this process instead of init's, where the system can (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(seen: set[psutil.Process]) -> list[psutil.Process]:
    """The living processes that descend from this one; remembers them in `seen` for where orphans are not adopted."""
    for parent in [psutil.Process(), *(() if sys.platform == "linux" else seen)]:
        try:
            seen.update(parent.children(recursive=True))
        except psutil.Error:
            continue
    alive = []
    for process in seen:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
        except psutil.Error:
            continue
    seen.intersection_update(alive)
    return alive


def sweep(seen: set[psutil.Process], timeout: float = 20.0) -> list[psutil.Process]:
    """Kills every descendant, also those that turn up meanwhile. Returns the ones that outlived `timeout` seconds."""
    end = time.monotonic() + timeout
    while (alive := descendants(seen)) and time.monotonic() < end:
        for process in alive:
            try:
                process.kill()
            except psutil.Error:
                continue
        psutil.wait_procs(alive, timeout=0.3)
    return alive


def keep(command: list[str]) -> int:
    """Runs `command` until it ends, this process is told to, or standard input closes; then ends all descendants.

    Returns:
        0 when it was told to end, else the exit status of `command`, or 1 if that is 0.
    """
    asked = 0

    def ask(_signal: int, _frame: object) -> None:
        nonlocal asked
        asked += 1

    for number in _SIGNALS:
        signal.signal(number, ask)
    adopt_orphans()
    seen: set[psutil.Process] = set()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        while not asked and child.poll() is None:
            if select.select([0], [], [], 1.0)[0] and not os.read(0, 1):
                asked = 1
            descendants(seen)
        status = child.poll()
        if status is None:
            child.terminate()
        end = time.monotonic() + PATIENCE
        while asked < 2 and time.monotonic() < end and descendants(seen):
            child.poll()
            time.sleep(0.1)
    finally:
        left = sweep(seen)
        for number in _SIGNALS:  # one that comes while Python shuts down would else change the exit status
            signal.signal(number, signal.SIG_IGN)
    for process in left:
        print(f"Process {process.pid} could not be ended.", file=sys.stderr)
    return 0 if status is None else status or 1


if __name__ == "__main__":
    sys.exit(keep(sys.argv[1:]))
