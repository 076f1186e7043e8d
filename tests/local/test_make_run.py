"""`make run` as a whole: one real Airflow, one real store, runs through the REST API, and Ctrl-C. Tests go in order."""

import mailbox
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from console_pages import NAVIGATION, console, logged_in, trigger
from making import LONG, MakeRun

from cxr_ml.records import Run
from cxr_ml.registry import promotion
from cxr_ml.reporting import deliveries
from cxr_ml.validation import rulings
from local import airflow_api

pytestmark = [pytest.mark.airflow, pytest.mark.slow]

STEPS = {
    "data.find_drops", "data.ingest", "data.left_out", "data.validate", "data.build_dataset", "learn.train",
    "learn.evaluate", "decide.gate", "decide.ask", "decide.approval", "promote", "announce",
    "report", "mail",
}  # fmt: skip
BETTER = {"train_anyway": True, "approval": True, "seed": 1, "head_epochs": 8, "head_learning_rate": 3e-3}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    run = MakeRun(tmp_path_factory.mktemp("make-run"))
    try:
        run.wait_for("Everything stays up", LONG)
        run.connect()
        yield run
    finally:
        while run.process.poll() is None:
            run.process.send_signal(signal.SIGTERM)
            time.sleep(1)
        run.process.wait()


@pytest.fixture(scope="module")
def browser(made):
    with logged_in(made.address, made.password) as (page, complaints):
        yield page
        assert complaints == []


def test_the_first_run_takes_the_drop_to_a_champion_and_reports_it(made):
    run_id = re.search(r"/runs/(manual__\S+)", made.output)[1]
    tasks = made.tasks(run_id)
    assert set(tasks) == STEPS
    assert {name for name, (state, _) in tasks.items() if state != "success"} == {"decide.approval"}
    assert tasks["decide.approval"][0] == "skipped"
    champion = promotion.champion(made.store)
    (entry,) = promotion.history(made.store)
    assert (champion.version, champion.model) == (1, entry.model)
    assert (entry.action, entry.by) == ("promoted", "admin")
    assert made.champions() == [{"model": champion.model, "version": 1}]

    assert "PROMOTED: " in made.output
    assert "1 × not_an_image" in made.output
    report = Path(re.search(r"^Report +(\S+)$", made.output, re.M)[1])
    assert report.is_relative_to(made.state)
    page = report.read_text()
    assert champion.model in page
    # Airflow told how long each step took, and the page leads back to the run there.
    assert re.search(r"learn\.train \[0\]</th><td class=\"n\">[\d.]+ ", page)
    assert f"{made.address}/dags/{airflow_api.DAG}/runs/" in page
    (subject,) = made.mails().values()
    assert subject.startswith("[cxr] PROMOTED light v1")


def test_no_weekly_run_was_made_behind_the_scenes(made):
    # It would have taken the drop before the run by hand.
    runs = airflow_api.get(made.client, f"dags/{airflow_api.DAG}/dagRuns")["dag_runs"]
    assert [run["run_type"] for run in runs] == ["manual"]
    dag = airflow_api.get(made.client, f"dags/{airflow_api.DAG}")
    assert dag["is_paused"] is False
    assert not airflow_api.is_weekly_run_overdue(made.client)
    assert dag["next_dagrun_run_after"].endswith("T03:00:00Z")


def test_nothing_new_ends_early_with_every_step_skipped_and_no_mail(made):
    before = made.mails()
    run_id = made.trigger()
    assert made.wait(run_id) == "success"
    tasks = made.tasks(run_id)
    assert set(tasks) == STEPS
    assert {state for state, _ in tasks.values()} == {"skipped"}
    assert made.mails() == before
    assert made.store.load(f"reports/{promotion.slug(run_id)}/run.json", Run).outcome == "nothing_new"


def test_the_form_refuses_a_bad_value_before_anything_runs(made):
    for form in ({"recall_floor_COVID19": 2}, {"architectures": ["resnet9000"]}, {"recipients": ["x@else.example"]}):
        with pytest.raises(httpx.HTTPStatusError) as caught:
            made.trigger(**form)
        assert caught.value.response.status_code == 400
        assert next(iter(form)) in caught.value.response.text
    assert not airflow_api.list_active_runs(made.client)


