"""Processes that work on many files: all answers, no more at once than there is room for, and nobody left behind."""

import itertools
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import worker_jobs

from cxr_ml.ingest import worker_pool


@pytest.fixture(autouse=True)
def jobs_can_be_imported(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(worker_jobs.__file__).parent))


def children():
    return [p for p in psutil.Process().children(recursive=True) if "cxr_ml.ingest.worker_pool" in p.cmdline()]


def test_each_job_is_answered_once_and_no_process_is_left():
    found = list(worker_pool.map_jobs(worker_jobs.double, (100,), range(50), 2))
    assert sorted(found) == [(n, 100 + 2 * n) for n in range(50)]
    assert children() == []


def test_without_jobs_no_process_is_started(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    assert list(worker_pool.map_jobs(worker_jobs.double, (0,), [], 2)) == []


def test_jobs_are_taken_as_they_are_needed_and_who_stops_listening_leaves_no_process():
    taken = itertools.count()
    answers = worker_pool.map_jobs(worker_jobs.double, (0,), taken, 2)
    assert len(list(itertools.islice(answers, 10))) == 10
    answers.close()
    assert next(taken) <= 10 + 2 * worker_pool.MAX_QUEUED
    assert children() == []


def test_what_a_job_raises_is_raised_and_no_process_is_left():
    with pytest.raises(ValueError, match="job 3"):
        list(worker_pool.map_jobs(worker_jobs.fail, (None,), range(20), 2))
    assert children() == []


def test_a_job_that_crashes_its_process_costs_only_its_own_answer():
    found = dict(worker_pool.map_jobs(worker_jobs.signalled, (signal.SIGSEGV,), range(12), 2))
    assert found == {n: None if n == 3 else n for n in range(12)}


def test_a_crash_that_does_not_come_again_costs_no_answer(tmp_path):
    found = dict(worker_pool.map_jobs(worker_jobs.aborted_once, (str(tmp_path / "crashed"),), range(12), 2))
    assert found == {n: n for n in range(12)}


def test_a_process_that_is_killed_from_outside_is_no_fault_of_its_file():
    with pytest.raises(ChildProcessError, match=r"exit status -9.*Run this step again"):
        list(worker_pool.map_jobs(worker_jobs.signalled, (signal.SIGKILL,), range(12), 2))
    assert children() == []


def overlaps(spans):
    ordered = sorted(spans)
    return sum(later[0] < earlier[1] for earlier, later in itertools.pairwise(ordered))


def busiest(spans):
    return max(sum(begin <= other[0] < end for begin, end in spans) for other in spans)


def test_of_very_large_pictures_one_at_a_time_is_decoded_over_all_processes():
    spans = [span for _, span in worker_pool.map_jobs(worker_jobs.decode, (0.1,), [50_000_000] * 6, 2)]
    assert overlaps(spans) == 0


def test_other_pictures_are_decoded_one_in_each_process():
    spans = [span for _, span in worker_pool.map_jobs(worker_jobs.decode, (0.1,), [5_000_000] * 30, 2)]
    assert overlaps(spans) > 0
    assert busiest(spans) == 2


def test_a_very_large_picture_is_not_overtaken_for_ever_by_small_ones():
    sizes = [1_000_000] * 8 + [50_000_000] + [1_000_000] * 40
    order = [number for number, _ in worker_pool.map_jobs(worker_jobs.decode, (0.03,), sizes, 2)]
    assert order.index(8) < 30


def test_of_very_large_files_one_at_a_time_is_read():
    spans = [span for _, span in worker_pool.map_jobs(worker_jobs.read, (0.1,), [64_000_000] * 6, 2)]
    assert overlaps(spans) == 0


@pytest.mark.parametrize("job", [worker_jobs.read, worker_jobs.send])
def test_small_files_do_not_wait_for_each_other(job):
    spans = [span for _, span in worker_pool.map_jobs(job, (0.3,), [50_000] * worker_pool.THREADS, 1)]
    assert busiest(spans) == worker_pool.THREADS


@pytest.mark.parametrize("job", [worker_jobs.read, worker_jobs.send])
def test_of_larger_ones_a_process_holds_few_at_once(job):
    spans = [span for _, span in worker_pool.map_jobs(job, (0.1,), [4_000_000] * worker_pool.THREADS, 1)]
    assert busiest(spans) == 4


def test_what_is_larger_than_all_that_may_be_underway_is_sent_alone():
    sizes = [4_000_000, 60_000_000, 4_000_000, 60_000_000] * 3
    spans = dict(worker_pool.map_jobs(worker_jobs.send, (0.05,), sizes, 1))
    for number, size in enumerate(sizes):
        if size == 60_000_000:
            assert sum(b < spans[number][1] and spans[number][0] < e for b, e in spans.values()) == 1


@pytest.mark.slow
def test_when_the_caller_is_killed_its_processes_end():
    script = (
        "import worker_jobs\nfrom cxr_ml.ingest import worker_pool\n"
        "list(worker_pool.map_jobs(worker_jobs.sleep, (60,), range(50), 2))"
    )
    caller = subprocess.Popen([sys.executable, "-c", script])
    try:
        end = time.monotonic() + 120
        # A process that has threads is at work.
        while len(found := [p for p in psutil.Process(caller.pid).children() if p.num_threads() > 2]) < 2:
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        caller.kill()
        caller.wait()
    _, alive = psutil.wait_procs(found, timeout=50)
    assert alive == []
