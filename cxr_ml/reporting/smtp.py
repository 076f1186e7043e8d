"""Hands a mail to the SMTP server, once; whoever calls decides whether to try again."""

import contextlib
import smtplib
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from email.message import EmailMessage

from cxr_ml.errors import Refused
from cxr_ml.settings import MailSettings

MAX_TIMEOUTS = 6  # a session, all its commands together, may take this many times `smtp_timeout`
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}

Refusals = dict[str, tuple[int, bytes]]  # recipient -> code and text of the server's answer


class _Session(smtplib.SMTP):
    """An SMTP session with a limit on its whole duration.

    A server that sends a byte now and then never runs into the time-out of the socket.
    """

    def __init__(self, host: str, port: int, timeout: float) -> None:
        self._timer = threading.Timer(MAX_TIMEOUTS * timeout, self._hang_up)
        self._timer.daemon = True
        self._timer.start()
        try:
            super().__init__(host, port, timeout=timeout)
        except OSError:
            self.close()
            raise

    def _hang_up(self) -> None:
        connection = self.sock
        if connection is not None:
            with contextlib.suppress(OSError):  # closed in the meantime
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._timer.cancel()
        super().close()


def send(
    message: EmailMessage,
    settings: MailSettings,
    to: Sequence[str] | None = None,
    on_accepted: Callable[[str], object] | None = None,
) -> None:
    """Hands a mail to the SMTP server, once.

    Args:
        message: the mail.
        settings: the server.
        to: which of the recipients named in the mail are to get it; None: all.
        on_accepted: called with each recipient for whom the server accepted the mail.

    Raises:
        Refused: trying again cannot help: the server refused some recipients, the login or the mail permanently (5xx),
            its certificate is not trusted, or a login without STARTTLS would send the password in the clear.
        OSError: a temporary failure: the server cannot be reached, or deferred the mail or some recipients (4xx).
            (smtplib's errors are OSErrors.)
    """
    if settings.smtp_user and not settings.smtp_starttls and settings.smtp_host not in _LOOPBACK:
        raise Refused(
            "A login to a mail server needs STARTTLS, or the password travels in the clear. Received: "
            f"smtp_user {settings.smtp_user!r} at {settings.smtp_host!r} without it. Set CXR_MAIL__SMTP_STARTTLS=true."
        )
    recipients = list(to) if to is not None else [address.addr_spec for address in message["To"].addresses]
    try:
        refusals = _deliver(message, settings, recipients)
    except OSError as error:
        if _is_temporary(error):
            raise
        raise Refused(_permanently(settings, describe_error(error))) from error
    for address in recipients:
        if on_accepted and address not in refusals:
            on_accepted(address)
    if refusals:
        refused = smtplib.SMTPRecipientsRefused(refusals)
        if any(_is_deferral(code) for code, _ in refusals.values()):
            raise refused
        raise Refused(_permanently(settings, describe_error(refused)))


def _deliver(message: EmailMessage, settings: MailSettings, recipients: list[str]) -> Refusals:
    """Returns the recipients that the server refused, each with its answer."""
    session = _Session(settings.smtp_host, settings.smtp_port, settings.smtp_timeout)
    try:
        if settings.smtp_starttls:
            session.starttls(context=ssl.create_default_context())
        if settings.smtp_user:
            session.login(settings.smtp_user, settings.smtp_password)
        try:
            return session.send_message(message, to_addrs=recipients)
        except smtplib.SMTPRecipientsRefused as error:
            return error.recipients
    finally:
        # The mail was accepted, or not, before QUIT: a QUIT that fails must not send it again.
        with contextlib.suppress(OSError):
            if session.sock is not None:
                session.quit()
        session.close()


def _is_deferral(code: int) -> bool:
    """Whether a reply code is no permanent refusal, 5xx (RFC 5321, section 4.2.1)."""
    return code < 500


def _is_temporary(error: OSError) -> bool:
    if isinstance(error, smtplib.SMTPServerDisconnected):
        return True
    if isinstance(error, smtplib.SMTPResponseException):
        return _is_deferral(error.smtp_code)
    # SMTPException and SSLCertVerificationError are OSErrors too, and waiting mends neither.
    return not isinstance(error, smtplib.SMTPException | ssl.SSLCertVerificationError)


def describe_error(error: Exception) -> str:
    """Returns what a mail server answered, in words for people."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return "; ".join(f"{a}: {code} {_decode(text)}" for a, (code, text) in error.recipients.items())
    if isinstance(error, smtplib.SMTPResponseException):
        return f"{error.smtp_code} {_decode(error.smtp_error)}"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _decode(text: bytes | str) -> str:
    return text.decode(errors="replace") if isinstance(text, bytes) else text


def _permanently(settings: MailSettings, received: str) -> str:
    return (
        f"The mail server {settings.smtp_host}:{settings.smtp_port} does not take this mail, and trying again cannot "
        f"help. Received: {received.rstrip('.')}. Check CXR_MAIL__SMTP_* (or the Airflow connection of "
        "CXR_MAIL__SMTP_CONN_ID), CXR_MAIL__SENDER and CXR_MAIL__ALLOWED."
    )
