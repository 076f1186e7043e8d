"""Who is told what by mail: each once, and a warning where it cannot be done."""

import pytest
import smtp_samples
from run_samples import BATCH, MODELS, RUN, SECOND, TEAM, concluded, rolled_back, snapshot

from cxr_ml.errors import Refused
from cxr_ml.records import Run
from cxr_ml.registry import promotion
from cxr_ml.reporting import deliveries, failures, notify, publish
from cxr_ml.store import ObjectStore

pytestmark = pytest.mark.usefixtures("blank_plots")

PAGE = f"reports/{RUN}/index.html"


@pytest.fixture
def ready(store, filled):
    """Settings of a store with the report of a promotion, of which nobody was told yet."""
    concluded(filled)
    publish.publish_report(store, filled, RUN, [BATCH.batch])
    return filled


def page(settings, key=PAGE) -> str:
    return ObjectStore(settings.store).get(key).decode()


def recipients(mail_server) -> list[tuple[str, ...]]:
    return [to for to, _, _ in mail_server.handler.mails]


def test_everybody_is_told_once_however_often_the_step_is_tried(store, ready, mail_server):
    assert notify.mail_outcome(store, ready, RUN, [TEAM, SECOND])
    before = snapshot(ready)
    assert notify.mail_outcome(store, ready, RUN, [TEAM, SECOND])
    assert recipients(mail_server) == [(TEAM, SECOND)] and snapshot(ready) == before
    assert deliveries.find_unsent(store, RUN) == [] and "Warning:" not in page(ready)


def test_who_was_told_already_is_not_told_again_when_another_was_refused(store, ready, mail_server, pauses):
    mail_server.handler.rcpt = ["250 OK", "550 Unknown"]
    with pytest.raises(Refused, match=f"{SECOND}: 550 Unknown"):
        notify.mail_outcome(store, ready, RUN, [TEAM, SECOND])
    notify.mail_outcome(store, ready, RUN, [TEAM, SECOND])
    assert recipients(mail_server) == [(TEAM,), (SECOND,)]


def test_a_mail_that_could_not_be_sent_is_a_warning_on_the_page_until_it_is_sent(store, ready, mail_server, pauses):
    untold = page(ready)
    mail_server.handler.data = ["554 Transaction failed <script>"]
    with pytest.raises(Refused, match="554 Transaction failed"):
        notify.mail_outcome(store, ready, RUN, [TEAM])
    ((missed,),) = [deliveries.find_unsent(store, RUN)]
    assert missed.to == (TEAM,) and "554 Transaction failed" in missed.why
    first_screen = page(ready).partition('id="gate"')[0]
    assert f"No mail about this run could be sent to {TEAM}" in first_screen and "<script" not in page(ready)
    notify.mail_outcome(store, ready, RUN, [TEAM])
    assert recipients(mail_server) == [(TEAM,)] and deliveries.find_unsent(store, RUN) == [] and page(ready) == untold


def test_a_mail_server_that_is_down_neither_undoes_nor_repeats_a_promotion(store, ready, mail_server, pauses):
    history, champion = promotion.history(store), promotion.champion(store)
    down = ready.replace(mail={"smtp_port": smtp_samples.free_port()})
    for _ in range(2):
        with pytest.raises(OSError, match="refused"):
            notify.mail_outcome(ObjectStore(down.store), down, RUN, [TEAM])
    assert pauses == [] and deliveries.find_unsent(store, RUN)
    assert (promotion.history(store), promotion.champion(store)) == (history, champion)
    publish.publish_report(store, ready, RUN, [BATCH.batch])  # a step that is cleared changes nothing either
    assert "Warning:" in page(ready) and promotion.history(store) == history
    notify.mail_outcome(store, ready, RUN, [TEAM])
    assert recipients(mail_server) == [(TEAM,)] and "Warning:" not in page(ready)


def test_a_process_that_dies_between_mail_and_mark_sends_it_again_as_the_same_mail(
    store, ready, mail_server, monkeypatch
):
    # The other order would lose the mail; the same Message-ID lets mail programs show it once.
    put = ObjectStore.put_if_absent

    def die(store, key, *given):
        if "/mailed/" in key:
            raise SystemExit
        return put(store, key, *given)

    monkeypatch.setattr(ObjectStore, "put_if_absent", die)
    with pytest.raises(SystemExit):
        notify.mail_outcome(store, ready, RUN, [TEAM])
    monkeypatch.setattr(ObjectStore, "put_if_absent", put)
    notify.mail_outcome(store, ready, RUN, [TEAM])
    first, second = (mail_server.handler.parsed(n)["Message-ID"] for n in (0, 1))
    assert first == second


