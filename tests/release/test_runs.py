"""What a run leaves behind: one decision, one report, one mail."""

import base64
import email
import email.policy
import hashlib
import socket

import pandas as pd
import pytest
import report_samples as samples
from aiosmtpd.controller import Controller

from cxr_ml import store
from cxr_ml.data import ingest
from cxr_ml.errors import Refused
from cxr_ml.model import evaluations, explanations
from cxr_ml.records import Decision, Evaluation, Ruling, Run
from cxr_ml.release import gate, registry, runs

RUN = "manual__2026-01-12T03:00:00+00:00"
TEAM = "team@hospital.example"
BETTER = ((88, 1, 1), (0, 89, 1), (1, 1, 88))
BATCH = samples.batch()
MANIFEST = ingest.to_parquet(
    pd.DataFrame([("Kermany", c) for c in samples.CLASSES], columns=["source", "label"], dtype="string")
)
DATASET = samples.dataset().model_copy(update={"manifest_sha256": hashlib.sha256(MANIFEST).hexdigest()})


def evaluation(*args, **kwargs) -> Evaluation:
    found = samples.evaluation(*args, **kwargs)
    return found.model_copy(update={"dataset_sha256": DATASET.manifest_sha256})


class Sink:
    """Keeps the mails it gets; closes the line instead while `down`."""

    def __init__(self):
        self.mails, self.down = [], False

    async def handle_DATA(self, server, session, envelope):
        if self.down:
            return "554 Transaction failed"
        self.mails.append((tuple(envelope.rcpt_tos), email.message_from_bytes(envelope.content)))
        return "250 OK"


@pytest.fixture
def sink():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    controller = Controller(Sink(), hostname="127.0.0.1", port=port)
    controller.start()
    yield controller
    controller.stop()


def put_model(settings, evaluation: Evaluation) -> str:
    """A stored model with its record, history and evaluation."""
    folder = f"models/{evaluation.model}"
    record = samples.model(evaluation.architecture)
    store.put_if_absent(settings, f"{folder}/model.keras", evaluation.model.encode())
    store.put_if_absent(settings, f"{folder}/history.csv", samples.history().to_csv(index=False).encode())
    store.put_if_absent(settings, f"{folder}/model.json", record.to_bytes())
    evaluations.save(settings, evaluation)
    return evaluation.model


@pytest.fixture
def filled(settings, sink):
    """Settings of a store with a batch, a dataset and two evaluated candidates, and of a mail server."""
    for name in ("images", "classes"):
        store.put_if_absent(settings, f"batches/{BATCH.batch}/{name}.html", f"<p>Data Docs of {name}</p>".encode())
    store.put_if_absent(settings, f"batches/{BATCH.batch}/batch.json", BATCH.to_bytes())
    first = samples.batch("2026-01-05", batch=DATASET.batches[0])
    parent = DATASET.model_copy(update={"dataset": 2, "parent": None, "batches": DATASET.batches[:1]})
    store.put_if_absent(settings, f"batches/{first.batch}/batch.json", first.to_bytes())
    store.put_if_absent(settings, "datasets/2/dataset.json", parent.to_bytes())
    store.put_if_absent(settings, "datasets/3/manifest.parquet", MANIFEST)
    store.put_if_absent(settings, "datasets/3/dataset.html", b"<p>Data Docs of the dataset</p>")
    store.put_if_absent(settings, "datasets/3/dataset.json", DATASET.to_bytes())
    put_model(settings, evaluation("inception_v3", BETTER))
    put_model(settings, evaluation("mobilenet_v2", samples.GOOD, samples.POOR))
    mail = {"smtp_host": "127.0.0.1", "smtp_port": sink.port, "mail_from": "cxr@hospital.example"}
    return settings.model_copy(update=mail | {"mail_allowed": (TEAM,), "mail_to": (TEAM,)})


MODELS = ["inception_v3-d3-1a2b3c4d", "mobilenet_v2-d3-1a2b3c4d"]


def concluded(settings, run=RUN) -> Decision:
    decision = runs.decide(settings, run, MODELS)
    registry.conclude(settings, decision, "ann")
    return decision


def snapshot(settings) -> dict[str, bytes]:
    return {key: store.get(settings, key) for key in store.keys(settings, "")}


def test_the_gate_decides_on_what_is_stored(filled):
    decision = runs.decide(filled, RUN, MODELS, {"macro_f1_floor": "0.85 → 0.8"})
    assert decision.promote and decision.model == MODELS[0] and decision.candidates == tuple(MODELS)
    assert (decision.run, decision.dataset, decision.champion) == (RUN, 3, None)
    assert decision.overrides == {"macro_f1_floor": "0.85 → 0.8"}
    assert runs.load_decision(filled, RUN) == decision


