"""What a failed step leaves behind: a record of what happened, and the page of its run."""

import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime

from cxr_ml import layout
from cxr_ml.records import FailedStep, Unsent
from cxr_ml.registry.promotion import slug
from cxr_ml.reporting import deliveries, formatting, html_pages, links, narrative, report
from cxr_ml.reporting.troubleshooting import advise
from cxr_ml.settings import MailSettings, Settings
from cxr_ml.store import ObjectStore

MAX_CHARACTERS, MAX_LINES = 4000, 30  # of an error that are shown


def describe_failure(
    settings: Settings, run: str, step: str, error: BaseException | str, log_link: str, run_link: str = ""
) -> FailedStep:
    """Returns which step failed, why and what to do, without the secrets of the settings and fit to be shown.

    Args:
        settings: their secrets are left out.
        run: name of the run.
        step: name of the task.
        error: what was raised, or what is known about it.
        log_link: address of the log, "" where there is none.
        run_link: address of the run in Airflow, "" where there is none.

    Example:
        >>> failed = describe_failure(Settings(), "manual__1", "learn.train [0]", MemoryError("no memory left"), "")
        >>> failed.kind, failed.said
        ('MemoryError', ('no memory left',))
    """
    message = _without_secrets(str(error), settings)[:MAX_CHARACTERS].splitlines()
    lines = [formatting.plain(line, 1000) for line in message if line.strip()][:MAX_LINES]
    return FailedStep(
        run=formatting.plain(run, 250),
        step=formatting.plain(step, 120),
        kind="" if isinstance(error, str) else type(error).__name__,
        said=tuple(lines) or ("(the error came without a message)",),
        advice=advise(error, settings.training.batch_size),
        log_link=log_link,
        run_link=run_link,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _without_secrets(text: str, settings: Settings) -> str:
    secrets = (settings.mail.smtp_password, settings.inbox.patient_salt, os.environ.get("AWS_SECRET_ACCESS_KEY", ""))
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return re.sub(r"(\w+://[^\s/:@]*):[^\s/@]+@", r"\1:***@", text)


def save_failure(store: ObjectStore, settings: MailSettings, failed: FailedStep) -> str:
    """Stores the failure of a step, and the page of its run with all failures so far.

    The page stays until the run goes on and ends well: its report then takes the place. A report is never replaced.

    Returns:
        The key of the page.
    """
    run = slug(failed.run)
    key = layout.failed_step(run, slug(failed.step))
    store.put_uncommitted(key, failed.to_bytes(), "application/json")
    return write_page(store, settings, run)


def write_page(store: ObjectStore, settings: MailSettings, run: str) -> str:
    """Renders and stores the page of a run that failed, `reports/<run>/index.html`, unless it has its report.

    Args:
        store: the object store.
        settings: those of [mail].
        run: name of the run as it is used in keys.

    Returns:
        The key of the page.
    """
    key = layout.report_page(run)
    # Two steps may fail at once, and each shows the failures that it finds: the later one looks again.
    while report.load_ended(store, run) is None:
        stored = store.get_or_none(key)
        html = render(settings, _load_failures(store, run), deliveries.find_unsent(store, run)).encode()
        if store.swap(key, html, stored and stored[1], "text/html; charset=utf-8"):
            break
    return key


def _load_failures(store: ObjectStore, run: str) -> list[FailedStep]:
    """Returns the failures of a run, the newest first."""
    failures = [store.load(key, FailedStep) for key in store.keys(layout.failed_steps(run))]
    return sorted(failures, key=lambda failed: failed.at, reverse=True)


def render(settings: MailSettings, failures: Sequence[FailedStep], unsent: Sequence[Unsent] = ()) -> str:
    """Returns the page of a run that failed as one self-contained HTML page.

    Args:
        settings: the address of the UI.
        failures: of the steps of one run, the newest first.
        unsent: mails about the run that somebody still waits for.
    """
    newest = failures[0]
    return html_pages.render_template(
        "failed.html.j2",
        failures=failures,
        links=links.of_run(settings, slug(newest.run), newest.run_link),
        note=narrative.NOTE,
        unsent=unsent,
    )
