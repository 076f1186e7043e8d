from datetime import UTC, datetime, timedelta

from rich.console import Console

from local import logs, watch

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


def test_a_mapped_task_that_gets_its_name_while_it_runs_is_no_change():
    known = {}
    assert len(watch.changes([task("train", "running", 0)], known, NOW)) == 1
    assert watch.changes([task("train", "running", 0, "inception_v3", -2)], known, NOW) == []
    (line,) = watch.changes([task("train", "success", 0, "inception_v3", -9, -1)], known, NOW)
    assert "train [inception_v3]" in line


def test_a_task_name_with_markup_is_shown_as_it_is():
    console = Console(record=True, width=100, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(watch.table([task("train", "failed", 0, "[red]x[/]", -5, -1)], "running", NOW))
    shown = console.export_text()
    assert "[red]x[/]" in shown
    assert "4.0 s" in shown


def test_the_service_that_ended_first_is_named_with_its_log(tmp_path):
    (tmp_path / "honcho.log").write_text(
        "14:28:23 system          | scheduler.1 started (pid=7)\n"
        "14:28:24 system          | dag-processor.1 stopped (rc=1)\n"
        "14:28:25 system          | store.1 stopped (rc=-9)\n"
    )
    (tmp_path / "dag-processor.log").write_text("line\n" * 50 + "OperationalError: no such table\n")
    message = logs.dead_service(tmp_path)
    assert "The service dag-processor ended" in message
    assert message.splitlines()[-1].strip() == "OperationalError: no such table"
    assert len(message.splitlines()) < 30
