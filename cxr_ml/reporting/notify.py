"""Tells people by mail what became of a run: each of them once, and a warning on the run where it cannot be done.

A mark in the store says for each address that the server took the mail; who has one is not written to again. It is set
after the mail was sent, not before: a process that dies in between sends the mail twice, with the same Message-ID, by
which most mail programs show it once. The other order would lose the mail, and nobody would hear of a promotion.
"""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from email.message import EmailMessage

from cxr_ml import store
from cxr_ml.errors import Refused
from cxr_ml.records import FailedStep, Mailed, Run, Unsent
from cxr_ml.registry import mlflow_sync, promotion
from cxr_ml.registry.promotion import slug
from cxr_ml.reporting import formatting, html_pages, links, messages, report, smtp
from cxr_ml.settings import Settings


def outcome(settings: Settings, run: str, recipients: Sequence[str], run_link: str = "") -> bool:
    """Mails what became of a run that has its report.

    Args:
        settings: the store and the mail server.
        run: name of the run in the store.
        recipients: addresses from `mail_allowed`.
        run_link: address of the run in Airflow, "" where Airflow did not make it.

    Returns:
        Whether there was something to tell, and somebody to tell it to: of a run without a report, or one that did
        nothing, nobody is told.

    Raises:
        Refused: a recipient who is not allowed, or a mail server that will not take the mail. The run is marked.
        OSError: the mail server cannot be reached (a retry may help). The run is marked.
    """
    to = messages.allowed(tuple(recipients), settings)
    found = store.find_record(settings, f"reports/{run}/run.json", Run)
    if not to or found is None or (found[0].outcome == report.NOTHING_NEW and not found[0].batches):
        return False
    record = found[0]
    where = links.of_run(settings, run, run_link)
    page = f"s3://{settings.bucket}/{settings.prefix}reports/{run}/index.html"
    _once(settings, run, record.outcome, to, messages.outcome_message(record, settings, to, page, where))
    return True


def rollback(settings: Settings, run: str, recipients: Sequence[str], run_link: str = "") -> bool:
    """Mirrors a rollback of that name into MLflow, and mails who is champion again since.

    Returns:
        Whether there was such a rollback, and somebody to tell.

    Raises:
        Refused, OSError: as `outcome`.
    """
    to = messages.allowed(tuple(recipients), settings)
    entry = next((e for e in reversed(promotion.history(settings)) if e.run == run), None)
    if entry is None or entry.action != "rolled_back":
        return False
    mlflow_sync.mirror(settings)
    if not to:
        return False
    where = links.of_run(settings, run, run_link, [entry.model])
    _once(settings, run, entry.action, to, messages.rollback_message(settings, to, entry, where))
    return True


def failure(settings: Settings, failed: FailedStep, recipients: Sequence[str], page: str) -> None:
    """Mails which step of a run failed, why and what to do.

    Args:
        settings: the store and the mail server.
        failed: what happened.
        recipients: addresses from `mail_allowed`.
        page: where the page of the run is, "" where none could be written.

    Raises:
        Refused, OSError: as `outcome`.
    """
    to, run = messages.allowed(tuple(recipients), settings), slug(failed.run)
    where = links.of_run(settings, run, failed.run_link)
    message = messages.failure_message(settings, to, failed, page, where)
    if page:
        # A step that fails again, after it was cleared, is told of again.
        _once(settings, run, f"failed-{slug(failed.step)}-{slug(failed.at)}", to, message)
    else:  # the store cannot be reached: no mark
        smtp.send(message, settings)


def unsent(settings: Settings, run: str) -> list[Unsent]:
    """Mails about a run that somebody still waits for."""
    found = (store.load(settings, key, Unsent) for key in store.keys(settings, f"reports/{run}/unsent/"))
    return [u for u in found if not all(store.exists(settings, _mark(run, u.kind, a)) for a in u.to)]


def _mark(run: str, kind: str, address: str) -> str:
    digest = hashlib.sha256(address.casefold().encode()).hexdigest()[:16]
    return f"reports/{run}/mailed/{kind}-{digest}.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _once(settings: Settings, run: str, kind: str, to: Sequence[str], message: EmailMessage) -> None:
    waiting = [address for address in to if not store.exists(settings, _mark(run, kind, address))]
    if not waiting:
        return

    def taken(address: str) -> None:
        mark = Mailed(kind=kind, to=address, at=_now())
        store.put_if_absent(settings, _mark(run, kind, address), mark.to_bytes(), "application/json")
        waiting.remove(address)

    try:
        smtp.send(message, settings, tuple(waiting), taken)
    except (OSError, Refused) as error:
        missed = Unsent(kind=kind, to=tuple(waiting), why=formatting.plain(smtp.said(error), 600), at=_now())
        key = f"reports/{run}/unsent/{kind}.json"
        store.put_uncommitted(settings, key, missed.to_bytes(), "application/json")
        _show(settings, run)
        raise
    _show(settings, run)


def _show(settings: Settings, run: str) -> None:
    """Puts the warnings about mails on the page of the run, or takes them away."""
    found = unsent(settings, run)
    text = " ".join(f"No mail about this run could be sent to {', '.join(u.to)} ({u.at}). {u.why}" for u in found)
    key = f"reports/{run}/index.html"
    while page := store.find(settings, key):
        html = html_pages.warned(page[0].decode(), text)
        if html.encode() == page[0] or store.swap(settings, key, html.encode(), page[1], "text/html; charset=utf-8"):
            break
