"""Mails about a run: what happened, or which step failed and what to do."""

import hashlib
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate

from cxr_ml.errors import Refused
from cxr_ml.records import Evaluation, FailedStep, HistoryEntry, Run
from cxr_ml.reporting import figures, formatting, narrative
from cxr_ml.reporting.html_pages import page
from cxr_ml.settings import Settings

MAX_BYTES = 1_000_000  # of a whole mail; many servers and phones load larger ones late or not at all
_LINES = 12  # of a table; the report has them all
_LEGIBLE = 6  # classes; a confusion matrix of more cannot be read on a phone
_SUBJECT = 150  # characters; phones show about 60


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
    message["Subject"] = formatting.plain(subject, _SUBJECT)
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
    evaluation, failed = narrative.chosen(run), narrative.failed(run)
    number = narrative.version(run)
    start = " ".join(
        filter(
            None,
            (
                "[cxr]",
                narrative.outcome(run),
                formatting.plain(narrative.architecture(run), 40),
                number and f"v{number}",
            ),
        )
    )
    if run.outcome == "promoted" and evaluation is not None:
        # The two classes that matter most are those with the highest floors.
        names = sorted(settings.recall_floors, key=lambda n: -settings.recall_floors[n])[:2]
        test = evaluation.test
        parts = [
            f"{formatting.plain(n, 24)} {formatting.percent(test.classes[n].recall if n in test.classes else None)}"
            for n in names
        ]
        return f"{start}: {', '.join([*parts, f'macro F1 {formatting.score(test.macro_f1)}'])}"
    if failed:
        more = f" (+{len(failed) - 1} more)" if len(failed) > 1 else ""
        return f"{start}: {formatting.plain(narrative.complaint(failed[0]), 90)}{more}"
    return f"{start}: {narrative.reason(run)}"


def _mistakes(evaluation: Evaluation, most: int = 5) -> list[str]:
    """What is most often taken for what on the test images, by share of the true class: a line each."""
    names = list(evaluation.test.classes)
    found = [
        (count / sum(row), count, sum(row), names[true], names[said])
        for true, row in enumerate(evaluation.test.confusion)
        for said, count in enumerate(row)
        if said != true and count
    ]
    lines = [
        f"{formatting.plain(true, 40)} taken for {formatting.plain(said, 40)}: {count} of {images} "
        f"({formatting.percent(share)})"
        for share, count, images, true, said in sorted(found, key=lambda f: (-f[0], f[3], f[4]))[:most]
    ]
    return [line.replace(" %", "\u00a0%") for line in lines]


def outcome_message(
    run: Run, settings: Settings, recipients: tuple[str, ...], report_link: str, links: dict[str, str] | None = None
) -> EmailMessage:
    """The mail about a run that ended: text and HTML, with two plots inside, whole without them. No X-ray in it.

    Args:
        run: everything that happened.
        settings: the floors, the sender and who may receive.
        recipients: addresses from `mail_allowed`.
        report_link: where the page of the run is.
        links: title -> address of pages about the run.

    Raises:
        Refused: no recipient, one that is not allowed, or an address that is none.
    """
    evaluation = narrative.chosen(run)
    lines, failed = narrative.headline(run, settings), narrative.failed(run)
    pictures = {}
    if evaluation is not None:
        pictures["recalls"] = figures.recalls(run, settings.recall_floors)
        if len(evaluation.test.classes) <= _LEGIBLE:
            pictures["confusion"] = figures.confusion(evaluation.test, tuple(evaluation.test.classes))
    values = {
        "run": run,
        "outcome": narrative.outcome(run),
        "architecture": narrative.architecture(run),
        "version": narrative.version(run),
        "reason": narrative.reason(run),
        "headline": lines[:_LINES],
        "more_lines": len(lines[_LINES:]),
        "failed": failed[:_LINES],
        "more_failed": len(failed[_LINES:]),
        "choice": narrative.choice(run),
        "mistakes": _mistakes(evaluation) if evaluation is not None else [],
        "batches": [(batch, *narrative.table(batch)) for batch in run.batches[:_LINES]],
        "report_link": report_link,
        "links": links or {},
        "note": narrative.NOTE,
        "pictures": list(pictures),
    }
    text, html = page("outcome.txt.j2", **values), page("outcome.html.j2", **values)
    message = _message(settings, recipients, subject(run, settings), run.run, run.outcome, text, html)
    _attach(message, pictures)
    if len(bytes(message)) > MAX_BYTES:
        html = page("outcome.html.j2", **values | {"pictures": []})
        message = _message(settings, recipients, subject(run, settings), run.run, run.outcome, text, html)
    return message


def rollback_message(
    settings: Settings, recipients: tuple[str, ...], entry: HistoryEntry, links: dict[str, str] | None = None
) -> EmailMessage:
    """The mail about a rollback: which model is champion again, by whom and why.

    Args:
        settings: the sender and who may receive.
        recipients: addresses from `mail_allowed`.
        entry: what the history says of it.
        links: title -> address of pages about it.

    Raises:
        Refused: no recipient, one that is not allowed, or an address that is none.
    """
    values = {"entry": entry, "links": links or {}, "note": narrative.NOTE}
    text, html = page("rollback.txt.j2", **values), page("rollback.html.j2", **values)
    line = f"[cxr] ROLLED BACK to {formatting.plain(entry.model, 60)} v{entry.version}: {entry.why}"
    return _message(settings, recipients, line, entry.run, "rolled-back", text, html)


def failure_message(
    settings: Settings,
    recipients: tuple[str, ...],
    failed: FailedStep,
    report_link: str,
    links: dict[str, str] | None = None,
) -> EmailMessage:
    """The mail about a step that failed: which, why and what to do.

    Args:
        settings: the sender and who may receive.
        recipients: addresses from `mail_allowed`.
        failed: what happened.
        report_link: where the page of the run is, "" where none could be written.
        links: title -> address of pages about the run.

    Raises:
        Refused: no recipient, one that is not allowed, or an address that is none.
    """
    values = {"failed": failed, "report_link": report_link, "links": links or {}, "note": narrative.NOTE}
    text, html = page("failure.txt.j2", **values), page("failure.html.j2", **values)
    line = f"[cxr] FAILED at {formatting.plain(failed.step, 40)}: {failed.said[0]}"
    # Of a step that fails again, after it was cleared, the mail is another one.
    event = f"{failed.step}\0{failed.at}".encode("utf-8", "replace")
    once = f"failed-{hashlib.sha256(event).hexdigest()[:8]}"
    return _message(settings, recipients, line, failed.run, once, text, html)
