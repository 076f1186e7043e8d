"""The page of a run that failed: which step, why, what to do; it yields to the report of a run that went on."""

import chromium
import pytest
import report_samples as samples

from cxr_ml.errors import Refused
from cxr_ml.records import FailedStep
from cxr_ml.reporting import failures, report
from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore

RUN, PAGE = "manual__2026-01-12T03:00:00+00:00", "reports/manual-2026-01-12T03-00-00-00-00/index.html"
EVIL = "<script>alert('x')</script>"


def failed(step="learn.train [1]", error=None, at="2026-01-12T04:00:00+00:00", run=RUN) -> FailedStep:
    error = error or Refused("The loss exploded.\nExpected: a number. Received: nan.\nStart a new run.")
    told = failures.describe_failure(Settings(), run, step, error, "https://airflow.example/log")
    return told.model_copy(update={"at": at})


def page(settings) -> str:
    return ObjectStore(settings.store).get(PAGE).decode()


def test_a_run_that_fails_has_a_page_with_step_reason_what_to_do_and_log(store, settings):
    assert failures.save_failure(store, settings.mail, failed()) == PAGE
    html = page(settings)
    for part in (
        "<h1>✗ FAILED at learn.train [1]</h1>", "<p>The loss exploded.</p>", "<p>Expected: a number. Received: nan.",
        "Why (Refused)", "The message above says", 'href="https://airflow.example/log"', RUN, "What to do",
    ):  # fmt: skip
        assert part in html


def test_all_failed_steps_of_a_run_are_on_its_page_the_newest_first_and_each_once(store, settings):
    failures.save_failure(store, settings.mail, failed("learn.train [0]", at="2026-01-12T04:00:00+00:00"))
    failures.save_failure(store, settings.mail, failed("learn.train [1]", at="2026-01-12T05:00:00+00:00"))
    failures.save_failure(
        store, settings.mail, failed("learn.train [0]", ValueError("again"), at="2026-01-12T06:00:00+00:00")
    )
    html = page(settings)
    assert (
        html.index("FAILED at learn.train [0]") < html.index("<h2>learn.train [0]") < html.index("<h2>learn.train [1]")
    )
    assert html.count("<h2>") == 2 and "again" in html


def test_of_two_steps_that_fail_at_once_none_is_lost(store, settings, monkeypatch):
    render, other = failures.render, [failed("learn.train [0]")]

    def render_while_the_other_step_writes(*given):
        html = render(*given)
        if other:
            failures.save_failure(store, settings.mail, other.pop())
        return html

    monkeypatch.setattr(failures, "render", render_while_the_other_step_writes)
    failures.save_failure(store, settings.mail, failed("learn.train [1]"))
    assert "learn.train [0]" in page(settings) and "learn.train [1]" in page(settings)


def test_the_report_of_a_run_that_went_on_takes_the_place_and_is_not_replaced(store, settings):
    failures.save_failure(store, settings.mail, failed(run="gone-on"))
    run = samples.run(run="gone-on")
    key = report.write(store, settings, run, report.ReportContext(samples.histories(run)))
    html = store.get(key)
    assert b"PROMOTED" in html and b"FAILED" not in html
    failures.save_failure(store, settings.mail, failed("report", OSError("no mail server"), run="gone-on"))
    assert store.get(key) == html


def test_hostile_names_and_secrets_do_not_reach_the_page(settings, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "deep-secret")
    error = RuntimeError(f"deep-secret at s3://key:pw@host {EVIL}\u202e")
    told = failures.describe_failure(settings, RUN, f"a/{EVIL}", error, "")
    html = failures.render(settings.mail, [told])
    assert "deep-secret" not in html and ":pw@" not in html and "\u202e" not in html
    assert "<script" not in html and "Log of this step" not in html


@pytest.mark.slow
def test_no_width_makes_the_page_wider_than_its_window():
    long = failed("learn.train [1]", Refused("models/" + "x" * 300))
    assert chromium.wider_than({"long": failures.render(Settings().mail, [long])}, 390, 1280) == []


def test_the_page_of_a_failure_leads_to_its_run_in_console_and_airflow():
    settings = Settings(mail={"ui_url": "https://airflow.example/"})
    told = failures.describe_failure(
        settings, RUN, "learn.train [1]", ValueError("x"), "", "https://airflow.example/dags/a/runs/x"
    )
    html = failures.render(settings.mail, [told])
    assert 'href="https://airflow.example/dags/a/runs/x"' in html
    assert 'href="https://airflow.example/cxr/runs/manual-2026-01-12T03-00-00-00-00"' in html


def test_a_page_that_said_nothing_was_new_yields_to_a_failure_of_the_run_that_went_on(store, settings):
    quiet = samples.run(run="gone-on", outcome="nothing_new", batches=(), dataset=None, models=(), evaluations=(),
                        decision=None)  # fmt: skip
    key = report.write(store, settings, quiet)
    failures.save_failure(store, settings.mail, failed(run="gone-on"))
    assert b"FAILED" in store.get(key)
    report.write(store, settings, samples.run(run="gone-on"))
    assert b"PROMOTED" in store.get(key)
