"""A pool of processes, each with some threads, that calls a function for many files.

The processes are plain programs that talk over pipes, without `multiprocessing`: that imports the caller's main module
into each process (Airflow's whole command line), cannot be forked safely beside threads, and leaves its processes
behind when the caller is killed. Here a process ends when its pipe does, which the kernel closes with the caller.
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
from typing import Any, NamedTuple, TypeVar, cast

J = TypeVar("J")
# Per process: one decodes, the others wait for disk and network. At 50 ms for each answer of the store, they send 480
# files a second; `memory_budget` limits what they hold in memory.
THREADS = 24
MAX_QUEUED = THREADS + 4  # jobs of a process
# One heap that returns the memory of large pictures; each core decodes one picture, so libraries need no threads.
_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "16000000", "OMP_NUM_THREADS": "1"}
_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}


class Result(NamedTuple):
    """The result of one job."""

    job: int  # its number, from 0
    value: Any  # what the function returned; None if the job crashes its process


class _Worker(NamedTuple):
    process: subprocess.Popen
    jobs: Connection
    results: Connection
    pending: dict[int, Any]  # jobs without a result, by number


def map_jobs(function: Callable[..., Any], fixed: tuple[Any, ...], jobs: Iterable[J], workers: int) -> Iterator[Result]:
    """Calls `function(*fixed, job)` for each job; at most MAX_QUEUED jobs per process are taken from `jobs` in advance.

    Args:
        function: of a module that the processes can import quickly.
        fixed: handed to each process once; must be picklable, as must jobs and results.
        jobs: taken one by one.
        workers: number of processes.

    Yields:
        A result for each job, in the order in which they end. A job that crashes its process, also when it is alone in
        it, gives None: its file breaks the decoder.

    Raises:
        Exception: the first that the function raised.
        ChildProcessError: a process was killed from outside, e.g. because the machine has no memory left.
    """
    numbered = enumerate(jobs)
    suspects: list[tuple[int, J]] = []  # were in a process that crashed, and are tried again alone
    suspected: set[int] = set()
    with tempfile.TemporaryFile() as slots:
        setup = pickle.dumps((function, fixed, slots.fileno()))
        pool: list[_Worker] = []
        try:
            while True:
                _assign_jobs(numbered, suspects, pool, workers, setup, slots.fileno())
                busy = {w.results: w for w in pool if w.pending}
                if not busy:
                    return
                for ready in wait(list(busy)):
                    worker = busy[cast(Connection, ready)]
                    try:
                        number, result, error = worker.results.recv()
                    except (EOFError, ConnectionResetError):
                        pool.remove(worker)
                        _check_crash(worker)
                        if suspected.issuperset(worker.pending):
                            yield Result(next(iter(worker.pending)), None)
                        else:
                            suspects += worker.pending.items()
                            suspected.update(worker.pending)
                        continue
                    del worker.pending[number]
                    if error is not None:
                        raise error
                    yield Result(number, result)
        finally:
            for worker in pool:
                worker.process.kill()
                _close(worker)


def _assign_jobs(
    numbered: Iterator[tuple[int, J]],
    suspects: list[tuple[int, J]],
    pool: list[_Worker],
    workers: int,
    setup: bytes,
    slots: int,
) -> None:
    """Gives jobs to the process with the fewest, and starts processes as long as there are jobs for them."""
    while True:
        # A suspect runs alone, so that a crash is known to be its own.
        if suspects and any(w.pending for w in pool):
            return
        idlest = min(pool, key=lambda w: len(w.pending), default=None)
        needs_worker = idlest is None or (bool(idlest.pending) and len(pool) < workers)
        if idlest and not needs_worker and len(idlest.pending) >= MAX_QUEUED:
            return
        is_suspect = bool(suspects)
        job = suspects.pop() if is_suspect else next(numbered, None)
        if job is None:
            return
        if idlest is None or needs_worker:
            pool.append(idlest := _start(setup, slots))
        idlest.pending[job[0]] = job[1]
        with suppress(BrokenPipeError):  # it died, which its pipe of results shows
            idlest.jobs.send(job)
        if is_suspect:
            return


def _start(setup: bytes, slots: int) -> _Worker:
    jobs_out, jobs_in = os.pipe()
    results_out, results_in = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "cxr_ml.ingest.worker_pool"],
        stdin=jobs_out,
        stdout=results_in,
        pass_fds=(slots,),
        env=_ENVIRONMENT | os.environ,
    )
    os.close(jobs_out)
    os.close(results_in)
    worker = _Worker(process, Connection(jobs_in, readable=False), Connection(results_out, writable=False), {})
    worker.jobs.send_bytes(setup)
    return worker


def _check_crash(worker: _Worker) -> None:
    """Closes a process that has ended; raises unless it crashed."""
    _close(worker)
    if -worker.process.returncode not in _CRASHES:
        raise ChildProcessError(
            f"A process that measured images was ended from outside (exit status {worker.process.returncode}), perhaps "
            "because the machine has no memory left. Run this step again: it goes on where it was."
        )


def _close(worker: _Worker) -> None:
    worker.process.wait()
    worker.jobs.close()
    worker.results.close()


def main() -> None:
    """Runs one process of the pool: works on jobs until the caller closes the pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the caller too, which ends its processes
    jobs, results = Connection(os.dup(0), writable=False), Connection(os.dup(1), readable=False)
    os.dup2(2, 1)  # the output of a library is not a result
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    setup = jobs.recv_bytes()

    import cv2

    from cxr_ml.ingest import memory_budget

    cv2.setNumThreads(1)
    function, fixed, slots = pickle.loads(setup)  # noqa: S301 - from the process that started this one
    memory_budget.join(slots)
    send_lock = Lock()

    def work(number: int, job: Any) -> None:  # noqa: ANN401
        try:
            result: tuple[int, Any, Exception | None] = (number, function(*fixed, job), None)
        except Exception as error:
            result = (number, None, error)
        with send_lock:
            results.send(result)

    with ThreadPoolExecutor(THREADS) as pool:
        while True:
            try:
                number, job = jobs.recv()
            except EOFError:
                os._exit(0)
            pool.submit(work, number, job)


if __name__ == "__main__":
    main()
