"""The mails, through a real SMTP server and parsed back."""

import base64
import re

import chromium
import pytest
import report_samples as samples
import smtp_samples
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

from cxr_ml.errors import Refused
from cxr_ml.records import HistoryEntry, Run
from cxr_ml.reporting import failures, messages, smtp, troubleshooting
from cxr_ml.settings import Settings

pytestmark = pytest.mark.usefixtures("blank_plots")

TEAM = "team@hospital.example"
SECOND = "second@hospital.example"
SETTINGS = Settings(mail={"sender": "cxr@hospital.example", "allowed": (TEAM, SECOND), "recipients": (TEAM,)})
EVIL = "<script>alert(1)</script>"
LINK = "https://store.example/reports/x/index.html"


def at(controller, **changes) -> Settings:
    return smtp_samples.at(controller, SETTINGS, **changes)


def outcome(run=None, settings=SETTINGS, to=(TEAM,), link=LINK):
    return messages.outcome_message(run or samples.run(), settings, to, link)


def failure(error, settings=SETTINGS, step="train [1]", run="scheduled__1", link="https://airflow.example/log"):
    return messages.failure_message(
        settings.mail, (TEAM,), failures.describe_failure(settings, run, step, error, link), LINK
    )


def text_of(message) -> str:
    return message.get_body(("plain",)).get_content()


def html_of(message) -> str:
    return message.get_body(("html",)).get_content()


@pytest.mark.plots
def test_a_promotion_arrives_as_text_html_and_two_plots(mail_server):
    smtp.send(outcome(to=(TEAM, SECOND)), at(mail_server).mail)
    assert len(mail_server.handler.mails) == 1 and mail_server.handler.mails[0][0] == (TEAM, SECOND)
    got = mail_server.handler.parsed()
    assert got["Subject"] == "[cxr] PROMOTED inception_v3 v12: COVID19 97.8 %, PNEUMONIA 93.3 %, macro F1 0.94"
    assert got["To"] == f"{TEAM}, {SECOND}" and got["From"] == "cxr@hospital.example"
    assert "recall COVID19: 97.8 %" in text_of(got) and LINK in text_of(got)
    html = html_of(got)
    wanted = set(re.findall(r'src="cid:(\w+)"', html))
    pictures = [p for p in got.walk() if p.get_content_type() == "image/png"]
    assert {p["Content-ID"].strip("<>") for p in pictures} == wanted == {"recalls", "confusion"}
    assert all(p.get_payload(decode=True).startswith(b"\x89PNG") for p in pictures)
    assert "97.8 %" in html, "the figures stand without images"
    assert not re.findall(r'src="(?!cid:)', html)
    assert len(mail_server.handler.mails[0][1]) < messages.MAX_BYTES


def test_a_refusal_names_the_first_failed_check_in_the_subject():
    assert outcome(samples.run(test=samples.POOR))["Subject"] == (
        "[cxr] REFUSED inception_v3: recall COVID19 90.0 % below 95 %"
    )


def test_further_failed_checks_are_counted_in_the_subject():
    run = samples.run(test=((45, 25, 20), (20, 50, 20), (20, 20, 50)))
    assert outcome(run)["Subject"].endswith("recall COVID19 55.6 % below 95 % (+3 more)")


@pytest.mark.plots
def test_nan_is_not_evaluated_in_subject_text_and_html():
    run = samples.run(test=((90, 0, 0), (0, 0, 0), (0, 0, 90)))
    message = outcome(run)
    assert message["Subject"].startswith("[cxr] REFUSED inception_v3: recall COVID19 not evaluated")
    for body in (text_of(message), html_of(message)):
        assert "not evaluated" in body and not re.search(r"\bnan\b", body, re.IGNORECASE)


def test_a_promoted_run_whose_figure_is_missing_does_not_boast_of_it():
    settings = SETTINGS.replace(gate={"recall_floors": {"TUBERCULOSIS": 0.99, "COVID19": 0.9}})
    assert "TUBERCULOSIS not evaluated" in messages.subject(samples.run(), settings.gate)


def test_a_run_without_decision_dataset_or_champion_has_a_mail_without_plots():
    run = Run(
        run="manual__1", outcome="nothing_new", batches=(), dataset=None, models=(), evaluations=(), decision=None,
        champion=None,
    )  # fmt: skip
    message = outcome(run)
    assert message["Subject"].startswith("[cxr] NOTHING NEW: The inbox brought no new image")
    assert "cid:" not in html_of(message) and "No candidate went to the gate" in text_of(message)


