"""Runs one command and leaves nothing behind: ends with it, when asked to, or when its own starter is gone.

    python -m local.process_guard COMMAND…      standard input: a pipe that the starter keeps open

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

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
GRACE_SECONDS = 10.0  # between SIGTERM and SIGKILL
_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>


def adopt_orphans() -> None:
    """Makes orphaned descendants children of this process instead of init's, where the system can (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def list_descendants(known: set[psutil.Process]) -> list[psutil.Process]:
    """Returns the living processes that descend from this one; `known` keeps them, for systems without adoption."""
    for parent in [psutil.Process(), *(() if sys.platform == "linux" else known)]:
        try:
            known.update(parent.children(recursive=True))
        except psutil.Error:
            continue
    alive = []
    for process in known:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
        except psutil.Error:
            continue
    known.intersection_update(alive)
    return alive


def kill_descendants(known: set[psutil.Process], timeout: float = 20.0) -> list[psutil.Process]:
    """Kills every descendant, also those that turn up meanwhile. Returns the ones that outlived `timeout` seconds."""
    end = time.monotonic() + timeout
    while (alive := list_descendants(known)) and time.monotonic() < end:
        for process in alive:
            try:
                process.kill()
            except psutil.Error:
                continue
        psutil.wait_procs(alive, timeout=0.3)
    return alive


def run_guarded(command: list[str]) -> int:
    """Runs `command` until it ends, a signal comes, or standard input closes; then ends all descendants.

    Returns:
        0 when a signal or the end of standard input ended it, else the exit status of `command`, or 1 if that is 0.
    """
    requests = 0  # to end

    def on_signal(_signal: int, _frame: object) -> None:
        nonlocal requests
        requests += 1

    for number in SIGNALS:
        signal.signal(number, on_signal)
    adopt_orphans()
    known: set[psutil.Process] = set()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        while not requests and child.poll() is None:
            if select.select([0], [], [], 1.0)[0] and not os.read(0, 1):
                requests = 1
            list_descendants(known)
        status = child.poll()
        if status is None:
            child.terminate()
        end = time.monotonic() + GRACE_SECONDS
        while requests < 2 and time.monotonic() < end and list_descendants(known):
            child.poll()
            time.sleep(0.1)
    finally:
        survivors = kill_descendants(known)
        for number in SIGNALS:  # one that comes while Python shuts down would else change the exit status
            signal.signal(number, signal.SIG_IGN)
    for process in survivors:
        print(f"Process {process.pid} could not be ended.", file=sys.stderr)
    return 0 if status is None else status or 1


if __name__ == "__main__":
    sys.exit(run_guarded(sys.argv[1:]))