def test_a_drop_that_does_not_exist_fails_at_once_with_one_mail_that_says_why(made):
    before = made.mails()
    run_id = made.trigger(drop="../../etc")
    assert made.wait(run_id) == "failed"
    tasks = made.tasks(run_id)
    assert tasks.pop("data.find_drops") == ("failed", 1)
    assert tasks.pop("mail")[0] == "skipped"  # it has no report to tell of
    assert {state for state, _ in tasks.values()} == {"upstream_failed"}
    wait_until(lambda: made.mails() != before, LONG, "no mail")
    ((name, subject),) = made.mails().items() - before.items()
    assert subject.startswith("[cxr] FAILED at data.find_drops: The inbox")
    mail = mailbox.Maildir(made.state / "maildir", create=False)[name]
    text = " ".join(mail.get_payload()[0].get_payload(decode=True).decode().split())
    assert "no drop of that name. Received: '../../etc'. There: ['2026-01-05']" in text
    assert "Trying again without changing it cannot help" in text


def test_a_human_who_says_no_keeps_the_champion(made):
    champion = promotion.champion(made.store)
    before = made.mails()
    run_id = made.trigger(**BETTER)
    question = made.answer(run_id, "Reject")
    assert question["options"] == ["Approve", "Reject"]
    assert question["defaults"] == ["Reject"]
    assert re.search(r"\| macro F1 against champion \| [\d.]+ \|  \| \\> 0\.\d+ \| yes \|", question["body"])
    assert made.wait(run_id) == "success"
    tasks = made.tasks(run_id)
    for step in ("data.ingest", "data.left_out"):  # nothing new, trained anyway
        assert tasks.pop(step)[0] == "skipped"
    assert tasks.pop("announce")[0] == "skipped"  # the champion stays
    assert {state for state, _ in tasks.values()} == {"success"}
    entry = promotion.history(made.store)[-1]
    assert (entry.action, entry.by, entry.why) == ("refused", "admin", "Not approved by admin.")
    assert entry.decision.promote
    assert entry.decision.overrides == {
        "seed": "1", "head_epochs": "8", "head_learning_rate": "0.003", "approval": "True",
    }  # fmt: skip
    assert promotion.champion(made.store) == champion
    assert len(made.champions()) == 1
    ((_, subject),) = made.mails().items() - before.items()
    assert subject.startswith("[cxr] REFUSED light")
    # By now the callback of the DAG, too, would have mailed about the run that failed before.
    assert sum(subject.startswith("[cxr] FAILED") for subject in made.mails().values()) == 1


def test_each_page_of_the_console_is_there_in_airflows_own_frame_and_fits_a_phone(made, browser):
    frame = console(browser)
    for name in NAVIGATION:
        frame.get_by_role("link", name=name, exact=True).click()
        heading = {"Overview": "Chest X-ray retraining"}.get(name, name)
        frame.get_by_role("heading", name=heading, exact=True, level=1).wait_for()
    champion = promotion.champion(made.store)
    for path, shown in {
        "": champion.model,
        "models": champion.model,
        f"models/{champion.model}": "Gate",
        "data": "2026-01-05",
        "quarantine?reason=too_small": "small.png",
        "runs": "manual__",
        "rollback": "there is none to go back to",
    }.items():
        for width in (390, 1280):
            browser.set_viewport_size({"width": width, "height": 900})
            browser.goto(f"{made.address}/cxr/{path}")
            assert shown in browser.inner_text("main"), path
            assert browser.evaluate("document.documentElement.scrollWidth") <= width, path


def test_a_run_triggered_from_the_form_and_approved_in_the_console_makes_a_champion(made, browser):
    browser.goto(f"{made.address}/")
    training = {name: BETTER[name] for name in ("seed", "head_epochs", "head_learning_rate")}
    form = {"Run Parameters": {"train_anyway": True}, "Training": training, "Gate": {"approval": True}}
    run_id = trigger(browser, form)["dag_run_id"]
    made.question(run_id)
    browser.goto(f"{made.address}/")
    frame = console(browser)
    frame.get_by_role("link", name="Look at the decision and answer").click()
    frame.get_by_role("row", name=re.compile("macro F1 against champion.*passed")).wait_for()
    frame.get_by_label("Promote it").check()
    frame.get_by_label("Why, for the record").fill("two readers agree")
    frame.get_by_label("I am sure").check()
    frame.get_by_role("button", name="Answer").click()
    frame.get_by_text("You approved the promotion.").wait_for()
    assert made.wait(run_id) == "success"
    entry = promotion.history(made.store)[-1]
    by = "admin, approved by admin (two readers agree)"
    assert (entry.action, entry.by, entry.version) == ("promoted", by, 2)
    assert entry.decision.overrides == {
        "seed": "1", "head_epochs": "8", "head_learning_rate": "0.003", "approval": "True",
    }  # fmt: skip
    assert promotion.champion(made.store).model == entry.model
    assert made.champions()[1:] == [{"model": entry.model, "version": 2}]


