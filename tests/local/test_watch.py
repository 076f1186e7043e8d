from datetime import UTC, datetime, timedelta

from rich.console import Console

from local import run, watch

NOW = datetime(2026, 1, 5, 3, 0, tzinfo=UTC)


def task(name, state, index=-1, rendered=None, started=None, ended=None):
    def text(seconds):
        return None if seconds is None else (NOW + timedelta(seconds=seconds)).isoformat()

    return {
        "task_id": name,
        "map_index": index,
        "rendered_map_index": rendered,
        "state": state,
        "start_date": text(started),
        "end_date": text(ended),
    }


def test_each_change_is_one_line_and_nothing_else_is():
    known = {}
    waiting = [task("find", "queued"), task("train", None)]
    assert [line.split("  ", 1)[1].split() for line in watch.changes(waiting, known, NOW)] == [["find", "queued"]]
    assert watch.changes(waiting, known, NOW) == []
    later = [task("find", "success", started=-4, ended=-1), task("train", "scheduled")]
    (line,) = watch.changes(later, known, NOW)
    assert line.endswith("success (3.0 s)")


def test_mapped_tasks_are_told_apart_by_what_they_work_on():
    tasks = [task("train", "running", 0, "inception_v3", -2), task("train", "queued", 1)]
    lines = watch.changes(tasks, {}, NOW)
    assert "train [inception_v3]" in lines[0]
    assert "train [1]" in lines[1]


def test_a_task_name_with_markup_is_shown_as_it_is():
    console = Console(record=True, width=100, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(watch.table([task("train", "failed", 0, "[red]x[/]", -5, -1)], "running", NOW))
    shown = console.export_text()
    assert "[red]x[/]" in shown
    assert "4.0 s" in shown


def test_the_service_that_ended_first_is_named_with_its_log(tmp_path):
    (tmp_path / "honcho.log").write_text(
        "10:00:00 system    | scheduler started (pid=7)\n"
        "10:00:01 system    | scheduler stopped (rc=1)\n"
        "10:00:02 system    | store stopped (rc=-15)\n"
    )
    (tmp_path / "scheduler.log").write_text("line\n" * 50 + "OperationalError: no such table\n")
    message = run.dead_service(tmp_path)
    assert "The service scheduler ended" in message
    assert message.splitlines()[-1].strip() == "OperationalError: no such table"
    assert len(message.splitlines()) < 30