def test_the_record_holds_the_rulings_that_its_dataset_honours_and_the_parent_did_not(filled):
    for number in range(1, 5):
        ruling = Ruling(
            number=number, sha256="a" * 64, batch="b", file="f", action="release", label="NORMAL", by="a", why="b",
            at="2026-01-10T09:00:00+00:00",
        )  # fmt: skip
        store.put_if_absent(filled, f"rulings/{number:05d}.json", ruling.to_bytes())
    parent = DATASET.model_copy(update={"dataset": 2, "parent": None, "rulings": 1})
    child = DATASET.model_copy(update={"dataset": 3, "rulings": 3})
    client = store.client(filled.s3_endpoint_url)
    for record in (parent, child):
        key = f"datasets/{record.dataset}/dataset.json"
        client.put_object(Bucket=filled.bucket, Key=key, Body=record.to_bytes())
    concluded(filled)
    record, _ = runs.publish(filled, RUN, [BATCH.batch], ())
    assert [r.number for r in record.rulings] == [2, 3]
    # The fourth came later: the same report again is still the same.
    assert runs.publish(filled, RUN, [BATCH.batch], ())[0] == record


def test_a_run_is_decided_once_even_if_the_floors_change_between_two_tries(filled):
    first = runs.decide(filled, RUN, MODELS)
    stricter = filled.model_copy(update={"macro_f1_floor": 0.999})
    assert runs.decide(stricter, RUN, MODELS) == first
    assert not runs.decide(stricter, "another", MODELS).promote


def test_a_run_that_was_decided_on_other_candidates_is_refused(filled):
    runs.decide(filled, RUN, MODELS)
    with pytest.raises(Refused, match="A run is decided once"):
        runs.decide(filled, RUN, MODELS[:1])


def test_candidates_that_were_not_evaluated_beside_the_champion_of_now_are_refused(filled):
    concluded(filled)
    with pytest.raises(Refused, match=f"evaluation-d3-beside-{MODELS[0]}"):
        runs.decide(filled, "next", MODELS[1:])


def test_the_next_run_meets_the_champion(filled):
    concluded(filled)
    champion = evaluation("inception_v3", BETTER)
    evaluations.save(filled, evaluation("mobilenet_v2", samples.GOOD, champion=champion))
    decision = runs.decide(filled, "next", MODELS[1:])
    assert decision.champion == MODELS[0] and not decision.promote
    assert "macro F1 against champion" in [c.name for c in decision.checks if not c.passed]


def test_a_run_without_a_decision_is_refused_by_name(filled):
    with pytest.raises(Refused, match=r"reports/unknown/decision\.json"):
        runs.load_decision(filled, "unknown")
    with pytest.raises(Refused, match=r"reports/unknown/decision\.json"):
        runs.publish(filled, "unknown", [], [TEAM])


def test_a_run_must_be_concluded_before_its_report(filled, sink):
    runs.decide(filled, RUN, MODELS)
    before = snapshot(filled)
    with pytest.raises(Refused, match=f"must be concluded before its report: `cxr-ml promote --run {RUN[:10]}"):
        runs.publish(filled, RUN, [BATCH.batch], [TEAM])
    assert snapshot(filled) == before and sink.handler.mails == []


def test_a_concluded_run_gets_record_report_and_mail(filled, sink):
    decision = concluded(filled)
    record, key = runs.publish(filled, RUN, [BATCH.batch], [TEAM])
    assert key == f"reports/{RUN}/index.html"
    assert store.load(filled, f"reports/{RUN}/run.json", Run).to_bytes() == record.to_bytes()
    assert (record.outcome, record.decision) == ("promoted", decision)
    assert record.batches == (BATCH,) and record.dataset == DATASET
    assert [m.model for m in record.models] == [e.model for e in record.evaluations] == MODELS
    assert record.champion.model == MODELS[0] and record.champion.version == 1
    page = store.get(filled, key).decode()
    assert "PROMOTED" in page and "inception_v3" in page and BATCH.batch in page
    ((to, message),) = sink.handler.mails
    assert to == (TEAM,) and message["Subject"].startswith("[cxr] PROMOTED inception_v3 v1")
    text = message.get_payload()[0].get_payload(decode=True).decode()
    assert f"s3://{filled.bucket}/{key}" in text


def test_a_refused_run_is_reported_as_refused(filled, sink):
    strict = filled.model_copy(update={"macro_f1_floor": 0.999})
    registry.conclude(strict, runs.decide(strict, RUN, MODELS), "ann")
    record, key = runs.publish(strict, RUN, [BATCH.batch], [TEAM])
    assert (record.outcome, record.champion) == ("refused", None)
    assert b"REFUSED" in store.get(filled, key)
    ((_, message),) = sink.handler.mails
    assert message["Subject"].startswith("[cxr] REFUSED inception_v3")


def test_what_a_human_did_not_approve_is_reported_as_refused(filled):
    registry.decline(filled, runs.decide(filled, RUN, MODELS), "bob", "Not approved by bob.")
    record, _ = runs.publish(filled, RUN, [BATCH.batch], [])
    assert record.outcome == "refused" and record.decision.promote and record.champion is None


