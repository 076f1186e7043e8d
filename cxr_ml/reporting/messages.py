"""Mails about a run: what happened, or which step failed and what to do."""

import hashlib
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate
from typing import NamedTuple

from cxr_ml.errors import Refused
from cxr_ml.records import Evaluation, FailedStep, HistoryEntry, Run
from cxr_ml.reporting import figures, formatting, html_pages, narrative
from cxr_ml.settings import GateSettings, MailSettings, Settings

MAX_BYTES = 1_000_000  # of a whole mail; many servers and phones load larger ones late or not at all
MAX_LINES = 12  # of a table; the report has them all
MAX_MATRIX_CLASSES = 6  # a larger confusion matrix cannot be read on a phone
MAX_MISTAKES = 5
MAX_SUBJECT = 150  # characters; phones show about 60


def allowed(recipients: tuple[str, ...], settings: MailSettings) -> tuple[str, ...]:
    """Returns the recipients, each once, spelled as in `mail.allowed`.

    Raises:
        Refused: an address that is not in `mail.allowed`.
    """
    known = {address.casefold(): address for address in settings.allowed}
    for address in recipients:
        if address.strip(" ").casefold() not in known:
            raise Refused(
                f"Mail goes only to addresses in mail.allowed ({', '.join(settings.allowed) or 'none'}). "
                f"Received: {address!r}. Choose one of these, or add it to mail.allowed (CXR_MAIL__ALLOWED)."
            )
    return tuple(dict.fromkeys(known[address.strip(" ").casefold()] for address in recipients))


def _message(
    settings: MailSettings, recipients: tuple[str, ...], subject: str, run: str, kind: str, text: str, html: str
) -> EmailMessage:
    to = allowed(recipients, settings)
    if not to:
        raise Refused(
            "A mail needs at least one recipient. Received: none. Set CXR_MAIL__RECIPIENTS or choose one in the form."
        )
    message = EmailMessage(policy=SMTP)
    try:
        sender = Address(addr_spec=settings.sender)
        message["From"] = sender
        message["To"] = [Address(addr_spec=address) for address in to]
    except (ValueError, IndexError) as error:
        raise Refused(
            f"mail.sender and mail.allowed must hold plain addresses such as team@hospital.example ({error}). "
            f"Received: {settings.sender!r}, {to!r}"
        ) from None
    message["Subject"] = formatting.plain(subject, MAX_SUBJECT)
    message["Date"] = formatdate()
    # The same for every try: mail programs show a mail once though it came twice.
    digest = hashlib.sha256(f"{kind}\0{run}".encode("utf-8", "replace")).hexdigest()[:32]
    message["Message-ID"] = f"<{digest}.{kind}@{sender.domain or 'localhost'}>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(text)
    message.add_alternative(html, subtype="html")
    return message


def _attach(message: EmailMessage, pictures: dict[str, bytes]) -> None:
    *_, html = message.iter_parts()  # the last alternative
    for name, png in pictures.items():
        html.add_related(png, "image", "png", cid=f"<{name}>", filename=f"{name}.png", disposition="inline")


def subject(run: Run, settings: GateSettings) -> str:
    """Returns the subject of a mail about a run that ended: its figures, or the first failed check.

    `[cxr] PROMOTED inception_v3 v12: COVID19 98.7 %, PNEUMONIA 93.1 %, macro F1 0.91`.
    """
    evaluation, failed = narrative.chosen(run), narrative.failed(run)
    version = narrative.version(run)
    words = ["[cxr]", narrative.outcome(run), formatting.plain(narrative.architecture(run), 40)]
    start = " ".join(filter(None, [*words, f"v{version}" if version else ""]))
    if run.outcome == "promoted" and evaluation is not None:
        # The two classes that matter most are those with the highest floors.
        names = sorted(settings.recall_floors, key=lambda n: -settings.recall_floors[n])[:2]
        classes = evaluation.test.classes
        recalls = [(n, formatting.percent(classes[n].recall if n in classes else None)) for n in names]
        parts = [f"{formatting.plain(name, 24)} {recall}" for name, recall in recalls]
        return f"{start}: {', '.join([*parts, f'macro F1 {formatting.score(evaluation.test.macro_f1)}'])}"
    if failed:
        more = f" (+{len(failed) - 1} more)" if len(failed) > 1 else ""
        return f"{start}: {formatting.plain(narrative.complaint(failed[0]), 90)}{more}"
    return f"{start}: {narrative.reason(run)}"


class _Mistake(NamedTuple):
    """A class taken for another on the test images."""

    wrong: int  # images of the true class that are taken for the other
    images: int  # of the true class
    true: str
    predicted: str

    @property
    def share(self) -> float:
        return self.wrong / self.images


