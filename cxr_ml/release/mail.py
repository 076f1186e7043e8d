"""Mails about a run: what happened, or which step failed and what to do."""

import contextlib
import hashlib
import logging
import smtplib
import ssl
import time
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate

from cxr_ml.errors import Refused
from cxr_ml.records import FailedStep, HistoryEntry, Run
from cxr_ml.release import figures, reading, words
from cxr_ml.release.report import page
from cxr_ml.settings import Settings

MAX_BYTES = 1_000_000  # of a whole mail; many servers and phones load larger ones late or not at all
_SUBJECT = 150  # characters; phones show about 60
_PAUSES = (2.0, 8.0, 30.0)  # seconds before the second, third and fourth try
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_log = logging.getLogger(__name__)


def allowed(recipients: tuple[str, ...], settings: Settings) -> tuple[str, ...]:
    """The recipients, each once, spelled as in `mail_allowed`.

    Raises:
        Refused: an address that is not in `mail_allowed`.
    """
    known = {address.casefold(): address for address in settings.mail_allowed}
    for address in recipients:
        if address.strip(" ").casefold() not in known:
            raise Refused(
                f"Mail goes only to addresses in mail_allowed ({', '.join(settings.mail_allowed) or 'none'}). "
                f"Received: {address!r}. Choose one of these, or add it to mail_allowed (CXR_MAIL_ALLOWED)."
            )
    return tuple(dict.fromkeys(known[address.strip(" ").casefold()] for address in recipients))


def _message(
    settings: Settings, recipients: tuple[str, ...], subject: str, run: str, kind: str, text: str, html: str
) -> EmailMessage:
    to = allowed(recipients, settings)
    if not to:
        raise Refused("A mail needs at least one recipient. Received: none. Set CXR_MAIL_TO or choose one in the form.")
    message = EmailMessage(policy=SMTP)
    try:
        sender = Address(addr_spec=settings.mail_from)
        message["From"] = sender
        message["To"] = [Address(addr_spec=address) for address in to]
    except (ValueError, IndexError) as error:
        raise Refused(
            f"mail_from and mail_allowed must hold plain addresses such as team@hospital.example ({error}). "
            f"Received: {settings.mail_from!r}, {to!r}"
        ) from None
    message["Subject"] = words.plain(subject, _SUBJECT)
    message["Date"] = formatdate()
    # The same for every try: mail programs show a mail once if an answer of the server was lost.
    digest = hashlib.sha256(f"{kind}\0{run}".encode("utf-8", "replace")).hexdigest()[:32]
    message["Message-ID"] = f"<{digest}.{kind}@{sender.domain or 'localhost'}>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(text)
    message.add_alternative(html, subtype="html")
    return message


def _attach(message: EmailMessage, pictures: dict[str, bytes]) -> None:
    html = message.get_payload()[1]
    for name, png in pictures.items():
        html.add_related(png, "image", "png", cid=f"<{name}>", filename=f"{name}.png", disposition="inline")


def subject(run: Run, settings: Settings) -> str:
    """`[cxr] PROMOTED inception_v3 v12: COVID19 98.7 %, PNEUMONIA 93.1 %, macro F1 0.91`, or the first failed check."""
    evaluation, failed = reading.chosen(run), reading.failed(run)
    number = reading.version(run)
    start = " ".join(
        filter(
            None, ("[cxr]", reading.outcome(run), words.plain(reading.architecture(run), 40), number and f"v{number}")
        )
    )
    if run.outcome == "promoted" and evaluation is not None:
        # The two classes that matter most are those with the highest floors.
        names = sorted(settings.recall_floors, key=lambda n: -settings.recall_floors[n])[:2]
        test = evaluation.test
        parts = [
            f"{words.plain(n, 24)} {words.percent(test.classes[n].recall if n in test.classes else None)}"
            for n in names
        ]
        return f"{start}: {', '.join([*parts, f'macro F1 {words.score(test.macro_f1)}'])}"
    if failed:
        more = f" (+{len(failed) - 1} more)" if len(failed) > 1 else ""
        return f"{start}: {words.plain(reading.complaint(failed[0]), 90)}{more}"
    return f"{start}: {reading.reason(run)}"


