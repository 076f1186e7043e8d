"""Where more about a run is to be seen: the console, Airflow."""

from collections.abc import Sequence
from urllib.parse import quote

from cxr_ml.settings import MailSettings


def console(settings: MailSettings, *path: str) -> str:
    """Address of a page of the console, such as `runs`, a run; "" where the address of the UI is not known."""
    base = settings.ui_url.rstrip("/")
    return "/".join([base, "cxr", *(quote(part, safe="") for part in path)]) if base else ""


def of_run(settings: MailSettings, run: str, run_link: str, models: Sequence[str] = ()) -> dict[str, str]:
    """Title -> address, of the pages about a run; empty where the address of the UI is not known.

    Args:
        settings: the address of the UI.
        run: name of the run in the store.
        run_link: address of the run in Airflow, "" where Airflow did not make it.
        models: its candidates.
    """
    found = {
        "This run in the console": console(settings, "runs", run),
        "This run in Airflow: steps and logs": run_link,
        "What was refused, in the console": console(settings, "quarantine"),
        **{f"{model} in the console": console(settings, "models", model) for model in models},
        "Airflow": "" if run_link else settings.ui_url,
    }
    return {title: link for title, link in found.items() if link}
