"""The process guard against processes that do all they can to stay."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

from local.state import REPOSITORY

# Leaves a grandchild in a session of its own that ignores SIGTERM and whose parent has ended, then stays itself.
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(600)
os.wait()
os.write(1, b"%d\\n" % os.getpid())
time.sleep(600)
"""


def start(code):
    return subprocess.Popen(
        [sys.executable, "-m", "local.process_guard", sys.executable, "-c", code],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


def gone(pids):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        alive = [p for p in pids if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE]
        if not alive:
            return True
        time.sleep(0.1)
    return False


@pytest.fixture
def stubborn():
    guard = start(STUBBORN)
    pids = [int(guard.stdout.readline()) for _ in range(2)]
    yield guard, pids
    guard.stdin.close()
    guard.wait(timeout=120)


def test_a_second_signal_ends_even_a_daemon_that_ignores_them_at_once(stubborn):
    guard, pids = stubborn
    began = time.monotonic()
    guard.send_signal(signal.SIGTERM)
    assert all(map(psutil.pid_exists, pids))
    while guard.poll() is None:  # of two that come before it looks, it sees one
        guard.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    assert guard.returncode == 0
    assert gone(pids)
    assert time.monotonic() - began < 6


@pytest.mark.slow
def test_the_death_of_the_starter_ends_everything(stubborn):
    guard, pids = stubborn
    guard.stdin.close()
    assert guard.wait(timeout=120) == 0
    assert gone(pids)


@pytest.mark.slow
def test_the_end_of_the_command_ends_what_it_left_behind_and_gives_its_status():
    guard = start(STUBBORN.replace("os.wait()", "os.wait(); os._exit(3)"))
    daemon = int(guard.stdout.readline())
    assert guard.wait(timeout=120) == 3
    assert gone([daemon])


def test_a_command_that_ends_by_itself_gives_status_1():
    guard = start("pass")
    assert guard.wait(timeout=120) == 1
