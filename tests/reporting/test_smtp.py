"""Mails handed to real SMTP servers: good, busy, slow, broken, and such as ask for STARTTLS and a login."""

import contextlib
import datetime
import ipaddress
import smtplib
import socket
import ssl
import threading
import time

import pytest
import report_samples as samples
import smtp_samples
from aiosmtpd.smtp import AuthResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cxr_ml.errors import Refused
from cxr_ml.reporting import messages, smtp
from cxr_ml.settings import Settings

TEAM = "team@hospital.example"
SECOND = "second@hospital.example"
SETTINGS = Settings(mail={"sender": "cxr@hospital.example", "allowed": (TEAM, SECOND), "recipients": (TEAM,)})


def at(controller, **changes) -> Settings:
    return smtp_samples.at(controller, SETTINGS, **changes)


def outcome(to=(TEAM,)):
    return messages.outcome_message(samples.run(), SETTINGS, to, "s3://cxr/reports/x/index.html")


@pytest.fixture
def certificate(tmp_path):
    """Files of a key and a self-signed certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mail server of the tests")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )  # fmt: skip
    return tmp_path / "crt", tmp_path / "key"


@pytest.fixture
def guarded(certificate):
    """A server that takes mail only after STARTTLS and the login cxr / right."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)

    def login(server, session, envelope, mechanism, data):
        return AuthResult(success=(data.login, data.password) == (b"cxr", b"right"), handled=False)

    controller = smtp_samples.started(
        tls_context=context, require_starttls=True, authenticator=login, auth_required=True
    )
    yield controller
    controller.stop()