def test_links_of_a_report_lead_to_the_console_and_to_airflow(made, browser):
    for link in ("What was refused", "This run in Airflow"):
        browser.goto(f"{made.address}/")
        frame = console(browser)
        frame.get_by_role("link", name="Runs", exact=True).click()
        frame.get_by_role("row", name="promoted v2").get_by_role("link").first.click()
        frame.frame_locator("#report").get_by_role("link", name=link).click()
        if link == "What was refused":
            frame.get_by_role("heading", name="Quarantine", level=1).wait_for()
    browser.wait_for_url("**/dags/cxr_retraining/runs/manual__*")


def test_an_image_released_in_the_console_is_ruled_on_with_name_and_reason(made, browser):
    browser.goto(f"{made.address}/")
    frame = console(browser)
    frame.get_by_role("link", name="Quarantine", exact=True).click()
    frame.locator("select[name=reason]").select_option("too_small")
    frame.get_by_text("small.png").wait_for()
    frame.get_by_role("checkbox", name="NORMAL").check()
    frame.get_by_label("Why, for the record").fill("small, but readable")
    frame.get_by_label("I am sure").check()
    frame.get_by_role("button", name="Record").click()
    frame.get_by_text("1 image was let in; the next dataset honours it.").wait_for()
    (ruling,) = rulings.read(made.store)
    assert (ruling.action, ruling.by, ruling.why, ruling.label) == ("release", "admin", "small, but readable", "NORMAL")
    assert ruling.file.endswith("NORMAL/small.png")


def test_a_rollback_in_the_console_is_told_to_history_team_and_other_dags(made, browser):
    before, (first, _) = made.mails(), made.champions()
    for form in ({}, {"why": " "}, {"to": first["model"]}):
        with pytest.raises(httpx.HTTPStatusError) as caught:
            made.roll_back(**form)
        assert caught.value.response.status_code == 400
    browser.goto(f"{made.address}/")
    frame = console(browser)
    frame.get_by_role("link", name="Rollback", exact=True).click()
    frame.get_by_role("radio", name=f"Back to {first['model']}").check()
    frame.get_by_label("Why, for the record").fill("Misses too much.")
    frame.get_by_label("I am sure").check()
    frame.get_by_role("button", name="Roll back").click()
    frame.get_by_text(f"The rollback to {first['model']} has begun.").wait_for()
    wait_until(lambda: len(made.champions()) == 3, LONG, "no rollback")
    entry = promotion.history(made.store)[-1]
    assert (entry.action, entry.model, entry.version) == ("rolled_back", first["model"], 3)
    assert (entry.by, entry.why) == ("admin", "Misses too much.")
    assert promotion.champion(made.store).model == first["model"]
    assert made.champions()[2:] == [{"model": first["model"], "version": 3}]
    wait_until(lambda: len(made.mails()) > len(before), LONG, "no mail")
    ((_, subject),) = made.mails().items() - before.items()
    assert subject.startswith("[cxr] ROLLED BACK to light") and subject.endswith("v3: Misses too much.")


def test_a_mail_that_no_server_takes_is_a_red_step_in_a_green_run_and_a_warning_in_the_store(made):
    second, config = made.champions()[1], made.config
    before, known = made.mails(), len(promotion.history(made.store))
    plain = config.read_text()
    config.write_text("mail.smtp_starttls = true\n" + plain)  # which this server does not offer
    try:
        assert made.roll_back(to=second["model"], why="Back again.") == "success"
    finally:
        config.write_text(plain)
    assert len(promotion.history(made.store)) == known + 1 and made.mails() == before
    run = promotion.history(made.store)[-1].run
    (missed,) = deliveries.find_unsent(made.store, run)
    assert missed.to == ("team@hospital.example",) and "STARTTLS" in missed.why
    (latest,) = airflow_api.get(made.client, "dags/cxr_rollback/dagRuns", order_by="-run_after", limit=1)["dag_runs"]
    steps = airflow_api.get(made.client, f"dags/cxr_rollback/dagRuns/{latest['dag_run_id']}/taskInstances")
    states = {step["task_id"]: (step["state"], step["try_number"]) for step in steps["task_instances"]}
    assert states == {"roll_back": ("success", 1), "tell": ("failed", 1)}


