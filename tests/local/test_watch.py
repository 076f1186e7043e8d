from datetime import UTC, datetime, timedelta

import httpx
import pytest
from rich.console import Console

from cxr_ml.records import StepProgress
from local import airflow_api, logs, watch

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
    assert [line.split("  ", 1)[1].split() for line in watch.list_changes(waiting, known, NOW)] == [["find", "queued"]]
    assert watch.list_changes(waiting, known, NOW) == []
    later = [task("find", "success", started=-4, ended=-1), task("train", "scheduled")]
    (line,) = watch.list_changes(later, known, NOW)
    assert line.endswith("success (3.0 s)")


def test_mapped_tasks_are_told_apart_by_what_they_work_on():
    tasks = [task("train", "running", 0, "inception_v3", -2), task("train", "queued", 1)]
    lines = watch.list_changes(tasks, {}, NOW)
    assert "train [inception_v3]" in lines[0]
    assert "train [1]" in lines[1]


def test_a_mapped_task_that_gets_its_name_while_it_runs_is_no_change():
    known = {}
    assert len(watch.list_changes([task("train", "running", 0)], known, NOW)) == 1
    assert watch.list_changes([task("train", "running", 0, "inception_v3", -2)], known, NOW) == []
    (line,) = watch.list_changes([task("train", "success", 0, "inception_v3", -9, -1)], known, NOW)
    assert "train [inception_v3]" in line


def test_a_task_name_with_markup_is_shown_as_it_is():
    console = Console(record=True, width=100, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(watch.build_table([task("train", "failed", 0, "[red]x[/]", -5, -1)], "running", NOW))
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
    message = logs.describe_dead_service(tmp_path)
    assert "The service dag-processor ended" in message
    assert message.splitlines()[-1].strip() == "OperationalError: no such table"
    assert len(message.splitlines()) < 30


def told(**values):
    return StepProgress(at=NOW.isoformat(), unit="epochs", total=8, stage="fine_tune", **values)


def test_the_table_shows_how_far_a_running_task_has_come_and_of_no_other():
    tasks = [task("train", "running", 0, "light", -9), task("train", "success", 1, "other", -9, -1)]
    progress = {("train", 0): told(done=2, within=(3, 49), val_macro_f1=0.9), ("train", 1): told(done=8)}
    console = Console(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(watch.build_table(tasks, "running", NOW, progress))
    _, one, other, _ = (line for line in console.export_text().splitlines() if line.strip())
    assert "train [light]" in one and "epoch 3 of 8, step 3 of 49, last validation macro F1 0.900" in one
    assert "epoch" not in other


def test_without_a_terminal_progress_is_a_line_when_it_came_on_and_none_too_often():
    tasks = [task("train", "running", 0, "light", -9), task("evaluate", "queued")]
    said, lines = {}, []
    for second in range(40):
        progress = {("train", 0): told(done=min(second // 3, 8)), ("evaluate", -1): told(done=1)}
        lines += watch.list_progress(tasks, progress, said, NOW + timedelta(seconds=second))
    assert [line.split("epoch ")[1] for line in lines] == ["0 of 8", "3 of 8", "6 of 8", "8 of 8"]
    assert all("train [light]" in line for line in lines)


def client_that_answers(status, value):
    asked = []

    def answer(request):
        asked.append(str(request.url))
        if status is None:
            raise httpx.ConnectError("refused")
        return httpx.Response(status, json={"value": value})

    return httpx.Client(transport=httpx.MockTransport(answer), base_url="http://airflow"), asked


def test_the_progress_of_a_mapped_task_is_asked_for_by_its_number():
    client, asked = client_that_answers(200, told(done=2).model_dump(mode="json"))
    assert airflow_api.get_progress(client, "run/1", task("learn.train", "running", 3)) == told(done=2)
    path = "/api/v2/dags/cxr_retraining/dagRuns/run%2F1/taskInstances/learn.train/xcomEntries/progress?map_index=3"
    assert asked == ["http://airflow" + path]


@pytest.mark.parametrize(("status", "value"), [(404, None), (500, None), (None, None), (200, {"other": 1}), (200, "x")])
def test_progress_that_cannot_be_had_is_none_and_stops_nobody(status, value):
    assert (
        airflow_api.get_progress(client_that_answers(status, value)[0], "run", task("learn.train", "running")) is None
    )
