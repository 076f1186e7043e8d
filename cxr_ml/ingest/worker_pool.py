"""Calls a function for many files, in processes of its own, each with some threads.

Started as plain programs that talk over pipes, not through `multiprocessing`: that imports the caller's main module
into each process (Airflow's whole command line), is not safe to fork beside threads, and leaves its processes behind
when the caller is killed. Here a process ends when its pipe does, which the kernel closes with the caller.
"""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from threading import Lock
from typing import Any, NamedTuple, TypeVar

J = TypeVar("J")
# Per process: one decodes, the others wait for disk and network. At 50 ms for each answer of the store, so many send
# 480 files a second; what they hold in memory is bounded by `memory_budget`.
THREADS = 24
_AHEAD = THREADS + 4  # jobs that a process has at most
# One heap that gives back what large pictures took; each core decodes one picture, so libraries need no threads.
_FRUGAL = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "16000000", "OMP_NUM_THREADS": "1"}
_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}


class _Worker(NamedTuple):
    process: subprocess.Popen
    jobs: Connection
    answers: Connection
    has: dict[int, Any]  # jobs without an answer, by number


def run(
    function: Callable[[Any, J], Any], fixed: Any, jobs: Iterable[J], processes: int  # noqa: ANN401
) -> Iterator[tuple[int, Any]]:  # fmt: skip
    """Calls `function(fixed, job)` for each job; at most a few jobs per process are taken from `jobs` in advance.

    Args:
        function: of a module that the processes can import, without much that they do not need.
        fixed: handed to each process once; must be picklable, as must be jobs and results.
        jobs: taken one by one.
        processes: how many.

    Yields:
        (number of the job from 0, what the function returned), in the order in which they end. None stands for the
        result of a job that crashes its process, also when it is alone in it: its file breaks the decoder.

    Raises:
        Exception: what the function raised, the first of it.
        ChildProcessError: a process was killed from outside, e.g. because the machine has no memory left.
    """
    numbered = enumerate(jobs)
    suspects: list[tuple[int, J]] = []  # were in a process that crashed, and are tried again, alone
    suspected: set[int] = set()
    with tempfile.TemporaryFile() as room:
        setup = pickle.dumps((function, fixed, room.fileno(), _passport()))
        workers: list[_Worker] = []
        try:
            while True:
                _hand_out(numbered, suspects, workers, processes, setup, room.fileno())
                busy = {w.answers: w for w in workers if w.has}
                if not busy:
                    return
                for ready in wait(list(busy)):
                    worker = busy[ready]
                    try:
                        number, result, error = worker.answers.recv()
                    except (EOFError, ConnectionResetError):
                        workers.remove(worker)
                        _bury(worker)
                        if suspected.issuperset(worker.has):
                            yield next(iter(worker.has)), None
                        else:
                            suspects += worker.has.items()
                            suspected.update(worker.has)
                        continue
                    del worker.has[number]
                    if error is not None:
                        raise error
                    yield number, result
        finally:
            for worker in workers:
                worker.process.kill()
                _close(worker)


def _hand_out(
    numbered: Iterator[tuple[int, J]],
    suspects: list[tuple[int, J]],
    workers: list[_Worker],
    processes: int,
    setup: bytes,
    room: int,
) -> None:
    """Gives work to who has the least, and starts processes as long as there is work for them."""
    while True:
        # A suspect is tried with nothing beside it, so that it is known who crashed.
        if suspects and any(w.has for w in workers):
            return
        idlest = min(workers, key=lambda w: len(w.has), default=None)
        more = idlest is None or (bool(idlest.has) and len(workers) < processes)
        if not more and len(idlest.has) >= _AHEAD:
            return
        alone = bool(suspects)
        job = suspects.pop() if alone else next(numbered, None)
        if job is None:
            return
        if more:
            workers.append(idlest := _start(setup, room))
        idlest.has[job[0]] = job[1]
        with suppress(BrokenPipeError):  # it died; its pipe of answers tells
            idlest.jobs.send(job)
        if alone:
            return


def _start(setup: bytes, room: int) -> _Worker:
    jobs_out, jobs_in = os.pipe()
    answers_out, answers_in = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "cxr_ml.ingest.worker_pool"],
        stdin=jobs_out,
        stdout=answers_in,
        pass_fds=(room,),
        env=_FRUGAL | os.environ,
    )
    os.close(jobs_out)
    os.close(answers_in)
    worker = _Worker(process, Connection(jobs_in, readable=False), Connection(answers_out, writable=False), {})
    worker.jobs.send_bytes(setup)
    return worker


def _bury(worker: _Worker) -> None:
    """Lets a process go that ended by itself, if it crashed."""
    _close(worker)
    if -worker.process.returncode not in _CRASHES:
        raise ChildProcessError(
            f"A process that measured images was ended from outside (exit status {worker.process.returncode}), perhaps "
            "because the machine has no memory left. Run this step again: it goes on where it was."
        )


def _close(worker: _Worker) -> None:
    worker.process.wait()
    worker.jobs.close()
    worker.answers.close()


def _passport() -> dict[str, Any] | None:
    from cxr_ml import store

    return store.passport()


def main() -> None:
    """One process: answers each job until its pipe is closed, by the caller or by the caller's death."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the caller too, which ends its processes
    jobs, answers = Connection(os.dup(0), writable=False), Connection(os.dup(1), readable=False)
    os.dup2(2, 1)  # what a library prints is no answer
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    setup = jobs.recv_bytes()

    import cv2

    from cxr_ml import store
    from cxr_ml.ingest import memory_budget

    cv2.setNumThreads(1)
    function, fixed, places, passport = pickle.loads(setup)
    memory_budget.enter(places)
    if passport:
        store.show(passport)
    one_at_a_time = Lock()

    def work(number: int, job: Any) -> None:  # noqa: ANN401
        try:
            answer = (number, function(fixed, job), None)
        except Exception as error:
            answer = (number, None, error)
        with one_at_a_time:
            answers.send(answer)

    with ThreadPoolExecutor(THREADS) as pool:
        while True:
            try:
                number, job = jobs.recv()
            except EOFError:
                os._exit(0)
            pool.submit(work, number, job)


if __name__ == "__main__":
    main()
