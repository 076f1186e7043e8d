"""What a run that ended leaves for its readers: record, report, Data Docs, examples of what was refused."""

import base64
import hashlib

import pytest
import report_samples as samples
from run_samples import BATCH, DATASET, MODELS, RUN, TEAM, concluded, snapshot

from cxr_ml import pipeline
from cxr_ml.errors import Refused
from cxr_ml.evaluation import stored_explanations
from cxr_ml.records import Ruling, Run
from cxr_ml.registry import promotion
from cxr_ml.reporting import notify, publish
from cxr_ml.store import ObjectStore

pytestmark = pytest.mark.usefixtures("blank_plots")


def test_the_record_holds_the_rulings_that_its_dataset_honours_and_the_parent_did_not(store, filled):
    for number in range(1, 5):
        ruling = Ruling(
            number=number, sha256="a" * 64, batch="b", file="f", action="release", label="NORMAL", by="a", why="b",
            at="2026-01-10T09:00:00+00:00",
        )  # fmt: skip
        store.put_if_absent(f"rulings/{number:05d}.json", ruling.to_bytes())
    parent = DATASET.model_copy(update={"dataset": 2, "parent": None, "rulings": 1})
    child = DATASET.model_copy(update={"dataset": 3, "rulings": 3})
    client = store.client
    for record in (parent, child):
        key = f"datasets/{record.dataset}/dataset.json"
        client.put_object(Bucket=filled.store.bucket, Key=key, Body=record.to_bytes())
    concluded(filled)
    record, _ = publish.publish_report(store, filled, RUN, [BATCH.batch])
    assert [r.number for r in record.rulings] == [2, 3]
    # The fourth came later: the same report again is still the same.
    assert publish.publish_report(store, filled, RUN, [BATCH.batch])[0] == record


def test_a_run_must_be_concluded_before_its_report(store, filled, mail_server):
    pipeline.decide(store, filled.gate, filled.classes, RUN, MODELS)
    before = snapshot(filled)
    with pytest.raises(Refused, match=f"must be concluded before its report: `cxr-ml promote --run {RUN[:10]}"):
        publish.publish_report(store, filled, RUN, [BATCH.batch])
    assert snapshot(filled) == before and mail_server.handler.mails == []


def test_a_concluded_run_gets_record_report_and_mail(store, filled, mail_server):
    decision = concluded(filled)
    record, key = publish.publish_report(store, filled, RUN, [BATCH.batch])
    assert key == f"reports/{RUN}/index.html"
    assert store.load(f"reports/{RUN}/run.json", Run).to_bytes() == record.to_bytes()
    assert (record.outcome, record.decision) == ("promoted", decision)
    assert record.batches == (BATCH,) and record.dataset == DATASET
    assert [m.model for m in record.models] == [e.model for e in record.evaluations] == MODELS
    assert record.champion.model == MODELS[0] and record.champion.version == 1
    page = store.get(key).decode()
    assert "PROMOTED" in page and "inception_v3" in page and BATCH.batch in page
    assert notify.mail_outcome(store, filled, RUN, [TEAM])
    ((to, _, _),), message = mail_server.handler.mails, mail_server.handler.parsed()
    assert to == (TEAM,) and message["Subject"].startswith("[cxr] PROMOTED inception_v3 v1")
    text = message.get_payload()[0].get_payload(decode=True).decode()
    assert f"s3://{filled.store.bucket}/{key}" in text


def test_a_refused_run_is_reported_as_refused(store, filled, mail_server):
    strict = filled.replace(gate={"macro_f1_floor": 0.999})
    promotion.apply_decision(
        ObjectStore(strict.store),
        pipeline.decide(ObjectStore(strict.store), strict.gate, strict.classes, RUN, MODELS),
        "ann",
    )
    record, key = publish.publish_report(ObjectStore(strict.store), strict, RUN, [BATCH.batch])
    assert (record.outcome, record.champion) == ("refused", None)
    assert b"REFUSED" in store.get(key)
    assert notify.mail_outcome(ObjectStore(strict.store), strict, RUN, [TEAM])
    message = mail_server.handler.parsed()
    assert message["Subject"].startswith("[cxr] REFUSED inception_v3")


def test_what_a_human_did_not_approve_is_reported_as_refused(store, filled):
    promotion.record_rejection(
        store, pipeline.decide(store, filled.gate, filled.classes, RUN, MODELS), "bob", "Not approved by bob."
    )
    record, _ = publish.publish_report(store, filled, RUN, [BATCH.batch])
    assert record.outcome == "refused" and record.decision.promote and record.champion is None


def test_data_docs_lie_beside_the_report_and_are_linked(store, filled):
    concluded(filled)
    _, key = publish.publish_report(store, filled, RUN, [BATCH.batch])
    page = store.get(key).decode()
    for name, text in (
        (f"batches-{BATCH.batch}-images", "Data Docs of images"),
        (f"batches-{BATCH.batch}-classes", "Data Docs of classes"),
        ("datasets-3-dataset", "Data Docs of the dataset"),
    ):
        assert f'href="data-docs/{name}.html"' in page
        assert text in store.get(f"reports/{RUN}/data-docs/{name}.html").decode()


