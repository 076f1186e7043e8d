"""One `make run` as a process: its state folder, the processes it starts, and how all of them end."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from cxr_ml.errors import Refused
from local import process_guard
from local.logs import describe_dead_service, tail


class Stopped(BaseException):
    """A signal, or the end of the starter. Not an Exception: nothing on the way may swallow it."""


class Failed(Exception):
    """A service or a helper failed; the message says which and shows the end of its log."""


class Session:
    """One `make run`: its state folder, the processes it started, and the console."""

    def __init__(self, folder: Path, console: Console) -> None:
        self.folder = folder
        self.logs = folder / "logs"
        self.console = console
        self.parent = os.getppid()
        self.began = time.monotonic()
        self.guard: subprocess.Popen[bytes] | None = None

    def pause(self, seconds: float) -> None:
        """Sleeps; raises Stopped when the starter (make) is gone, Failed when a service is."""
        if os.getppid() != self.parent:
            raise Stopped(143)
        if self.guard and self.guard.poll() is not None:
            raise Failed(describe_dead_service(self.logs))
        time.sleep(seconds)

    def note(self, text: str) -> None:
        """Prints one line with the seconds since the start."""
        self.console.print(f"[dim]{time.monotonic() - self.began:6.1f} s[/]  {text}", highlight=False, soft_wrap=True)


@contextmanager
def ending_everything(session: Session) -> Iterator[None]:
    """On the way out, however that happens, ends all processes of the session; a second signal ends them at once."""
    ending = False

    def on_signal(number: int, _frame: object) -> None:
        if not ending:
            raise Stopped(128 + number)
        if session.guard and session.guard.poll() is None:
            session.guard.terminate()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, on_signal)
    process_guard.adopt_orphans()
    try:
        yield
    finally:
        ending = True
        if session.guard:
            session.note("Ending all services")
            if session.guard.stdin:
                session.guard.stdin.close()
            session.guard.wait()
        # What is left was started beside the guard, or by a guard that somebody killed.
        process_guard.kill_descendants(set())


def start_helper(session: Session, name: str, command: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
    """Starts a command that ends by itself, with its output in logs/<name>.log."""
    with open(session.logs / f"{name}.log", "wb") as log:
        return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def wait_for_helper(session: Session, name: str, process: subprocess.Popen[bytes]) -> None:
    """Waits until a helper has ended.

    Raises:
        Refused: its status is 2; with its own words.
        Failed: it failed otherwise.
    """
    while process.poll() is None:
        session.pause(0.1)
    log = session.logs / f"{name}.log"
    if process.returncode == 2:
        raise Refused(log.read_text(errors="replace").strip())
    if process.returncode:
        raise Failed(f"{name} failed. {log} ends with:\n{tail(log)}")