@pytest.mark.plots
@pytest.mark.filterwarnings("ignore:Glyph")
def test_hostile_names_arrive_harmless(mail_server):
    classes = (EVIL, "COVID19\r\nBcc: thief@evil.example", '"><img src=x onerror=alert(1)>')
    counts = ((9, 0, 1), (0, 9, 1), (1, 0, 9))
    drop = samples.batch(drop=f"x\r\nBcc: thief@evil.example\r\n\r\n{EVIL}\u202e\ud800", rejected_classes={EVIL: EVIL})
    run = samples.run(test=counts, champion=counts, classes=classes, batches=(drop,), run="r\nBcc: thief@evil.example")
    checks = (samples.check(f"recall {classes[1]}", 0.9, 0.95, reason=EVIL),)
    decision = run.decision.model_copy(update={"checks": checks, "reason": f"{EVIL}\r\nBcc: thief@evil.example"})
    run = run.model_copy(update={"decision": decision, "outcome": "refused"})
    smtp.send(outcome(run, link="javascript:alert(1)"), at(mail_server).mail)
    got = mail_server.handler.parsed()
    assert mail_server.handler.mails[0][0] == (TEAM,) and got["Bcc"] is None
    assert "\n" not in got["Subject"] and "recall COVID19 Bcc: thief" in got["Subject"].replace("  ", " ")
    html = html_of(got)
    assert "<script" not in html and "<img src=x" not in html and "&lt;script&gt;" in html
    assert 'href="javascript' not in html and "\u202e" not in html
    assert not re.search(r"^Bcc:", text_of(got), re.MULTILINE)


@pytest.mark.plots
@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_mail_with_many_long_names_stays_small_and_its_subject_short():
    classes = tuple(f"{'LONG ' * 60}{i}" for i in range(16))
    counts = tuple(tuple(40 if r == c else (r * c) % 7 for c in range(16)) for r in range(16))
    batches = tuple(
        samples.batch(drop="y" * 5000, rejected_classes={c: "z" * 9000 for c in classes}) for _ in range(200)
    )
    message = outcome(samples.run(test=counts, champion=counts, classes=classes, batches=batches))
    assert len(bytes(message)) < messages.MAX_BYTES
    assert len(message["Subject"]) <= 150


@pytest.mark.plots
def test_plots_that_would_make_the_mail_too_large_are_left_out(monkeypatch):
    monkeypatch.setattr(messages, "MAX_BYTES", 20_000)
    message = outcome()
    assert len(bytes(message)) < 20_000
    assert "cid:" not in html_of(message) and "97.8 %" in html_of(message)


def test_the_message_id_is_the_same_for_every_try_and_differs_between_mails():
    first, again = outcome()["Message-ID"], outcome()["Message-ID"]
    others = {outcome(samples.run(run="other"))["Message-ID"], failure("x")["Message-ID"],
              failure("x", step="train [2]")["Message-ID"], failure("x", run="2")["Message-ID"]}  # fmt: skip
    assert first == again and len({first} | others) == 5
    assert re.fullmatch(r"<[\w.-]+@hospital\.example>", first)


def test_only_allowed_addresses_get_mail():
    with pytest.raises(Refused, match=r"'boss@evil\.example'.*CXR_MAIL__ALLOWED"):
        outcome(to=(TEAM, "boss@evil.example"))
    with pytest.raises(Refused, match="allowed"):
        messages.allowed((f"{TEAM}\r\nBcc: thief@evil.example",), SETTINGS.mail)
    with pytest.raises(Refused, match="allowed"):
        messages.allowed((f"{TEAM}, thief@evil.example",), SETTINGS.mail)


def test_allowed_addresses_are_taken_once_whatever_their_case():
    assert messages.allowed((" Team@Hospital.example", TEAM, SECOND), SETTINGS.mail) == (TEAM, SECOND)
    assert messages.allowed((), SETTINGS.mail) == ()


def test_a_mail_to_nobody_is_refused():
    with pytest.raises(Refused, match="at least one recipient"):
        outcome(to=())


@pytest.mark.parametrize("sender", ["", "nobody at all", "a@b\r\nBcc: thief@evil.example"])
def test_a_sender_that_is_no_address_is_refused_in_words(sender):
    with pytest.raises(Refused, match="plain addresses"):
        outcome(settings=SETTINGS.replace(mail={"sender": sender}))


def test_a_failure_says_which_step_why_and_what_to_do(mail_server):
    error = Refused(f"The folder must hold weights.\nReceived: {EVIL}. Set CXR_WEIGHTS_DIR.")
    smtp.send(failure(error), at(mail_server).mail)
    got = mail_server.handler.parsed()
    assert got["Subject"] == "[cxr] FAILED at train [1]: The folder must hold weights."
    for part in ("FAILED at train [1]", "Why (Refused)", f"  Received: {EVIL}", "Trying again without changing it"):
        assert part in text_of(got)
    assert "<script" not in html_of(got) and 'href="https://airflow.example/log"' in html_of(got)


def test_a_failure_keeps_secrets_to_itself(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "deep-secret")
    settings = SETTINGS.replace(mail={"smtp_password": "hush"})
    message = failure(RuntimeError("deep-secret hush at postgresql://airflow:pw@db/x"), settings)
    whole = text_of(message) + html_of(message) + message["Subject"]
    assert "deep-secret" not in whole and "hush" not in whole and ":pw@" not in whole
    assert "postgresql://airflow:***@db/x" in text_of(message)


