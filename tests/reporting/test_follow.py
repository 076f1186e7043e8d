"""A step that goes on: what it tells in words, who is told when, and that its log is never silent for long."""

import threading
import time

import pytest

from cxr_ml.progress import begun, counted
from cxr_ml.records import StepProgress
from cxr_ml.reporting import follow, formatting

AT = "2026-01-05T03:00:00+00:00"


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"unit": "files", "done": 1000, "total": 1318}, "1,000 of 1,318 files"),
        (
            {"unit": "images", "done": 9, "total": 10, "stage": "inputs", "seconds_left": 12.2},
            "decoding, 9 of 10 images, about 12 s left",
        ),
        ({"unit": "images", "done": 10, "total": 10, "seconds_left": 0.0}, "10 of 10 images"),
        ({"unit": "pictures compared", "done": 7, "stage": "copies"}, "copies, 7 pictures compared"),
        ({"stage": "drift"}, "drift"),
        (
            {"unit": "epochs", "done": 0, "total": 8, "stage": "head", "within": (1, 49)},
            "training the head, epoch 1 of 8, step 1 of 49",
        ),
        (
            {"unit": "epochs", "done": 2, "total": 8, "stage": "fine_tune", "within": (3, 49), "val_macro_f1": 0.9123,
             "seconds_left": 70.0},
            "fine-tuning, epoch 3 of 8, step 3 of 49, last validation macro F1 0.912, at most 1 min 10 s left",
        ),
        (
            {"unit": "epochs", "done": 3, "total": 8, "stage": "fine_tune", "val_macro_f1": 0.9, "seconds_left": 70.0},
            "fine-tuning, epoch 3 of 8, validation macro F1 0.900, at most 1 min 10 s left",
        ),
    ],
)  # fmt: skip
def test_progress_is_told_in_a_sentence(told, sentence):
    assert formatting.progress(StepProgress(at=AT, **told)) == sentence


def test_who_counts_tells_how_long_the_rest_takes_at_the_pace_so_far(monkeypatch):
    moments = iter((100.0, 104.0, 110.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(moments))
    seen = []
    tell = counted(seen.append, "files")
    tell(500, 1000)  # were there before
    tell(600, 1000)
    tell(1000, 1000)
    assert [(p.done, p.total) for p in seen] == [(500, 1000), (600, 1000), (1000, 1000)]
    assert [p.seconds_left for p in seen] == [None, 16.0, 0.0]


def wait_until(true):
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_step_may_tell_often_and_who_looks_on_is_told_seldom_but_of_the_last(monkeypatch):
    monkeypatch.setattr(follow, "_LOOK_INTERVAL", 0.01)
    shown = []
    with follow.followed(shown.append, lambda line: None) as on_progress:
        tell = counted(on_progress, "files")
        tell(1, 500)
        wait_until(lambda: shown)
        for n in range(2, 501):
            tell(n, 500)
    assert [p.done for p in shown] == [1, 500]
    assert follow.SHOW_INTERVAL >= 2


def test_a_new_part_of_a_step_is_a_line_and_more_of_the_same_is_none_for_a_while(monkeypatch):
    monkeypatch.setattr(follow, "_LOOK_INTERVAL", 0.01)
    lines, shown = [], []
    with follow.followed(shown.append, lines.append) as on_progress:
        for stage in ("drift", "shortcut risk"):
            on_progress(begun(stage))
            wait_until(lambda stage=stage: stage in lines)
            on_progress(begun(stage))
    assert lines == ["drift", "shortcut risk"]


def test_a_step_that_tells_nothing_still_has_a_line_now_and_then(monkeypatch):
    monkeypatch.setattr(follow, "_LOOK_INTERVAL", 0.01)
    monkeypatch.setattr(follow, "MAX_SILENCE", 0.2)
    lines = []
    with follow.followed(lambda told: None, lines.append) as on_progress:
        wait_until(lambda: len(lines) == 2)
        on_progress(begun("drift"))
        wait_until(lambda: len(lines) == 4)
    assert [line.split(" for ")[0] for line in lines[:2]] == ["at work", "at work"]
    assert lines[2] == "drift" and lines[3].startswith("drift (since 0.")


def test_a_listener_that_hangs_holds_up_neither_the_step_nor_its_end_for_long(monkeypatch):
    monkeypatch.setattr(follow, "_MAX_WAIT", 0.1)
    answer, asked = threading.Event(), threading.Event()

    def hang(told):
        asked.set()
        answer.wait(120)

    began = time.monotonic()
    with follow.followed(hang, lambda line: None) as on_progress:
        on_progress(begun("drift"))
        assert asked.wait(60)
        on_progress(begun("shortcut risk"))
    assert time.monotonic() - began < 5
    answer.set()


def test_the_error_of_a_step_stays_what_it_is_and_ends_the_thread():
    with pytest.raises(ValueError, match="broken"), follow.followed(lambda told: None):
        raise ValueError("broken")
    assert "cxr-progress" not in {thread.name for thread in threading.enumerate()}