def _describe_mistakes(evaluation: Evaluation) -> list[str]:
    """Returns the most frequent mistakes on the test images, by share of the true class: a line each."""
    names = list(evaluation.test.classes)
    mistakes = [
        _Mistake(count, sum(row), names[true], names[predicted])
        for true, row in enumerate(evaluation.test.confusion)
        for predicted, count in enumerate(row)
        if predicted != true and count
    ]
    mistakes.sort(key=lambda m: (-m.share, m.true, m.predicted))
    lines = [
        f"{formatting.plain(m.true, 40)} taken for {formatting.plain(m.predicted, 40)}: {m.wrong} of {m.images} "
        f"({formatting.percent(m.share)})"
        for m in mistakes[:MAX_MISTAKES]
    ]
    return [line.replace(" %", "\u00a0%") for line in lines]


def outcome_message(
    run: Run, settings: Settings, recipients: tuple[str, ...], report_link: str, links: dict[str, str] | None = None
) -> EmailMessage:
    """Returns the mail about a run that ended: text, and HTML with two plots, whole without them. No X-ray is in it.

    Args:
        run: everything that happened.
        settings: the floors, the sender and who may receive.
        recipients: addresses from `mail.allowed`.
        report_link: where the page of the run is.
        links: title -> address of pages about the run.

    Raises:
        Refused: no recipient, one that is not allowed, or an address that is none.
    """
    evaluation, summary = narrative.chosen(run), narrative.summarize(run, settings.gate)
    pictures = {}
    if evaluation is not None:
        pictures["recalls"] = figures.recalls(run, settings.gate.recall_floors)
        if len(evaluation.test.classes) <= MAX_MATRIX_CLASSES:
            pictures["confusion"] = figures.confusion(evaluation.test, tuple(evaluation.test.classes))
    values = summary._asdict() | {
        "run": run,
        "headline": summary.headline[:MAX_LINES],
        "more_lines": len(summary.headline[MAX_LINES:]),
        "failed": summary.failed[:MAX_LINES],
        "more_failed": len(summary.failed[MAX_LINES:]),
        "mistakes": _describe_mistakes(evaluation) if evaluation is not None else [],
        "batches": [(batch, *narrative.table(batch)) for batch in run.batches[:MAX_LINES]],
        "report_link": report_link,
        "links": links or {},
        "note": narrative.NOTE,
        "pictures": list(pictures),
    }
    line = subject(run, settings.gate)
    text, html = _render("outcome", values)
    message = _message(settings.mail, recipients, line, run.run, run.outcome, text, html)
    _attach(message, pictures)
    if len(bytes(message)) > MAX_BYTES:
        text, html = _render("outcome", values | {"pictures": []})
        message = _message(settings.mail, recipients, line, run.run, run.outcome, text, html)
    return message


def _render(name: str, values: dict[str, object]) -> tuple[str, str]:
    """Returns a mail as text and as HTML."""
    return (
        html_pages.render_template(f"{name}.txt.j2", **values),
        html_pages.render_template(f"{name}.html.j2", **values),
    )


def rollback_message(
    settings: MailSettings, recipients: tuple[str, ...], entry: HistoryEntry, links: dict[str, str] | None = None
) -> EmailMessage:
    """Returns the mail about a rollback: which model is champion again, by whom and why.

    Args:
        settings: the sender and who may receive.
        recipients: addresses from `mail.allowed`.
        entry: what the history says of it.
        links: title -> address of pages about it.

    Raises:
        Refused: no recipient, one that is not allowed, or an address that is none.
    """
    values: dict[str, object] = {"entry": entry, "links": links or {}, "note": narrative.NOTE}
    text, html = _render("rollback", values)
    line = f"[cxr] ROLLED BACK to {formatting.plain(entry.model, 60)} v{entry.version}: {entry.why}"
    return _message(settings, recipients, line, entry.run, "rolled-back", text, html)


def failure_message(
    settings: MailSettings,
    recipients: tuple[str, ...],
    failed: FailedStep,
    report_link: str,
    links: dict[str, str] | None = None,
) -> EmailMessage:
    """Returns the mail about a step that failed: which, why and what to do.

    Args:
        settings: the sender and who may receive.
        recipients: addresses from `mail.allowed`.
        failed: what happened.
        report_link: where the page of the run is, "" where none could be written.
        links: title -> address of pages about the run.

    Raises:
        Refused: no recipient, one that is not allowed, or an address that is none.
    """
    values: dict[str, object] = {
        "failed": failed,
        "report_link": report_link,
        "links": links or {},
        "note": narrative.NOTE,
    }
    text, html = _render("failure", values)
    line = f"[cxr] FAILED at {formatting.plain(failed.step, 40)}: {failed.said[0]}"
    # With the time in it: when a step is cleared and fails again, that is another mail.
    event = f"{failed.step}\0{failed.at}".encode("utf-8", "replace")
    kind = f"failed-{hashlib.sha256(event).hexdigest()[:8]}"
    return _message(settings, recipients, line, failed.run, kind, text, html)
