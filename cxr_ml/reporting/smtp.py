"""Hands a mail to the SMTP server, and tries again where that may help."""

import contextlib
import logging
import smtplib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from email.message import EmailMessage

from cxr_ml.errors import Refused
from cxr_ml.settings import Settings

_PAUSES = (2.0, 8.0, 30.0)  # seconds before the second, third and fourth try
_PATIENCE = 6  # so many time-outs may one try take, all its commands together
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_log = logging.getLogger(__name__)


def _transient(error: Exception) -> bool:
    if isinstance(error, smtplib.SMTPServerDisconnected):
        return True
    if isinstance(error, smtplib.SMTPResponseException):
        return 400 <= error.smtp_code < 500
    # SMTPException and SSLCertVerificationError are OSErrors too, and waiting mends neither.
    return isinstance(error, OSError) and not isinstance(error, smtplib.SMTPException | ssl.SSLCertVerificationError)


def _hang_up(smtp: smtplib.SMTP) -> None:
    with contextlib.suppress(OSError, AttributeError):  # closed by itself
        smtp.sock.shutdown(socket.SHUT_RDWR)


def _deliver(message: EmailMessage, settings: Settings, to: list[str]) -> dict[str, tuple[int, bytes]]:
    """The recipients that the server refused, each with its answer."""
    smtp = smtplib.SMTP(timeout=settings.smtp_timeout)
    # A server that says a byte now and then never runs into the time-out of the socket.
    watch = threading.Timer(_PATIENCE * settings.smtp_timeout, _hang_up, [smtp])
    watch.daemon = True
    watch.start()
    try:
        # Whose certificate STARTTLS expects. By itself smtplib knows it only from its constructor, which connects.
        smtp._host = settings.smtp_host
        smtp.connect(settings.smtp_host, settings.smtp_port)
        if settings.smtp_starttls:
            smtp.starttls(context=ssl.create_default_context())
        if settings.smtp_user:
            smtp.login(settings.smtp_user, settings.smtp_password)
        try:
            return smtp.send_message(message, to_addrs=to)
        except smtplib.SMTPRecipientsRefused as error:
            return error.recipients
    finally:
        # The mail is accepted, or not, before QUIT: a failing QUIT must not send it again.
        with contextlib.suppress(OSError):
            if smtp.sock is not None:
                smtp.quit()
        watch.cancel()
        smtp.close()


def send(
    message: EmailMessage,
    settings: Settings,
    to: Sequence[str] | None = None,
    taken: Callable[[str], object] | None = None,
) -> None:
    """Hands the mail to the SMTP server; tries again after 2, 8 and 30 seconds on errors that pass.

    Recipients that the server took are not sent to again.

    Args:
        message: the mail.
        settings: the server.
        to: who of the recipients in the mail is to get it; None: all.
        taken: called with each recipient, as soon as the server has taken the mail for them.

    Raises:
        Refused: trying again cannot help: the server refused some recipients, the login or the mail for good, or its
            certificate is not trusted, or a login without STARTTLS would send the password in the clear over a network.
        OSError: any other error of the last try (smtplib's errors are OSErrors).
    """
    if settings.smtp_user and not settings.smtp_starttls and settings.smtp_host not in _LOOPBACK:
        raise Refused(
            "A login to a mail server needs STARTTLS, or the password travels in the clear. Received: "
            f"smtp_user {settings.smtp_user!r} at {settings.smtp_host!r} without it. Set CXR_SMTP_STARTTLS=true."
        )
    pending = list(to) if to is not None else [address.addr_spec for address in message["To"].addresses]
    lost: dict[str, tuple[int, bytes]] = {}
    for pause in (*_PAUSES, None):
        try:
            refused = _deliver(message, settings, pending)
        except OSError as error:
            if not _transient(error):
                raise Refused(_for_good(settings, said(error))) from error
            if pause is None:
                raise
            _log.warning("The mail server did not take the mail (%s); trying again in %.0f s.", said(error), pause)
        else:
            for address in pending:
                if taken and address not in refused:
                    taken(address)
            passing = {a: e for a, e in refused.items() if 400 <= e[0] < 500}
            lost |= {a: e for a, e in refused.items() if a not in passing}
            pending = list(passing)
            if not pending:
                break
            if pause is None:
                raise smtplib.SMTPRecipientsRefused(passing)
            _log.warning("The mail server put off %s; trying again in %.0f s.", ", ".join(pending), pause)
        time.sleep(pause)
    if lost:
        raise Refused(_for_good(settings, said(smtplib.SMTPRecipientsRefused(lost))))


def said(error: Exception) -> str:
    """What a mail server said, for people."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return "; ".join(f"{a}: {code} {_text(text)}" for a, (code, text) in error.recipients.items())
    if isinstance(error, smtplib.SMTPResponseException):
        return f"{error.smtp_code} {_text(error.smtp_error)}"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _text(answer: bytes | str) -> str:
    return answer.decode(errors="replace") if isinstance(answer, bytes) else answer


def _for_good(settings: Settings, received: str) -> str:
    return (
        f"The mail server {settings.smtp_host}:{settings.smtp_port} does not take this mail, and trying again cannot "
        f"help. Received: {received.rstrip('.')}. Check CXR_SMTP_* (or the Airflow connection of CXR_SMTP_CONN_ID), "
        "CXR_MAIL_FROM and CXR_MAIL_ALLOWED."
    )
