"""What a failed step leaves for its readers: a record of what happened, and the page of the run."""

import os
import re
from datetime import UTC, datetime

from cxr_ml import store
from cxr_ml.records import FailedStep
from cxr_ml.registry.promotion import slug
from cxr_ml.reporting import formatting, links, narrative, report
from cxr_ml.reporting.html_pages import page
from cxr_ml.reporting.troubleshooting import advise
from cxr_ml.settings import Settings


def tell(
    settings: Settings, run: str, step: str, error: BaseException | str, log_link: str, run_link: str = ""
) -> FailedStep:
    """Which step failed, why and what to do, without the secrets of the settings and fit to be shown.

    Args:
        settings: whose secrets are left out.
        run: name of the run.
        step: name of the task.
        error: what was raised, or what is known about it.
        log_link: address of the log, "" where there is none.
        run_link: address of the run in Airflow, "" where there is none.
    """
    said = _without_secrets(str(error), settings)[:4000].splitlines()
    lines = [formatting.plain(line, 1000) for line in said if line.strip()][:30]
    return FailedStep(
        run=formatting.plain(run, 250),
        step=formatting.plain(step, 120),
        kind="" if isinstance(error, str) else type(error).__name__,
        said=tuple(lines) or ("(the error came without a message)",),
        advice=advise(error, settings.batch_size),
        log_link=log_link,
        run_link=run_link,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _without_secrets(text: str, settings: Settings) -> str:
    secrets = (settings.smtp_password, settings.patient_salt, os.environ.get("AWS_SECRET_ACCESS_KEY", ""))
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return re.sub(r"(\w+://[^\s/:@]*):[^\s/@]+@", r"\1:***@", text)


def write(settings: Settings, failed: FailedStep) -> str:
    """Stores the failure of a step, and the page of its run, `reports/<run>/index.html`, with all failures so far.

    The page is there until the run goes on and ends well: its report takes the place. A report is never replaced.

    Returns:
        The key of the page.
    """
    folder = f"reports/{slug(failed.run)}/"
    store.put_uncommitted(settings, f"{folder}failed/{slug(failed.step)}.json", failed.to_bytes(), "application/json")
    key = folder + "index.html"
    # Two steps may fail at once, and each shows those that it finds: who comes too late looks again.
    while not report.ended(settings, folder):
        found = store.find(settings, key)
        html = render(settings, _all(settings, folder)).encode()
        if store.swap(settings, key, html, found and found[1], "text/html; charset=utf-8"):
            break
    return key


def _all(settings: Settings, folder: str) -> list[FailedStep]:
    """Failures of a run, the newest first."""
    found = [store.load(settings, key, FailedStep) for key in store.keys(settings, folder + "failed/")]
    return sorted(found, key=lambda f: f.at, reverse=True)


def render(settings: Settings, failures: list[FailedStep]) -> str:
    """The page of a run that failed as one self-contained HTML page.

    Args:
        settings: the address of the UI.
        failures: of the steps of one run, the newest first.
    """
    first = failures[0]
    return page(
        "failed.html.j2",
        failures=failures,
        links=links.of_run(settings, slug(first.run), first.run_link),
        note=narrative.NOTE,
    )