def test_an_error_without_words_or_with_too_many_still_makes_a_mail():
    assert "without a message" in text_of(failure(KeyError.__new__(KeyError)))
    assert len(bytes(failure(ValueError("long\n" * 100_000)))) < 50_000
    assert failure("a\r\nBcc: thief@evil.example", step="x\r\nBcc: y")["Bcc"] is None


class AirflowTaskTimeout(BaseException):
    """Named like Airflow's, which this package does not import."""


def caused(outer: BaseException, inner: BaseException) -> BaseException:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (Refused("bad drop"), "The message above says"),
        (caused(RuntimeError("task failed"), Refused("connection refused")), "The message above says"),
        (EndpointConnectionError(endpoint_url="http://s3"), "object store answers"),
        (ClientError({"Error": {"Code": "503", "Message": "SlowDown"}}, "PutObject"), "object store answers"),
        (ConnectionResetError("reset"), "object store answers"),
        (ClientError({"Error": {"Code": "403", "Message": "Forbidden"}}, "HeadBucket"), "Check the keys"),
        (ClientError({"Error": {"Code": "AccessDenied", "Message": ""}}, "PutObject"), "Check the keys"),
        (NoCredentialsError(), "Check the keys"),
        (
            MemoryError(),
            "lower the batch size: start a new run with CXR_TRAINING__BATCH_SIZE=24 (or in the form; now 48)",
        ),
        ("The task was killed from outside", "CXR_TRAINING__BATCH_SIZE=24"),
        (AirflowTaskTimeout("Timeout, PID: 7"), "longer than its time-out"),
        (OSError(28, "No space left on device"), "disk is full"),
        (ZeroDivisionError("epoch 403, skilled"), "There is no advice"),
    ],
)
def test_advice_fits_the_kind_of_error(error, says):
    assert says in troubleshooting.advise(error, 48)
    assert (
        says in failures.describe_failure(SETTINGS.replace(training={"batch_size": 48}), "r", "train", error, "").advice
    )


MANY = tuple(tuple(80 if t == p else (t * p) % 7 for p in range(12)) for t in range(12))
LONG = tuple(f"A CLASS WITH A VERY LONG NAME {n}" for n in range(12))


def test_what_is_most_often_taken_for_what_is_said_in_words_for_those_who_see_no_images():
    run = samples.run(test=samples.POOR)
    for body in (text_of(outcome(run)), html_of(outcome(run))):
        said = [line for line in re.findall(r"\w+ taken for \w+: \d+ of \d+ \([\d.]+\s%\)", body)]
        assert said[0] == "NORMAL taken for COVID19: 6 of 90 (6.7\u00a0%)" and len(said) == 5


def test_of_many_classes_the_mail_says_how_many_are_in_the_report_only_and_brings_no_illegible_matrix():
    run = samples.run(test=MANY, champion=MANY, classes=LONG)
    checks = tuple(samples.check(f"c{n}", 0.1, 0.5, reason="No.") for n in range(14))
    message = outcome(run.model_copy(update={"decision": run.decision.model_copy(update={"checks": checks})}))
    assert "And 4 more classes, in the report." in text_of(message) and "And 2 more, in the report." in text_of(message)
    assert "And 4 more classes, in the report." in html_of(message) and "And 2 more, in the report." in html_of(message)
    assert re.findall(r'src="cid:(\w+)"', html_of(message)) == ["recalls"]


def bodies():
    failed = failures.describe_failure(
        SETTINGS, "scheduled__1", "train [1]", Refused("models/" + "x" * 300), "https://a.example/log"
    )
    entry = HistoryEntry(
        number=3, action="rolled_back", model="a" * 90, previous="b" * 90, version=3, by="eve", why="w" * 300,
        at="2026-01-12T03:00:00+00:00", run="manual-1",
    )  # fmt: skip
    links = {"This run in the console": f"https://airflow.example/{'x' * 200}"}
    return {
        "promoted": outcome(),
        "refused": outcome(samples.run(test=samples.POOR), link=f"s3://bucket/{'x' * 200}"),
        "twelve": outcome(samples.run(test=MANY, champion=MANY, classes=LONG)),
        "failed": messages.failure_message(SETTINGS.mail, (TEAM,), failed, LINK, links),
        "rolled back": messages.rollback_message(SETTINGS.mail, (TEAM,), entry, links),
    }


@pytest.mark.plots
@pytest.mark.slow
def test_no_mail_is_wider_than_its_window_with_or_without_images():
    pages = {}
    for name, message in bodies().items():
        html = pages[f"{name}, images blocked"] = html_of(message)
        for part in message.walk():
            if part.get_content_type() == "image/png":
                data = base64.b64encode(part.get_payload(decode=True)).decode()
                html = html.replace(f"cid:{part['Content-ID'].strip('<>')}", f"data:image/png;base64,{data}")
        pages[name] = html
    assert chromium.wider_than(pages, 390, 1280) == []
