"""Pages of a run that goes on, by Airflow's real database: which step since when, how far, loaded anew."""

import html
import re
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from api_server import api_server, states

from cxr_ml.progress import now
from cxr_ml.records import Run, StepProgress

pytestmark = [pytest.mark.airflow, pytest.mark.slow]
RUN, NAME = "manual__2026-01-05T03:00:00+00:00", "manual-2026-01-05T03-00-00-00-00"
LIVE = ("/", "/runs", f"/runs/{NAME}")


@pytest.fixture(scope="module")
def airflow(seaweed, tmp_path_factory):
    """Asks for a page as a viewer, and puts the run into states."""
    folder = tmp_path_factory.mktemp("going-on")
    with api_server(folder, "simple", seaweed) as (address, tokens), states(folder, seaweed) as put_state:

        def ask(path):
            cookies = {"_token": tokens["viewer"]}
            with httpx.Client(base_url=address, cookies=cookies, trust_env=False, verify=False) as client:
                answer = client.get(f"/cxr{path}", timeout=300)
            assert answer.status_code == 200, answer.text
            return answer.headers.get("refresh"), html.unescape(re.sub(r"<[^>]+>", " ", answer.text)), answer.text

        def put(state, tasks, told=()):
            put_state({"run": RUN, "state": state, "tasks": tasks, "told": list(told)})

        yield ask, put


@pytest.fixture
def ask(airflow, settings):
    return airflow[0]


@pytest.fixture
def training(airflow):
    """A run whose third step trains."""
    told = StepProgress(
        at=now(), unit="epochs", done=2, total=8, stage="fine_tune", within=(12, 49),
        val_macro_f1=0.912, seconds_left=70.0,
    )  # fmt: skip
    tasks = {"data.find_drops": ("success", -1, 9), "learn.train": ("running", 0, 2), "report": ("queued", -1, 1)}
    told = told.model_dump(mode="json")
    airflow[1]("running", tasks, [("learn.train", 0, told), ("data.find_drops", -1, told)])


def test_a_run_that_goes_on_is_shown_with_step_since_when_and_how_far(ask, training):
    sentence = "fine-tuning, epoch 3 of 8, step 12 of 49, last validation macro F1 0.912, at most 1 min 10 s left"
    for path in LIVE:
        _, text, source = ask(path)
        assert text.count(sentence) == 1, path  # not of find_drops, which has ended
        assert re.search(r"learn\.train \[0\]", text), path
        if path != "/runs":
            assert re.search(r"since \d\d:\d\d UTC \(2 min \d+ s\)", text), path
            assert '<progress max="8" value="2.24"' in source
        assert re.search(r"refreshes itself every 5 s, last at \d\d:\d\d:\d\d UTC", text), path
    steps = ask(LIVE[2])[1].partition("Steps")[2]
    order = [steps.index(name) for name in ("data.find_drops", "learn.train [0]", "report", "learn.evaluate", "mail")]
    assert order == sorted(order), "those that began by time, the others in the DAG's order"
    assert "waiting" in steps and "✓ done" in steps and "queued" in steps


def test_a_page_that_waits_is_loaded_anew_without_what_is_said_once(ask, training):
    for path in LIVE:
        assert ask(f"{path}?said=x")[0] == f"5; url=/cxr{path}"
    assert ask("/runs?page=1&said=x")[0] == "5; url=/cxr/runs?page=1"


def test_who_reads_slowly_can_stop_the_refreshing_and_let_it_go_on(ask, training):
    for path in LIVE:
        assert f'href="/cxr{path}?still=1"' in ask(path)[2]
        refresh, text, source = ask(f"{path}?still=1")
        assert refresh is None and "does not refresh itself" in text and f'href="/cxr{path}"' in source


def test_no_page_with_a_form_is_loaded_anew(ask, training):
    for path in ("/quarantine", "/rollback", "/models", "/data"):
        refresh, text, _ = ask(path)
        assert refresh is None and "refreshes itself" not in text, path


def test_what_a_step_told_a_while_ago_is_shown_with_how_long_ago(ask, airflow):
    told = {"at": (datetime.now(UTC) - timedelta(minutes=3)).isoformat(), "stage": "drift"}
    airflow[1]("running", {"data.build_dataset": ("running", -1, 5)}, [("data.build_dataset", -1, told)])
    for path in LIVE:
        assert re.search(r"drift \(told 3 min \d+ s ago\)", ask(path)[1]), path


def test_what_a_step_tells_that_nobody_understands_is_not_shown(ask, airflow):
    airflow[1]("running", {"learn.train": ("running", 0, 2)}, [("learn.train", 0, {"other": "version"})])
    tasks = {"report": ("running", -1, 2), "data.build_dataset": ("success", -1, 5)}
    airflow[1]("running", tasks, [("report", -1, {"at": "soon", "stage": "drift"})])
    for path in LIVE:
        refresh, text, _ = ask(path)
        assert refresh and "learn.train [0]" in text and "epoch" not in text
        assert "report" in text and "drift" not in text


def test_once_all_runs_have_ended_no_page_is_loaded_anew(ask, airflow, training):
    airflow[1]("success", {"learn.train": ("success", 0, 2)})
    for path in LIVE:
        refresh, text, source = ask(path)
        assert refresh is None and "refreshes itself" not in text and "<progress" not in source, path
    airflow[1]("running", {"learn.train": ("running", 0, 2)})
    assert ask("/")[0]


def test_a_success_without_its_record_in_the_store_ended_without_a_report(ask, airflow):
    # So Airflow closes a run whose steps were skipped or marked by hand after an interruption.
    airflow[1]("success", {"learn.train": ("skipped", 0, 2)})
    for path in LIVE:
        text = ask(path)[1]
        assert "ended without a report" in text and "nothing new" not in text, path


def test_nothing_new_is_said_where_the_record_of_the_run_says_so(ask, airflow, store):
    airflow[1]("success", {"learn.train": ("skipped", 0, 2)})
    record = Run(
        run=NAME,
        outcome="nothing_new",
        batches=(),
        dataset=None,
        models=(),
        evaluations=(),
        decision=None,
        champion=None,
    )
    assert store.put_if_absent(f"reports/{NAME}/run.json", record.to_bytes())
    for path in LIVE:
        text = ask(path)[1]
        assert "nothing new" in text and "without a report" not in text, path
