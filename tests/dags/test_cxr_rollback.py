"""The rollback as a DAG: a form with the reason, two thin steps, and the asset that other DAGs follow."""

import hashlib
from types import SimpleNamespace

import pytest
import report_samples as samples
from airflow.sdk import Param
from airflow.sdk.exceptions import AirflowFailException, ParamValidationError
from airflow.sdk.execution_time.context import OutletEventAccessors
from dag_reading import HEAVY, read_dag
from decision_samples import decision

from cxr_ml.records import HistoryEntry
from cxr_ml.registry import promotion
from cxr_ml.store import ObjectStore


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    (found,) = read_dag("cxr_rollback", tmp_path_factory.mktemp("airflow"), {})
    return found


def field(read: dict, name: str) -> Param:
    found = read["dag"]["form"][name]
    return Param(**({"default": found["value"]} if "value" in found else {}), **found["schema"])


def test_the_dag_is_read_without_errors_and_loads_nothing_heavy(read):
    assert (read["errors"], read["dags"]) == ({}, ["cxr_rollback"])
    loaded = {name.partition(".")[0] for name in read["modules"]}
    assert "cxr_ml" in loaded and not HEAVY & loaded


def test_it_runs_only_by_hand_at_once_and_one_at_a_time(read):
    dag = read["dag"]
    assert (dag["timetable"], dag["cron"], dag["max_active_runs"]) == ("NullTimetable", None, 1)
    assert dag["paused"] is False


def test_it_moves_the_pointer_updates_the_asset_and_then_tells_the_team(read):
    tasks = read["dag"]["tasks"]
    assert {name: (task["downstream"], task["outlets"]) for name, task in tasks.items()} == {
        "roll_back": (["tell"], ["cxr_champion"]),
        "tell": ([], []),
    }


def test_every_step_is_retried_ends_some_day_and_mails_its_failure(read):
    tasks = read["dag"]["tasks"]
    assert (tasks["roll_back"]["retries"], tasks["roll_back"]["callbacks"]) == (2, ["mail_failure"])
    # The rollback is done: a mail that fails is tried for longer, and does not make the run red.
    assert (tasks["tell"]["retries"], tasks["tell"]["callbacks"], tasks["tell"]["harmless"]) == (5, [], True)
    for task in tasks.values():
        assert task["policy"]["default"] == "fail"
        assert task["timeout"] and task["doc"].endswith(".")
    assert read["dag"]["callbacks"] == ["mail_silent_failures"]


def test_the_form_asks_for_a_reason_and_takes_the_model_before_where_none_is_named(read):
    assert set(read["dag"]["form"]) == {"to", "why"}
    assert field(read, "to").resolve() is None and field(read, "to").resolve("first") == "first"
    assert field(read, "why").resolve("Misses too much.") == "Misses too much."
    for nothing in ("", "  ", None, "x" * 2001):
        with pytest.raises(ParamValidationError):
            field(read, "why").resolve(nothing)
    with pytest.raises(ParamValidationError):
        field(read, "why").resolve()


@pytest.fixture
def roll_back(settings, monkeypatch):
    """The step's function, in a run by hand of the user eve: what the event of the asset holds then."""
    import cxr_rollback
    from cxr_airflow import context as context_module

    context = {
        "run_id": "manual__1",
        "dag_run": SimpleNamespace(triggering_user_name="eve", run_type="manual"),
        "ti": SimpleNamespace(xcom_push=lambda key, value: None),
    }
    monkeypatch.setattr(context_module, "get_current_context", lambda: context)

    def call(**form):
        task = cxr_rollback.cxr_rollback().get_task("roll_back")
        events = OutletEventAccessors()
        task.python_callable(params={"to": None, "why": "Misses too much."} | form, outlet_events=events)
        return events[task.outlets[0]].extra

    return call


def put_champions(settings, *names):
    for number, name in enumerate(names, 1):
        facts = {"model": name, "artefact_sha256": hashlib.sha256(b"weights").hexdigest()}
        model = samples.model().model_copy(update=facts)
        ObjectStore(settings.store).put_if_absent(f"models/{name}/model.keras", b"weights")
        ObjectStore(settings.store).put_if_absent(f"models/{name}/model.json", model.to_bytes())
        entry = HistoryEntry(
            number=number, action="promoted", model=name, previous=names[number - 2] if number > 1 else None,
            version=number, by="ann", why=".", at="2026-01-05T03:00:00+00:00", run=f"run-{number}",
            decision=decision(settings, f"run-{number}", name),
        )  # fmt: skip
        ObjectStore(settings.store).put_if_absent(f"registry/history/{number:05d}.json", entry.to_bytes())


def test_the_champion_before_is_back_with_who_and_why_in_the_history_also_if_the_step_is_tried_again(
    store, settings, roll_back
):
    put_champions(settings, "first", "second", "third")
    assert roll_back() == roll_back() == {"model": "second", "version": 4}
    entry = promotion.history(store)[-1]
    assert (entry.number, entry.action, entry.by, entry.why) == (4, "rolled_back", "eve", "Misses too much.")
    assert promotion.champion(store).model == "second"


def test_the_form_takes_a_champion_version(settings, roll_back):
    put_champions(settings, "first", "second", "third")
    assert roll_back(to="v1") == {"model": "first", "version": 4}


def test_a_model_that_was_never_champion_fails_the_step_for_good(store, settings, roll_back):
    put_champions(settings, "first", "second")
    with pytest.raises(AirflowFailException, match=r"earlier champion, one of first\. Received: 'third'"):
        roll_back(to="third")
    assert len(promotion.history(store)) == 2