def outcome_message(run: Run, settings: Settings, recipients: tuple[str, ...], report_link: str) -> EmailMessage:
    """The mail about a run that ended: text and HTML, with two plots inside, whole without them. No X-ray in it.

    Raises:
        Refused: no recipient, one that is not allowed, or an address that is none.
    """
    evaluation = reading.chosen(run)
    pictures = {}
    if evaluation is not None:
        pictures["recalls"] = figures.recalls(run, settings.recall_floors)
        pictures["confusion"] = figures.confusion(evaluation.test, tuple(evaluation.test.classes))
    values = {
        "run": run,
        "outcome": reading.outcome(run),
        "architecture": reading.architecture(run),
        "version": reading.version(run),
        "reason": reading.reason(run),
        "headline": reading.headline(run, settings)[:12],
        "failed": reading.failed(run)[:12],
        "choice": reading.choice(run),
        "batches": [(batch, *reading.table(batch)) for batch in run.batches[:12]],
        "report_link": report_link,
        "ui_url": settings.ui_url,
        "note": reading.NOTE,
        "pictures": list(pictures),
    }
    text, html = page("outcome.txt.j2", **values), page("outcome.html.j2", **values)
    message = _message(settings, recipients, subject(run, settings), run.run, run.outcome, text, html)
    _attach(message, pictures)
    if len(bytes(message)) > MAX_BYTES:
        html = page("outcome.html.j2", **values | {"pictures": []})
        message = _message(settings, recipients, subject(run, settings), run.run, run.outcome, text, html)
    return message


def rollback_message(settings: Settings, recipients: tuple[str, ...], entry: HistoryEntry) -> EmailMessage:
    """The mail about a rollback: which model is champion again, by whom and why.

    Raises:
        Refused: no recipient, one that is not allowed, or an address that is none.
    """
    values = {"entry": entry, "note": reading.NOTE}
    text, html = page("rollback.txt.j2", **values), page("rollback.html.j2", **values)
    line = f"[cxr] ROLLED BACK to {words.plain(entry.model, 60)} v{entry.version}: {entry.why}"
    return _message(settings, recipients, line, entry.run, "rolled-back", text, html)


def failure_message(
    settings: Settings, recipients: tuple[str, ...], failed: FailedStep, report_link: str
) -> EmailMessage:
    """The mail about a step that failed: which, why and what to do.

    Args:
        settings: the sender and who may receive.
        recipients: addresses from `mail_allowed`.
        failed: what happened.
        report_link: where the page of the run is, "" where none could be written.

    Raises:
        Refused: no recipient, one that is not allowed, or an address that is none.
    """
    values = {"failed": failed, "report_link": report_link, "note": reading.NOTE}
    text, html = page("failure.txt.j2", **values), page("failure.html.j2", **values)
    line = f"[cxr] FAILED at {words.plain(failed.step, 40)}: {failed.said[0]}"
    once = f"failed-{hashlib.sha256(failed.step.encode('utf-8', 'replace')).hexdigest()[:8]}"
    return _message(settings, recipients, line, failed.run, once, text, html)


def _transient(error: Exception) -> bool:
    if isinstance(error, smtplib.SMTPServerDisconnected):
        return True
    if isinstance(error, smtplib.SMTPResponseException):
        return 400 <= error.smtp_code < 500
    # SMTPException and SSLCertVerificationError are OSErrors too, and waiting mends neither.
    return isinstance(error, OSError) and not isinstance(error, smtplib.SMTPException | ssl.SSLCertVerificationError)


def _deliver(message: EmailMessage, settings: Settings, to: list[str]) -> dict[str, tuple[int, bytes]]:
    smtp = smtplib.SMTP(settings.smtp_host, settings.smtp_port, timeout=settings.smtp_timeout)
    try:
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
            smtp.quit()
        smtp.close()


def send(message: EmailMessage, settings: Settings) -> None:
    """Hands the mail to the SMTP server; tries again after 2, 8 and 30 seconds on errors that pass.

    Recipients that the server took are not sent to again.

    Raises:
        Refused: a login without STARTTLS would send the password in the clear over a network.
        smtplib.SMTPRecipientsRefused: some recipients were refused for good, or to the end; the others have the mail.
        OSError: any other error of the last try (smtplib's errors are OSErrors).
    """
    if settings.smtp_user and not settings.smtp_starttls and settings.smtp_host not in _LOOPBACK:
        raise Refused(
            "A login to a mail server needs STARTTLS, or the password travels in the clear. Received: "
            f"smtp_user {settings.smtp_user!r} at {settings.smtp_host!r} without it. Set CXR_SMTP_STARTTLS=true."
        )
    pending = [address.addr_spec for address in message["To"].addresses]
    lost: dict[str, tuple[int, bytes]] = {}
    for pause in (*_PAUSES, None):
        try:
            refused = _deliver(message, settings, pending)
        except OSError as error:
            if pause is None or not _transient(error):
                raise
            _log.warning("The mail server did not take the mail (%s); trying again in %.0f s.", error, pause)
        else:
            passing = {a: e for a, e in refused.items() if 400 <= e[0] < 500 and pause is not None}
            lost |= {a: e for a, e in refused.items() if a not in passing}
            pending = list(passing)
            if not pending:
                break
            _log.warning("The mail server put off %s; trying again in %.0f s.", ", ".join(pending), pause)
        time.sleep(pause)
    if lost:
        raise smtplib.SMTPRecipientsRefused(lost)
