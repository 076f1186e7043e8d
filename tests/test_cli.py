"""`cxr-ml` as a person or a script calls it: pure JSON, exit statuses, each stage, and one whole retraining."""

import email
import email.policy
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sysconfig
from functools import partial
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from cli_calls import answer, call, strict

from cxr_ml.records import Batch, Champion, Dataset, Decision, HistoryEntry, Model, Run
from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore

TEAM = "team@hospital.example"
CLASSES = ("NORMAL", "COVID19", "PNEUMONIA")
PER_CLASS = 24
# A tiny network that is trained for real, and a gate that asks for very little.
TINY = """
training.architectures = ["light"]
training.weights = "none"
training.image_size = 64
training.batch_size = 16
training.head_epochs = {epochs}
training.fine_tune_epochs = 1
gate.min_test_support = 3
dataset.validation_fraction = 0.4
mail.sender = "cxr@hospital.example"
mail.allowed = ["{team}"]
mail.recipients = ["{team}"]
mail.smtp_host = "127.0.0.1"
mail.smtp_port = {port}
"""
NO_FLOORS = """
gate.macro_f1_floor = 0.0
gate.corruption_limit = 1.0
gate.recall_floors = {COVID19 = 0.0, PNEUMONIA = 0.0, NORMAL = 0.0}
gate.f1_floors = {COVID19 = 0.0, PNEUMONIA = 0.0}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Sink:
    """Keeps the mails that a real SMTP server takes."""

    def __init__(self):
        self.mails = []

    async def handle_DATA(self, server, session, envelope):
        self.mails.append((tuple(envelope.rcpt_tos), envelope.content))
        return "250 OK"

    def texts(self, number):
        message = email.message_from_bytes(self.mails[number][1], policy=email.policy.default)
        return message["Subject"].strip(), message.get_body(("plain",)).get_content()


@pytest.fixture(scope="module")
def smtp():
    sink = Sink()
    controller = Controller(sink, hostname="127.0.0.1", port=free_port())
    controller.start()
    yield controller, sink
    controller.stop()


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """The suites of expectations, with a dataset of a few images allowed."""
    folder = tmp_path_factory.mktemp("suites") / "expectations"
    shutil.copytree(Path(__file__).parents[1] / "expectations", folder)
    suite = json.loads((folder / "dataset.json").read_text())
    for expectation in suite["expectations"]:
        if "min_value" in expectation["kwargs"]:
            expectation["kwargs"]["min_value"] = 1
    (folder / "dataset.json").write_text(json.dumps(suite))
    return folder


def snapshot(settings):
    return {key: ObjectStore(settings.store).get(key) for key in ObjectStore(settings.store).keys("")}


# One whole retraining, as a user runs it


@pytest.fixture(scope="module")
def house(seaweed, smtp, few, tmp_path_factory):
    """Settings of a bucket and an inbox of their own, and a function that runs `cxr-ml` in a process of its own."""
    root = tmp_path_factory.mktemp("house")
    (root / "inbox").mkdir()
    config = TINY.format(epochs=2, team=TEAM, port=smtp[0].port)
    (root / "low.toml").write_text(config + NO_FLOORS)
    (root / "real.toml").write_text(config)
    variables = {"CXR_STORE__BUCKET": f"test-{secrets.token_hex(6)}", "CXR_INBOX__PATH": str(root / "inbox")}
    variables |= {"CXR_CACHE_DIR": str(root / "cache"), "CXR_VALIDATION__EXPECTATIONS": str(few)}
    variables |= {"CXR_CONFIG": str(root / "low.toml")}
    usual = {n: v for n, v in os.environ.items() if not n.startswith(("CXR_", "AWS_"))}
    cxr_ml = shutil.which("cxr-ml", path=sysconfig.get_path("scripts"))

    def run(*args, variables):
        environment = usual | seaweed | variables
        return subprocess.run([cxr_ml, *map(str, args)], env=environment, cwd=root, capture_output=True, text=True)

    with pytest.MonkeyPatch.context() as patch:
        for name, value in seaweed.items():
            patch.setenv(name, value)
        settings = Settings(
            store={"bucket": variables["CXR_STORE__BUCKET"], "endpoint_url": seaweed["CXR_STORE__ENDPOINT_URL"]}
        )
        ObjectStore(settings.store).client.create_bucket(Bucket=settings.store.bucket)
        yield settings, partial(run, variables=variables), root


@pytest.fixture(scope="module")
def retrained(house, smtp, shallow_light):
    """The first retraining: what it printed, and the mails that had come by then."""
    _, run, root = house
    made = run("demo-data", root / "inbox/demo", "--images-per-class", PER_CLASS, "--json")
    assert json.loads(made.stdout) == dict.fromkeys((*CLASSES, "TURBERCULOSIS"), PER_CLASS) | {"defects": 7}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in run.keywords["variables"].items():
            patch.setenv(name, value)
        printed = answer("retrain", "--run", "first run")
    return printed, list(smtp[1].mails)


def test_a_retraining_prints_the_record_of_the_run_that_the_store_holds(house, retrained):
    settings, _, _ = house
    printed, _ = retrained
    stored = ObjectStore(settings.store).load("reports/first-run/run.json", Run)
    # What is NaN in the store, because a class was never predicted, is null in JSON.
    assert printed == json.loads(stored.to_bytes(), parse_constant=lambda name: None)
    assert (stored.run, stored.outcome, stored.decision.promote) == ("first-run", "promoted", True)
    assert [b.drop for b in stored.batches] == ["demo"]


def test_a_retraining_leaves_every_record_in_the_store_and_they_agree(house, retrained):
    settings, _, _ = house
    run = ObjectStore(settings.store).load("reports/first-run/run.json", Run)
    (batch,), (model,), (evaluation,) = run.batches, run.models, run.evaluations
    assert ObjectStore(settings.store).load(f"batches/{batch.batch}/batch.json", Batch) == batch
    assert list(batch.rejected_classes) == ["TUBERCULOSIS"]
    assert sum(n for labels in batch.counts.values() for n in labels.values()) == 4 * PER_CLASS + 7
    assert ObjectStore(settings.store).load("datasets/1/dataset.json", Dataset) == run.dataset
    assert run.dataset.counts["test"] == dict.fromkeys(sorted(CLASSES), 8)
    assert sum(sum(c.values()) for c in run.dataset.counts.values()) == 3 * PER_CLASS
    assert ObjectStore(settings.store).load(f"models/{model.model}/model.json", Model) == model
    artefact = ObjectStore(settings.store).get(f"models/{model.model}/model.keras")
    assert hashlib.sha256(artefact).hexdigest() == model.artefact_sha256
    assert model.epochs == {"head": 2, "fine_tune": 1}
    assert len(ObjectStore(settings.store).get(f"models/{model.model}/history.csv").splitlines()) == 1 + 3
    assert ObjectStore(settings.store).get(f"models/{model.model}/evaluation.json") == evaluation.to_bytes()
    assert {c.support for c in evaluation.test.classes.values()} == {8} and evaluation.champion is None
    assert sum(map(sum, evaluation.test.confusion)) == 24
    assert ObjectStore(settings.store).load("reports/first-run/decision.json", Decision) == run.decision
    (entry,) = [
        ObjectStore(settings.store).load(k, HistoryEntry) for k in ObjectStore(settings.store).keys("registry/history/")
    ]
    assert (entry.number, entry.action, entry.model, entry.version) == (1, "promoted", model.model, 1)
    assert entry.decision == run.decision and entry.by
    champion = ObjectStore(settings.store).load("registry/champion.json", Champion)
    assert champion == run.champion
    assert (champion.model, champion.artefact_sha256) == (model.model, model.artefact_sha256)


def test_a_retraining_writes_a_report_with_the_data_docs_beside_it(house, retrained):
    settings, _, _ = house
    keys = set(ObjectStore(settings.store).keys("reports/first-run/"))
    docs = {k.rpartition("/")[2] for k in keys if "/data-docs/" in k}
    assert len(docs) == 3
    page = ObjectStore(settings.store).get("reports/first-run/index.html").decode()
    assert "PROMOTED" in page and "TUBERCULOSIS" in page
    assert all(f'"data-docs/{name}"' in page for name in docs)


def test_the_mail_has_arrived_once_with_the_outcome(house, retrained):
    settings, _, _ = house
    _, mails = retrained
    ((to, content),) = mails
    assert to == (TEAM,)
    message = email.message_from_bytes(content, policy=email.policy.default)
    assert message["Subject"].strip().startswith("[cxr] PROMOTED light v1: COVID19")
    text = message.get_body(("plain",)).get_content()
    assert f"s3://{settings.store.bucket}/reports/first-run/index.html" in text and "TUBERCULOSIS" in text


def test_a_second_retraining_finds_nothing_new_leaves_a_page_that_says_so_and_sends_no_mail(house, retrained, smtp):
    settings, run, _ = house
    before, mails = snapshot(settings), len(smtp[1].mails)
    again = run("retrain", "--json")
    assert (again.returncode, json.loads(again.stdout)) == (0, {"outcome": "nothing_new"})
    after = snapshot(settings)
    assert before.items() <= after.items() and len(smtp[1].mails) == mails
    assert {re.sub("/.*/", "/", key) for key in set(after) - set(before)} == {"reports/index.html", "reports/run.json"}


def test_without_json_the_stages_print_tables_for_people(here, retrained):
    _, out, _ = call("ingest", "demo")
    batch = out.strip()
    assert batch.startswith("demo-")
    status, out, _ = call("validate", batch)
    assert status == 0 and "TUBERCULOSIS" in out and "accepted" in out
    status, out, _ = call("dataset")
    assert status == 0 and "dataset 1" in out and "train" in out


def test_the_champion_predicts_and_names_what_it_cannot_read(here, retrained):
    _, root = here
    (root / "page.png").write_bytes(b"<html>")
    films = sorted((root / "inbox/demo/test").rglob("*.png"))[:8]
    *rows, page, lost = answer("predict", *films, root / "page.png", root / "lost.png")
    assert [row["file"] for row in rows] == list(map(str, films))
    known = [row for row in rows if row["refused"] == []]
    assert len(known) >= 6, "of a hundred films like those of the training, about one is taken for unlike them"
    for row in known:
        assert row["unlikeness"] <= 1
        assert list(row["probabilities"]) == list(CLASSES)
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        assert row["predicted"] == max(row["probabilities"], key=row["probabilities"].get)
    assert known[0]["probabilities"] != known[1]["probabilities"]
    assert page["refused"] == ["not_an_image"] and lost["refused"] == ["file_missing"]
    assert page["predicted"] is lost["predicted"] is None


def test_a_rollback_without_an_earlier_champion_is_refused_and_changes_nothing(house, retrained):
    settings, run, _ = house
    before = snapshot(settings)
    done = run("rollback", "--why", "a doubt", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Refused:" in done.stderr and "earlier champion" in done.stderr
    assert snapshot(settings) == before


@pytest.mark.slow
def test_with_labels_at_random_and_the_real_floors_the_gate_stays_shut_and_nobody_is_champion(house, smtp):
    settings, run, root = house
    (root / "spoiled").mkdir()
    run("demo-data", root / "spoiled/demo", "--images-per-class", PER_CLASS, "--shuffle-labels")
    mails = len(smtp[1].mails)
    variables = {
        "CXR_CONFIG": str(root / "real.toml"),
        "CXR_STORE__PREFIX": "shuffled/",
        "CXR_INBOX__PATH": str(root / "spoiled"),
    }
    done = run("retrain", "--run", "spoiled", "--json", variables=run.keywords["variables"] | variables)
    assert done.returncode == 0, done.stderr
    printed = strict(done.stdout)
    there = settings.replace(store={"prefix": "shuffled/"})
    record = ObjectStore(there.store).load("reports/spoiled/run.json", Run)
    assert printed["outcome"] == record.outcome == "refused"
    assert (record.decision.promote, record.champion) == (False, None)
    checks = {c.name: c for c in record.decision.checks}
    # It was really evaluated, on enough images, and is no better than chance.
    assert all(checks[f"test images {label}"].passed for label in CLASSES)
    assert not checks["macro F1"].passed and 0 <= checks["macro F1"].observed < 0.6
    assert [c.limit for n, c in checks.items() if n.startswith("recall")] == [0.95, 0.9, 0.7]
    assert not ObjectStore(there.store).exists("registry/champion.json")
    assert ObjectStore(there.store).load("registry/history/00001.json", HistoryEntry).action == "refused"
    assert len(smtp[1].mails) == mails + 1 and smtp[1].texts(-1)[0].startswith("[cxr] REFUSED light")


# Each command by itself


@pytest.fixture
def here(house, shallow_light, monkeypatch):
    """The house for commands in this process: settings and folder."""
    settings, run, root = house
    for name, value in run.keywords["variables"].items():
        monkeypatch.setenv(name, value)
    return settings, root


@pytest.fixture
def tiny(settings, few, smtp, shallow_light, tmp_path, monkeypatch):
    """Settings for single commands in this process, with a drop in the inbox."""
    (tmp_path / "cxr.toml").write_text(TINY.format(epochs=1, team=TEAM, port=smtp[0].port) + NO_FLOORS)
    monkeypatch.setenv("CXR_CONFIG", str(tmp_path / "cxr.toml"))
    monkeypatch.setenv("CXR_VALIDATION__EXPECTATIONS", str(few))
    answer("demo-data", f"{settings.inbox.path}/demo", "--images-per-class", 12)
    return settings


@pytest.mark.slow
def test_the_stages_one_by_one_print_json_and_end_with_a_champion(tiny, smtp, monkeypatch):
    mails = len(smtp[1].mails)
    (batch,) = answer("ingest")["batches"]
    assert answer("ingest", "demo") == {"batches": [batch]}
    (judged,) = answer("validate", batch)
    assert judged["batch"] == batch and judged["rejected_classes"].keys() == {"TUBERCULOSIS"}
    assert answer("ingest") == {"batches": []}
    dataset = answer("dataset")
    assert dataset["dataset"] == 1 and dataset == answer("dataset")
    (model,) = answer("train", 1)
    assert model["architecture"] == "light" and answer("train", 1, "light") == [model]
    (evaluation,) = answer("evaluate", model["model"])
    assert evaluation["model"] == model["model"]
    decision = answer("gate", model["model"], "--run", "r1")
    assert decision["promote"] is True and not ObjectStore(tiny.store).exists("registry/champion.json")
    entry = answer("promote", "--run", "r1")
    assert (entry["action"], entry["version"]) == ("promoted", 1) and answer("promote", "--run", "r1") == entry
    assert answer("report", batch, "--run", "r1")["outcome"] == "promoted"
    assert len(smtp[1].mails) == mails

    # The mail server is away, comes back, and gets the mail once.
    monkeypatch.setenv("CXR_MAIL__SMTP_PORT", str(free_port()))
    status, out, err = call("report", batch, "--run", "r1", "--to", TEAM, "--json")
    assert (status, out) == (3, "")
    assert f"the mail was not sent to {TEAM}: Connection refused" in err
    assert f"with: cxr-ml report {batch} --run r1 --to {TEAM}" in err
    monkeypatch.delenv("CXR_MAIL__SMTP_PORT")
    for _ in range(2):
        answer("report", batch, "--run", "r1", "--to", TEAM)
    assert len(smtp[1].mails) == mails + 1
    films = sorted(Path(tiny.inbox.path, "demo/test/NORMAL").iterdir())
    rows = answer("predict", *films)
    # By so few validation images some films are unlike the training's.
    assert all(row["predicted"] in CLASSES or row["refused"] == ["unlike_training"] for row in rows)
    assert any(row["predicted"] for row in rows)
    assert answer("predict", *films, "--model", model["model"]) == rows


@pytest.mark.slow
def test_what_died_in_training_is_taken_up_and_what_needs_approval_is_promoted_once_somebody_gives_it(
    tiny, monkeypatch
):
    from cxr_ml.errors import Refused
    from cxr_ml.training import train

    asked = []

    def stopped(_store, _settings, number, *_):
        asked.append(number)
        raise Refused("stopped in training")

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_model", stopped)
        for _ in range(2):
            status, out, err = call("retrain", "--json")
            assert (status, out) == (2, "") and "stopped in training" in err
        assert asked == [1, 1]
        # A ruling of a human makes a new dataset, though the inbox brings nothing.
        film = next(Path(tiny.inbox.path, "demo/train/NORMAL").iterdir())
        answer("quarantine", "withdraw", f"train/NORMAL/{film.name}", "--why", "another patient")
        assert call("retrain", "--json")[0] == 2
        assert asked == [1, 1, 2]

    monkeypatch.setenv("CXR_GATE__APPROVAL", "true")
    status, out, _ = call("retrain", "--run", "asked")
    decision = ObjectStore(tiny.store).load("reports/asked/decision.json", Decision)
    assert (status, decision.promote) == (0, True)
    assert ObjectStore(tiny.store).load(f"models/{decision.model}/model.json", Model).dataset == 2
    assert not list(ObjectStore(tiny.store).keys("registry/"))
    assert "yours to give: `cxr-ml promote --run asked`" in " ".join(out.split())
    assert answer("promote", "--run", "asked")["action"] == "promoted"


def test_an_empty_inbox_is_nothing_new(store, settings):
    assert answer("retrain") == {"outcome": "nothing_new"}
    assert answer("ingest") == {"batches": []}
    (page, record) = sorted(snapshot(settings))
    assert page.endswith("/index.html") and json.loads(store.get(record))["outcome"] == "nothing_new"


def test_a_drop_that_cannot_be_used_stops_no_other_and_ends_with_status_2_and_words(store, settings):
    inbox = Path(settings.inbox.path)
    (inbox / "a.zip").write_bytes(b"PK no archive")
    (inbox / "b/NORMAL").mkdir(parents=True)
    (inbox / "b/NORMAL/0.png").write_bytes(b"x")
    status, out, err = call("ingest", "--json")
    (batch,) = json.loads(out)["batches"]
    assert status == 2 and batch.startswith("b-") and "Refused: a.zip: " in err and "Left out, see above: a.zip." in err
    assert call("ingest", "a.zip", "b", "--json")[:2] == (2, "")

    shutil.rmtree(inbox / "b")
    status, out, err = call("retrain", "--run", "r", "--json")
    assert (status, json.loads(out)) == (2, {"outcome": "nothing_new"}) and "Left out, see above: a.zip." in err
    assert store.load("reports/r/run.json", Run).left_out == ("a.zip",)
    assert "the drop a.zip." in store.get("reports/r/index.html").decode()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["ingest", "lost"], "no drop of that name. Received: 'lost'"),
        (["validate", "lost"], "batches/lost/ingested/00000.parquet"),
        (["dataset"], "Put a drop into the inbox"),
        (["train", "7"], "datasets/7/dataset.json"),
        (["evaluate", "lost"], "models/lost/model.json"),
        (["gate", "lost", "--run", "r"], "models/lost/model.json"),
        (["promote", "--run", "lost"], "reports/lost/decision.json"),
        (["rollback", "--why", "a doubt"], "earlier champion"),
        (["rollback", "--why", " "], "needs a reason"),
        (["report", "--run", "lost"], "reports/lost/decision.json"),
        (["report", "--run", "lost", "--to", "stranger@example.org"], "allowed"),
        (["predict", "a.png"], "no champion yet"),
        (["demo-data", ".", "--images-per-class", "4"], "new or empty"),
    ],
)
def test_what_cannot_be_used_ends_with_status_2_its_name_and_an_empty_output(settings, args, words):
    status, out, err = call(*args, "--json")
    assert (status, out) == (2, "")
    assert err.startswith("Refused:") and words in err
    assert snapshot(settings) == {}


@pytest.mark.parametrize("command", [["gate", "m"], ["promote"], ["report"]])
@pytest.mark.parametrize("name", ["", "/", "..", "…", "\n"])
def test_a_name_of_a_run_of_which_nothing_can_be_in_a_key_is_refused(settings, command, name):
    status, out, err = call(*command, "--run", name)
    assert (status, out) == (2, "") and "A name with letters or digits was expected" in err


@pytest.mark.parametrize("command", [["promote"], ["report"]])
def test_the_name_of_a_run_is_made_fit_for_a_key_as_retrain_does(settings, command):
    for name in ("a/../b", "a\nb", "a__b"):
        assert "reports/a-" in (said := call(*command, "--run", name)[2]) and "b/decision.json" in said


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("CXR_TRAINING__IMAGE_SIZE", "7", "image_size"),
        ("CXR_CONFIG", "/nowhere/cxr.toml", "CXR_CONFIG"),
        ("CXR_INBOX__PATH", "/nowhere", "CXR_INBOX__PATH"),
        ("CXR_STORE__BUCKET", "never-made", "never-made"),
        ("AWS_SECRET_ACCESS_KEY", "wrong", "credentials"),
    ],
)
def test_a_wrong_setting_ends_with_status_2_and_its_name(
    settings, monkeypatch, forget_credentials, variable, value, words
):
    monkeypatch.setenv(variable, value)
    forget_credentials()
    for command in ("retrain", "ingest"):
        status, out, err = call(command, "--json")
        assert (status, out) == (2, "") and words in err


def test_a_store_that_cannot_be_reached_ends_with_status_3(settings, monkeypatch):
    address = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("CXR_STORE__ENDPOINT_URL", address)
    for command in (["ingest"], ["dataset"], ["retrain"], ["rollback", "--why", "a doubt"]):
        status, out, err = call(*command, "--json")
        assert (status, out) == (3, "") and err.startswith("Not reachable:") and address in err


def test_demo_data_is_written_where_it_is_asked_for_and_counted(tmp_path):
    told = answer("demo-data", tmp_path / "drop", "--seed", 1, "--images-per-class", 4)
    assert sum(told.values()) == len([p for p in (tmp_path / "drop").rglob("*") if p.is_file()])
    status, out, _ = call("demo-data", tmp_path / "other", "--images-per-class", 4)
    assert status == 0 and f"{sum(told.values())} files" in out