def checkpoints(made: MakeRun, known: set[str]) -> dict[str, int]:
    """Model -> the last epoch of its head that the store has, of the models that were not known before."""
    found = {}
    for key in made.store.keys("models/"):
        if (match := re.match(r"models/(.+)/checkpoints/head-(\d+)-", key)) and match[1] not in known:
            found[match[1]] = int(match[2])
    return found


def running_training(made: MakeRun, run_id: str, try_number: int) -> psutil.Process:
    """The process that trains, once it does so for the `try_number`-th time and has begun."""
    end = time.monotonic() + LONG
    while True:
        found = [
            t for t in airflow_api.list_task_instances(made.client, run_id, time.sleep) if t["task_id"] == "learn.train"
        ]
        assert time.monotonic() < end, made.tasks(run_id)
        if [(t["state"], t["try_number"]) for t in found] == [("running", try_number)]:
            title = f"airflow worker -- {found[0]['id']}"
            for process in psutil.process_iter(["cmdline"]):
                if " ".join(process.info["cmdline"] or ()).strip() == title:
                    return process
        time.sleep(0.5)


def wait_until(true: Callable[[], bool], seconds: float, what: str) -> float:
    """Seconds until it is true."""
    start = time.monotonic()
    while not true():
        assert time.monotonic() - start < seconds, what
        time.sleep(0.2)
    return time.monotonic() - start


def test_a_training_that_is_killed_is_retried_and_goes_on_and_one_that_is_cancelled_stops(made):
    known = {key.split("/")[1] for key in made.store.keys("models/")}
    run_id = made.trigger(train_anyway=True, seed=2, head_epochs=1000, patience=1000)
    first = running_training(made, run_id, 1)
    wait_until(lambda: max(checkpoints(made, known).values(), default=0) >= 3, LONG, "no third epoch")
    first.kill()
    second = running_training(made, run_id, 2)
    assert second.pid != first.pid
    ((model, died_after),) = checkpoints(made, known).items()
    wait_until(lambda: checkpoints(made, known)[model] > died_after, LONG, "it does not go on")
    (task,) = [
        t for t in airflow_api.list_task_instances(made.client, run_id, time.sleep) if t["task_id"] == "learn.train"
    ]
    path = f"dags/{airflow_api.DAG}/dagRuns/{run_id}/taskInstances/learn.train/logs/{task['try_number']}"
    log = str(airflow_api.get(made.client, path, map_index=task["map_index"])["content"])
    assert int(re.search(r"head: (\d+) epochs were stored before; going on from there", log)[1]) >= 3
    assert "head: epoch 1 of 1000" not in log

    airflow_api.fail_run(made.client, run_id, "cancelled")
    seconds = wait_until(lambda: not second.is_running(), 30, "the cancelled training still runs")
    print(f"cancelled: the process was gone, and with it its memory, after {seconds:.1f} s")
    assert made.tasks(run_id)["learn.train"][0] in ("failed", "skipped")


def left_over(state: Path) -> list[str]:
    """Processes that have the state folder on their command line or in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            texts = [*process.cmdline(), *process.environ().values()]
        except psutil.Error:
            continue
        if process.pid != os.getpid() and any(str(state) in text for text in texts):
            found.append(f"{process.pid} {process.cmdline()}")
    return found


@pytest.fixture(scope="module")
def interrupted(made):
    """A run that trains when `make run` is interrupted."""
    run_id = made.trigger(train_anyway=True, seed=3, head_epochs=1000, patience=1000)
    running_training(made, run_id, 1)
    return run_id


def test_ctrl_c_twice_ends_everything_at_once_with_the_status_of_the_run(made, interrupted):
    assert left_over(made.state)
    made.process.send_signal(signal.SIGINT)
    made.wait_for("Ending all services", 30)
    made.process.send_signal(signal.SIGINT)
    assert made.process.wait(timeout=30) == 0
    assert left_over(made.state) == []
    for name, port in made.ports.items():
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0, name


def test_a_run_that_was_interrupted_ends_as_failed_at_the_next_start(made, interrupted):
    made.start()
    made.wait_for("/runs/manual__", LONG)  # of the run that comes after it
    assert f"The run {interrupted} of " in made.output
    assert "was interrupted; it was ended as failed." in made.output
    assert interrupted not in made.output.split("finished epoch.")[1]
    made.connect()
    assert airflow_api.get_run_state(made.client, interrupted, time.sleep) == "failed"
    states = {name: state for name, (state, _) in made.tasks(interrupted).items()}
    assert states["data.build_dataset"] == "success"
    assert states["learn.train"] in ("failed", "skipped")
    assert {states[name] for name in ("learn.evaluate", "promote", "report", "mail")} == {"skipped"}
