"""Mails people what became of a run: each of them once, with a warning on the run's page where it cannot be done."""

import time
from collections.abc import Callable, Sequence
from email.message import EmailMessage

from cxr_ml import layout
from cxr_ml.errors import Refused
from cxr_ml.records import FailedStep, Run
from cxr_ml.registry import mlflow_sync, promotion
from cxr_ml.registry.promotion import slug
from cxr_ml.reporting import deliveries, failures, formatting, links, messages, publish, report, smtp
from cxr_ml.settings import MailSettings, Settings
from cxr_ml.store import ObjectStore

FAILURE_PAUSES = (2.0, 8.0, 30.0)  # seconds before the second, third and fourth try of a mail about a failure


def mail_outcome(
    store: ObjectStore, settings: Settings, run: str, recipients: Sequence[str], run_link: str = ""
) -> bool:
    """Mails what became of a run that has its report, once; the caller decides whether to try again.

    Args:
        store: the object store.
        settings: the mail server.
        run: name of the run in the store.
        recipients: addresses from `mail.allowed`.
        run_link: address of the run in Airflow, "" where Airflow did not make it.

    Returns:
        Whether there was something to tell and somebody to tell it to: a run without a report, or one that did
        nothing, is not mailed about.

    Raises:
        Refused: a recipient who is not allowed, or a mail server that will not take the mail. The run is marked.
        OSError: a temporary failure of the mail server: trying again may help, and writes only to those who still
            wait. The run is marked.
    """
    to = messages.allowed(tuple(recipients), settings.mail)
    stored = store.load_or_none(layout.run_record(run), Run)
    if not to or stored is None or (stored[0].outcome == report.NOTHING_NEW and not stored[0].batches):
        return False
    record = stored[0]
    run_links = links.of_run(settings.mail, run, run_link)
    page = f"s3://{store.bucket}/{store.prefix}{layout.report_page(run)}"
    message = messages.outcome_message(record, settings, to, page, run_links)
    _send_once(
        store,
        settings.mail,
        run,
        record.outcome,
        to,
        message,
        lambda: publish.refresh_page(store, settings, record, run_link),
    )
    return True


def mail_rollback(
    store: ObjectStore, settings: MailSettings, run: str, recipients: Sequence[str], run_link: str = ""
) -> bool:
    """Mirrors a rollback of that name into MLflow, and mails who is champion again since.

    Returns:
        Whether there was such a rollback, and somebody to tell.

    Raises:
        Refused, OSError: as `mail_outcome`.
    """
    to = messages.allowed(tuple(recipients), settings)
    entry = next((e for e in reversed(promotion.history(store)) if e.run == run), None)
    if entry is None or entry.action != "rolled_back":
        return False
    mlflow_sync.mirror(store)
    if not to:
        return False
    run_links = links.of_run(settings, run, run_link, [entry.model])
    message = messages.rollback_message(settings, to, entry, run_links)
    _send_once(store, settings, run, entry.action, to, message, lambda: None)  # a rollback has no page
    return True


def mail_failure(
    store: ObjectStore, settings: Settings, failed: FailedStep, recipients: Sequence[str], page: str
) -> None:
    """Mails which step of a run failed, why and what to do.

    Airflow calls this once and does not retry a callback, so temporary failures are tried again here.

    Args:
        store: the object store.
        settings: the mail server.
        failed: what happened.
        recipients: addresses from `mail.allowed`.
        page: where the page of the run is, "" where none could be written.

    Raises:
        Refused, OSError: as `mail_outcome`.
    """
    to, run = messages.allowed(tuple(recipients), settings.mail), slug(failed.run)
    message = messages.failure_message(
        settings.mail, to, failed, page, links.of_run(settings.mail, run, failed.run_link)
    )
    # With the time in it: when a step is cleared and fails again, that is told, too.
    kind = f"failed-{slug(failed.step)}-{slug(failed.at)}"
    for pause in FAILURE_PAUSES:
        try:
            return _send_failure(store, settings, failed, kind, to, message, page)
        except OSError:
            time.sleep(pause)
    return _send_failure(store, settings, failed, kind, to, message, page)


def _send_failure(
    store: ObjectStore,
    settings: Settings,
    failed: FailedStep,
    kind: str,
    to: Sequence[str],
    message: EmailMessage,
    page: str,
) -> None:
    if page:
        _send_once(
            store,
            settings.mail,
            slug(failed.run),
            kind,
            to,
            message,
            lambda: _refresh_after_failure(store, settings, failed),
        )
    else:  # the store cannot be reached: no mark
        smtp.send(message, settings.mail)


def _refresh_after_failure(store: ObjectStore, settings: Settings, failed: FailedStep) -> None:
    run = slug(failed.run)
    record = report.load_ended(store, run)
    if record is not None:  # the step failed beside a report that is there
        publish.refresh_page(store, settings, record, failed.run_link)
    else:
        failures.write_page(store, settings.mail, run)


def _send_once(
    store: ObjectStore,
    settings: MailSettings,
    run: str,
    kind: str,
    to: Sequence[str],
    message: EmailMessage,
    refresh_page: Callable[[], object],
) -> None:
    """Sends a mail to those who do not have it; `refresh_page` is called when the warnings about mails have changed."""
    waiting = [address for address in to if not deliveries.is_sent(store, run, kind, address)]
    if not waiting:
        return

    def on_accepted(address: str) -> None:
        deliveries.mark_sent(store, run, kind, address)
        waiting.remove(address)

    try:
        smtp.send(message, settings, tuple(waiting), on_accepted)
    except (OSError, Refused) as error:
        why = formatting.plain(smtp.describe_error(error), 600)
        deliveries.mark_unsent(store, run, kind, waiting, why)
        refresh_page()
        raise
    if deliveries.was_unsent(store, run, kind):
        refresh_page()