def test_mail_goes_through_starttls_and_login(guarded, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    smtp.send(outcome(), at(guarded, smtp_starttls=True, smtp_user="cxr", smtp_password="right").mail)
    session = guarded.handler.mails[0][2]
    assert session.ssl is not None and session.authenticated


def test_a_certificate_that_nobody_vouches_for_is_refused(guarded):
    with pytest.raises(Refused, match="certificate verify failed"):
        smtp.send(outcome(), at(guarded, smtp_starttls=True, smtp_user="cxr", smtp_password="right").mail)
    assert guarded.handler.mails == []


def test_a_wrong_password_is_refused(guarded, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    with pytest.raises(Refused, match=r"535.*CXR_MAIL__SMTP_\*"):
        smtp.send(outcome(), at(guarded, smtp_starttls=True, smtp_user="cxr", smtp_password="wrong").mail)


def test_a_server_that_does_not_offer_starttls_is_refused(mail_server):
    with pytest.raises(Refused, match="STARTTLS extension not supported"):
        smtp.send(outcome(), at(mail_server, smtp_starttls=True).mail)
    assert mail_server.handler.mails == []


def test_a_password_never_crosses_a_network_in_clear():
    with pytest.raises(Refused, match="CXR_MAIL__SMTP_STARTTLS"):
        smtp.send(outcome(), SETTINGS.replace(mail={"smtp_host": "mail.example", "smtp_user": "cxr"}).mail)


@pytest.mark.parametrize(
    "answers", [{"data": ["451 Busy"]}, {"rcpt": ["450 Greylisted"]}, {"quit": [], "data": ["421 x"]}]
)
def test_a_temporary_refusal_raises_an_os_error(mail_server, answers):
    vars(mail_server.handler).update(answers)
    with pytest.raises(smtplib.SMTPException):
        smtp.send(outcome(), at(mail_server).mail)
    assert mail_server.handler.mails == []
    smtp.send(outcome(), at(mail_server).mail)
    assert len(mail_server.handler.mails) == 1


def test_a_server_that_greets_with_a_refusal_is_told_apart():
    with pytest.raises(smtplib.SMTPConnectError, match="421"):
        smtp.send(outcome(), greeted_with(b"421 Busy\r\n").mail)
    with pytest.raises(Refused, match=r"trying again cannot help.*554 No"):
        smtp.send(outcome(), greeted_with(b"554 No\r\n").mail)


def greeted_with(line: bytes) -> Settings:
    """Settings of a server that says one line and hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer():
        with listener, listener.accept()[0] as connection:
            connection.sendall(line)
            connection.recv(100)

    threading.Thread(target=answer, daemon=True).start()
    return SETTINGS.replace(mail={"smtp_host": "127.0.0.1", "smtp_port": listener.getsockname()[1]})


def test_a_permanent_refusal_is_refused(mail_server):
    mail_server.handler.data = ["554 No"]
    with pytest.raises(Refused, match=r"trying again cannot help.*554"):
        smtp.send(outcome(), at(mail_server).mail)
    assert mail_server.handler.mails == []


def test_a_server_that_is_down_raises_an_os_error():
    settings = SETTINGS.replace(mail={"smtp_host": "127.0.0.1", "smtp_port": smtp_samples.free_port()})
    with pytest.raises(ConnectionRefusedError):
        smtp.send(outcome(), settings.mail)


def test_a_server_that_never_answers_is_left_after_the_time_out():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        settings = {"smtp_host": "127.0.0.1", "smtp_port": silent.getsockname()[1], "smtp_timeout": 0.2}
        with pytest.raises(OSError, match="timed out"):
            smtp.send(outcome(), SETTINGS.replace(mail=settings).mail)


def test_a_deferred_recipient_raises_after_the_others_got_theirs(mail_server):
    mail_server.handler.rcpt = ["250 OK", "450 Greylisted"]
    accepted = []
    with pytest.raises(smtplib.SMTPRecipientsRefused):
        smtp.send(outcome(to=(TEAM, SECOND)), at(mail_server).mail, on_accepted=accepted.append)
    assert accepted == [TEAM]
    assert [to for to, _, _ in mail_server.handler.mails] == [(TEAM,)]


def test_a_permanently_refused_recipient_is_told_after_the_others_got_theirs(mail_server):
    mail_server.handler.rcpt = ["550 Unknown", "250 OK"]
    with pytest.raises(Refused, match=f"{TEAM}: 550 Unknown"):
        smtp.send(outcome(to=(TEAM, SECOND)), at(mail_server).mail)
    assert [to for to, _, _ in mail_server.handler.mails] == [(SECOND,)]


def test_with_one_deferred_and_one_refused_recipient_trying_again_may_help(mail_server):
    mail_server.handler.rcpt = ["550 Unknown", "450 Greylisted"]
    with pytest.raises(smtplib.SMTPRecipientsRefused) as raised:
        smtp.send(outcome(to=(TEAM, SECOND)), at(mail_server).mail)
    assert smtp.describe_error(raised.value) == f"{TEAM}: 550 Unknown; {SECOND}: 450 Greylisted"


def test_trouble_after_the_mail_was_accepted_is_no_failure(mail_server):
    mail_server.handler.quit = ["421 Shutting down"]
    smtp.send(outcome(), at(mail_server).mail)
    assert len(mail_server.handler.mails) == 1


def test_only_those_who_still_wait_get_it_but_all_are_named_in_it(mail_server):
    smtp.send(outcome(to=(TEAM, SECOND)), at(mail_server).mail, [SECOND])
    assert [to for to, _, _ in mail_server.handler.mails] == [(SECOND,)]
    assert mail_server.handler.parsed()["To"] == f"{TEAM}, {SECOND}"


@pytest.mark.slow
@pytest.mark.parametrize("begin", [b"", b"220 slow\r\n"])
def test_a_server_that_sends_a_byte_now_and_then_is_hung_up_on(begin):
    # Each byte comes within the time-out of the socket, which therefore never strikes.
    with socket.socket() as slow:
        slow.bind(("127.0.0.1", 0))
        slow.listen()

        def drip():
            with contextlib.suppress(OSError):
                while True:
                    line, _ = slow.accept()
                    threading.Thread(target=drip_on, args=[line], daemon=True).start()

        def drip_on(line):
            with contextlib.suppress(OSError):
                line.sendall(begin)
                for _ in range(600):
                    line.sendall(b"2")
                    time.sleep(0.05)

        threading.Thread(target=drip, daemon=True).start()
        settings = {"smtp_host": "127.0.0.1", "smtp_port": slow.getsockname()[1], "smtp_timeout": 0.1}
        begun = time.monotonic()
        with pytest.raises(OSError):  # noqa: PT011
            smtp.send(outcome(), SETTINGS.replace(mail=settings).mail)
    assert time.monotonic() - begun < 5