def test_a_run_without_report_or_news_or_recipients_is_not_told_of(store, filled, mail_server):
    assert not notify.mail_outcome(store, filled, RUN, [TEAM])
    publish.publish_nothing_new(store, filled, RUN)
    assert not notify.mail_outcome(store, filled, RUN, [TEAM])
    concluded(filled)
    publish.publish_report(store, filled, RUN, [BATCH.batch])
    assert not notify.mail_outcome(store, filled, RUN, [])
    assert mail_server.handler.mails == []
    # That nothing was new was not told, so what came of it when it went on is.
    assert store.load(f"reports/{RUN}/run.json", Run).outcome == "promoted"
    assert notify.mail_outcome(store, filled, RUN, [TEAM])


def test_a_recipient_who_is_not_allowed_is_refused_before_anything_is_sent(store, ready, mail_server):
    before = snapshot(ready)
    with pytest.raises(Refused, match=r"mail.allowed .*Received: 'press@news\.example'"):
        notify.mail_outcome(store, ready, RUN, [TEAM, "press@news.example"])
    assert snapshot(ready) == before and mail_server.handler.mails == []


def test_the_mail_leads_to_the_run_in_console_and_airflow(ready, mail_server):
    linked = ready.replace(mail={"ui_url": "https://airflow.example/"})
    notify.mail_outcome(
        ObjectStore(linked.store), linked, RUN, [TEAM], "https://airflow.example/dags/cxr_retraining/runs/x"
    )
    html = mail_server.handler.parsed().get_body(("html",)).get_content()
    text = mail_server.handler.parsed().get_body(("plain",)).get_content()
    run = "https://airflow.example/cxr/runs/manual__2026-01-12T03%3A00%3A00%2B00%3A00"
    for link in (run, "https://airflow.example/dags/cxr_retraining/runs/x", "https://airflow.example/cxr/quarantine"):
        assert f'href="{link}"' in html and link in text


def test_a_rollback_is_mailed_once_with_who_and_why(filled, mail_server):
    run = rolled_back(filled)
    linked = filled.replace(mail={"ui_url": "https://airflow.example"})
    for _ in range(2):
        assert notify.mail_rollback(ObjectStore(linked.store), linked.mail, run, [TEAM])
    assert recipients(mail_server) == [(TEAM,)]
    message = mail_server.handler.parsed()
    assert "Bcc" not in message
    assert message["Subject"].startswith(f"[cxr] ROLLED BACK to {MODELS[0]} v3: Misses")
    text, html = (message.get_body((kind,)).get_content() for kind in ("plain", "html"))
    assert f"{MODELS[0]} is champion again, as v3" in text and "By: eve" in text and "<b>" in text
    assert f"models compare {MODELS[1]} {MODELS[0]}" in text and "&lt;b&gt;" in html
    assert f'href="https://airflow.example/cxr/models/{MODELS[0]}"' in html


def test_a_rollback_that_never_was_is_not_mailed(store, filled, mail_server):
    concluded(filled)
    for run in ("manual-1", RUN):
        assert not notify.mail_rollback(store, filled.mail, run, [TEAM])
    assert mail_server.handler.mails == []


def failed(settings, at="2026-01-12T04:00:00+00:00"):
    told = failures.describe_failure(settings, "manual__1", "learn.train [1]", ValueError("x"), "https://a.example/log")
    told = told.model_copy(update={"at": at})
    return (
        told,
        f"s3://{settings.store.bucket}/{failures.save_failure(ObjectStore(settings.store), settings.mail, told)}",
    )


def test_a_failure_is_mailed_once_and_again_only_when_the_step_fails_again(store, filled, mail_server):
    for told, where in (failed(filled), failed(filled), failed(filled, at="2026-01-12T05:00:00+00:00")):
        notify.mail_failure(store, filled, told, [TEAM], where)
    first, second = (mail_server.handler.parsed(n) for n in (0, 1))
    assert len(mail_server.handler.mails) == 2 and first["Message-ID"] != second["Message-ID"]


def test_a_failure_of_which_nobody_could_be_mailed_says_so_on_its_page(store, filled, mail_server, pauses):
    mail_server.handler.data = ["451 Busy"] * 9
    told, where = failed(filled)
    with pytest.raises(OSError, match="Busy"):
        notify.mail_failure(store, filled, told, [TEAM], where)
    assert pauses == [2.0, 8.0, 30.0]
    assert f"could be sent to {TEAM}" in page(filled, "reports/manual-1/index.html")


def test_a_failure_is_mailed_also_when_the_store_is_the_reason(store, filled, mail_server, monkeypatch):
    told, _ = failed(filled)
    monkeypatch.setattr(ObjectStore, "exists", lambda *_: pytest.fail("the store was asked"))
    notify.mail_failure(store, filled, told, [TEAM], "")
    assert recipients(mail_server) == [(TEAM,)]