def test_contact_sheets_of_the_candidate_are_on_the_page_and_never_in_the_mail(store, filled, mail_server):
    concluded(filled)
    sheets = {label: f"sheet of {label}".encode() for label in ("NORMAL", "COVID19", "PNEUMONIA")}
    digests = {label: hashlib.sha256(png).hexdigest() for label, png in sheets.items()}
    record = samples.explanation(MODELS[0]).model_copy(update={"sheets": digests})
    stored_explanations.save(store, record, sheets)
    _, key = publish.publish_report(store, filled, RUN, [BATCH.batch])
    notify.mail_outcome(store, filled, RUN, [TEAM])
    page, message = store.get(key), mail_server.handler.parsed()
    told = b"".join(part.get_payload(decode=True) or b"" for part in message.walk())
    for png in sheets.values():
        assert base64.b64encode(png) in page
        assert base64.b64encode(png) not in told and png not in told


def test_publishing_twice_changes_nothing(store, filled):
    concluded(filled)
    first = publish.publish_report(store, filled, RUN, [BATCH.batch])
    before = snapshot(filled)
    again = publish.publish_report(store, filled, RUN, [BATCH.batch])
    assert again[1] == first[1] and again[0].to_bytes() == first[0].to_bytes()
    assert snapshot(filled) == before


def test_a_batch_that_is_not_there_is_refused_by_name(store, filled):
    concluded(filled)
    with pytest.raises(Refused, match=r"batches/absent/batch\.json"):
        publish.publish_report(store, filled, RUN, ["absent"])


def test_the_seconds_that_airflow_counts_may_differ_between_two_tries(store, filled):
    concluded(filled)
    record, key = publish.publish_report(store, filled, RUN, [BATCH.batch], {"learn.train [0]": 1234.5})
    page = store.get(key).decode()
    assert record.seconds == {"learn.train [0]": 1234.5} and "20 min 34 s" in page
    publish.publish_report(store, filled, RUN, [BATCH.batch], {"learn.train [0]": 1234.5, "report": 9.0})
    assert store.get(key).decode() == page


def test_the_growth_of_the_dataset_over_its_versions_is_on_the_page(store, filled):
    concluded(filled)
    _, key = publish.publish_report(store, filled, RUN, [BATCH.batch])
    assert "Growth over the versions of the dataset" in store.get(key).decode()


def test_thumbnails_of_what_was_refused_are_on_the_page_by_reason_and_never_in_the_mail(store, filled, mail_server):
    concluded(filled)
    linked = filled.replace(mail={"ui_url": "https://airflow.example/"})
    _, key = publish.publish_report(ObjectStore(linked.store), linked, RUN, [BATCH.batch])
    notify.mail_outcome(ObjectStore(linked.store), linked, RUN, [TEAM])
    page = store.get(key).decode()
    part = page[page.index('id="refused"') : page.index('id="lineage"')]
    assert part.index("<h3>white_box") < part.index("<h3>decode_error") and "4 of 120 files" in part
    shown = [n for n in range(5) if base64.b64encode(f"film {n}".encode()).decode() in part]
    assert shown == [0, 1, 2, 3]
    assert "no picture" in part and "x/&lt;b&gt;.png" in part and "<b>" not in part
    assert 'href="https://airflow.example/cxr/quarantine"' in part
    told = b"".join(p.get_payload(decode=True) or b"" for p in mail_server.handler.parsed().walk())
    assert b"film 0" not in told and base64.b64encode(b"film 0") not in told


def test_a_run_of_which_nothing_was_new_has_a_report_that_yields_when_it_goes_on(store, filled):
    key = publish.publish_nothing_new(store, filled, RUN)
    assert publish.publish_nothing_new(store, filled, RUN) == key
    assert "NOTHING NEW" in store.get(key).decode()
    assert store.load(f"reports/{RUN}/run.json", Run).outcome == "nothing_new"
    concluded(filled)
    publish.publish_report(store, filled, RUN, [BATCH.batch])
    assert "PROMOTED" in store.get(key).decode()
    assert store.load(f"reports/{RUN}/run.json", Run).outcome == "promoted"


def test_a_drop_of_which_no_image_is_new_is_told_of_with_its_counts(store, filled, mail_server):
    key = publish.publish_nothing_new(store, filled, RUN, [BATCH.batch])
    assert "None of the 1059 files that came in was new and fit" in store.get(key).decode()
    assert notify.mail_outcome(store, filled, RUN, [TEAM])
    assert mail_server.handler.parsed()["Subject"].startswith("[cxr] NOTHING NEW: None of the 1059 files")


def test_a_run_that_was_concluded_and_is_cleared_when_nothing_is_new_keeps_its_report(store, filled):
    concluded(filled)
    _, key = publish.publish_report(store, filled, RUN, [BATCH.batch])
    before = snapshot(filled)
    assert publish.publish_nothing_new(store, filled, RUN) == key and snapshot(filled) == before


def test_a_cleared_run_that_brings_a_drop_of_known_images_tells_of_it(store, filled, mail_server):
    key = publish.publish_nothing_new(store, filled, RUN)
    assert publish.publish_nothing_new(store, filled, RUN, [BATCH.batch]) == key
    assert "None of the 1059 files" in store.get(key).decode()
    assert notify.mail_outcome(store, filled, RUN, [TEAM]) and len(mail_server.handler.mails) == 1