def test_data_docs_lie_beside_the_report_and_are_linked(filled):
    concluded(filled)
    _, key = runs.publish(filled, RUN, [BATCH.batch], [])
    page = store.get(filled, key).decode()
    for name, text in (
        (f"batches-{BATCH.batch}-images", "Data Docs of images"),
        (f"batches-{BATCH.batch}-classes", "Data Docs of classes"),
        ("datasets-3-dataset", "Data Docs of the dataset"),
    ):
        assert f'href="data-docs/{name}.html"' in page
        assert text in store.get(filled, f"reports/{RUN}/data-docs/{name}.html").decode()


def test_contact_sheets_of_the_candidate_are_on_the_page_and_never_in_the_mail(filled, sink):
    concluded(filled)
    sheets = {label: f"sheet of {label}".encode() for label in ("NORMAL", "COVID19", "PNEUMONIA")}
    digests = {label: hashlib.sha256(png).hexdigest() for label, png in sheets.items()}
    record = samples.explanation(MODELS[0]).model_copy(update={"sheets": digests})
    explanations.save(filled, record, sheets)
    _, key = runs.publish(filled, RUN, [BATCH.batch], [TEAM])
    page, (_, message) = store.get(filled, key), sink.handler.mails[0]
    told = b"".join(part.get_payload(decode=True) or b"" for part in message.walk())
    for png in sheets.values():
        assert base64.b64encode(png) in page
        assert base64.b64encode(png) not in told and png not in told


def test_publishing_twice_changes_nothing_and_mails_once(filled, sink):
    concluded(filled)
    first = runs.publish(filled, RUN, [BATCH.batch], [TEAM])
    before = snapshot(filled)
    again = runs.publish(filled, RUN, [BATCH.batch], [TEAM])
    assert again[1] == first[1] and again[0].to_bytes() == first[0].to_bytes()
    assert snapshot(filled) == before
    assert len(sink.handler.mails) == 1


def test_a_mail_that_failed_leaves_the_report_and_is_sent_by_the_next_try(filled, sink):
    concluded(filled)
    sink.handler.down = True
    with pytest.raises(OSError, match="Transaction failed"):
        runs.publish(filled, RUN, [BATCH.batch], [TEAM])
    assert store.exists(filled, f"reports/{RUN}/index.html")
    sink.handler.down = False
    runs.publish(filled, RUN, [BATCH.batch], [TEAM])
    assert len(sink.handler.mails) == 1


def test_without_recipients_there_is_a_report_and_no_mail(filled, sink):
    concluded(filled)
    _, key = runs.publish(filled, RUN, [BATCH.batch], [])
    assert store.exists(filled, key) and sink.handler.mails == []


def rolled_back(settings) -> str:
    concluded(settings)
    beside = evaluation("inception_v3", BETTER)
    found = evaluation("mobilenet_v2", samples.GOOD, champion=beside)
    evaluations.save(settings, found)
    decision = runs.decide(settings, "next", MODELS[1:])
    checks = tuple(check.model_copy(update={"passed": True}) for check in decision.checks)
    registry.conclude(settings, decision.model_copy(update={"promote": True, "checks": checks}), "ann")
    return registry.rollback(settings, None, "eve", "Misses\r\nBcc: too@much.example <b>", "manual-1").run


def test_a_rollback_is_mailed_once_with_who_and_why(filled, sink):
    run = rolled_back(filled)
    for _ in range(2):
        runs.tell_rollback(filled, run, [TEAM])
    ((to, message),) = sink.handler.mails
    assert to == (TEAM,) and "Bcc" not in message
    assert message["Subject"].startswith(f"[cxr] ROLLED BACK to {MODELS[0]} v3: Misses")
    text, html = (part.get_payload(decode=True).decode() for part in message.get_payload())
    assert f"{MODELS[0]} is champion again, as v3" in text and "By: eve" in text and "<b>" in text
    assert f"models compare {MODELS[1]} {MODELS[0]}" in text and "&lt;b&gt;" in html


def test_a_rollback_that_never_was_is_not_mailed(filled, sink):
    concluded(filled)
    for run in ("manual-1", RUN):
        with pytest.raises(Refused, match="A rollback was expected"):
            runs.tell_rollback(filled, run, [TEAM])
    assert sink.handler.mails == []


def test_a_recipient_who_is_not_allowed_is_refused_before_anything_is_written_or_sent(filled, sink):
    concluded(filled)
    before = snapshot(filled)
    with pytest.raises(Refused, match=r"mail_allowed .*Received: 'press@news\.example'"):
        runs.publish(filled, RUN, [BATCH.batch], [TEAM, "press@news.example"])
    assert snapshot(filled) == before and sink.handler.mails == []


def test_a_batch_that_is_not_there_is_refused_by_name(filled):
    concluded(filled)
    with pytest.raises(Refused, match=r"batches/absent/batch\.json"):
        runs.publish(filled, RUN, ["absent"], [])


def test_the_stored_decision_is_what_the_gate_said(filled):
    found = [evaluations.load(filled, 3, name, None) for name in MODELS]
    records = {name: runs.load_model_record(filled, name) for name in MODELS}
    assert runs.decide(filled, RUN, MODELS) == gate.decide(filled, RUN, DATASET, found, records, None)
